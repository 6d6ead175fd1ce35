"""How fast CLaMP 3 trains on folk tunes, against a plain loop that does what the original does, and a batched one.

    python benchmarks/training.py                         all of it: half an hour on two cores
    python benchmarks/training.py --only tiny,full        items/s alone: some 6 minutes
    python benchmarks/training.py --only loss             a small model's time to a given evaluation loss
    python benchmarks/training.py --json figures.json     the figures as JSON too
    python benchmarks/training.py --quick                 few items, a shallow model, one round: does it run?
It prints a Markdown table, with each target beside its figure. All contenders train the same model on the same items
(tunes and their descriptions) in one process; ours has the data workers that config.py says. They take turns, and
ratios are medians over the rounds. Run it on an otherwise idle machine: it says how much of the processor other work
took.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from report import add_parts_option, at_least, benchmark_parser, conditions, show, table_row

PARTS = {"tiny": "hidden size 128", "full": "full-size", "loss": "hidden size 128, to a loss"}
TARGETS = {"tiny": 10.0, "full": 4.0}  # times the plain loop's items/s
BATCHED_TARGET = 3.0  # times the batched loop's, for the small model
WIDTHS = {"tiny": (128, 3), "loss": (128, 3), "middle": (384, 6)}  # hidden size, and layers of each tower
LEARNING_RATE, WARM_UP = 3e-4, 100  # of the run to a loss
HELD_OUT = 256


@dataclass(frozen=True)
class Measure:
    """How much is measured of a part."""

    items: int
    batch_size: int
    plain_steps: int = 0  # in each round; ours takes an epoch
    batched_steps: int = 0


MEASURES = {"tiny": Measure(2048, 64, 2, 16), "full": Measure(96, 8, 2, 6), "loss": Measure(4096, 64)}
QUICK = {"tiny": Measure(24, 8, 1, 1), "full": Measure(16, 4, 1, 1), "loss": Measure(24, 8)}


def main() -> int:
    parser = benchmark_parser(
        __doc__, "of both contenders in turn; default 3", "few items, a shallow model, one round"
    )
    add_parts_option(parser, PARTS)
    parser.add_argument(
        "--loss", type=float, default=2.5, help="of batches of 64, to be reached; default: %(default)s"
    )
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure

    measures, rounds = (QUICK, 1) if args.quick else (MEASURES, args.rounds or 3)
    interference = measure.Interference()
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            measure.note(PARTS[name])
            contest = Contest(Path(folder, name), name, measures[name], args.quick)
            if name == "loss":
                figures[name] = contest.race(math.inf if args.quick else args.loss)
            else:
                figures[name] = contest.speeds(rounds)
    figures["interference"] = interference.share()
    show(figures, markdown(figures), args.json)
    return 0


class Contest:
    """The library's training and the plain loop, on one data set and with equal models.

    The data set is written to `folder`, unless it is there.
    """

    def __init__(self, folder: Path, name: str, measure: Measure, quick: bool):
        import config
        from clamp3.distributed import start
        from clamp3.inputs.encoder import InputEncoder
        from clamp3.sizes import ModelSizes
        from clamp3.training.texts import JsonLines
        from workload import music, save_text_model

        self.folder, self.measure, self.workers = folder, measure, 0 if quick else config.TRAIN_WORKERS
        width, layers = (128, 1) if quick else WIDTHS.get(name, (None, None))
        text_folder = folder / "text_model"
        if not folder.exists():
            tunes, texts = music(measure.items + (HELD_OUT if name == "loss" and not quick else 8))
            write_items(folder, tunes)
            save_text_model(text_folder, texts, small=quick)
            if width:
                save_narrow_text_model(text_folder, width, layers)
        sizes = {"text_model_name": str(text_folder)}
        if width:
            sizes |= {"m3_hidden_size": width, "audio_hidden_size": width, "clamp3_hidden_size": width}
            sizes |= {"patch_num_layers": layers, "audio_num_layers": 1}
        self.sizes, self.state = ModelSizes(**sizes), start("cpu")
        self.encoder, self.lines = InputEncoder(self.sizes), JsonLines(folder / "items.jsonl")

    def trainer(self, **settings):
        """A trainer of a new model, the same each time."""
        import numpy as np
        import torch

        from clamp3.models.clamp3 import CLaMP3Model
        from clamp3.training.data import Pairs
        from clamp3.training.loop import Trainer
        from clamp3.training.objectives import Contrastive
        from clamp3.training.settings import Settings

        torch.manual_seed(0)
        model = CLaMP3Model(self.sizes)
        model.train_on("symbolic")
        places = np.random.default_rng(0).permutation(len(self.lines))
        sets = [
            Pairs(self.lines, part, self.encoder, "symbolic", 0, training)
            for part, training in ((places[: self.measure.items], True), (places[self.measure.items :], False))
        ]
        options = {"epochs": 1000, "batch_size": self.measure.batch_size, "learning_rate": LEARNING_RATE, **settings}
        paths = self.folder / "weights.pth", self.folder / "logs.txt"
        chosen = Settings(*paths, workers=self.workers, warmup_steps=WARM_UP, **options)
        pad_values = {"text": self.encoder.tokenizer.pad_token_id}
        return Trainer(Contrastive(model, "symbolic"), *sets, pad_values, chosen, self.state)

    def plain(self, model):
        """The plain loop's training of a model, whose towers become transformers' own."""
        from plain_loop import PlainLoop, PlainTraining

        return PlainTraining(PlainLoop(model, self.sizes, self.encoder.tokenizer), LEARNING_RATE, WARM_UP)

    def speeds(self, rounds: int) -> dict:
        """Items/s of all, and medians of ratios. They start with equal models, whose values do not matter here."""
        from plain_loop import BatchedLoop

        trainer = self.trainer()
        plain = self.plain(deepcopy(trainer.model))
        batched = BatchedLoop(plain.loop.model, self.sizes, self.encoder.tokenizer)  # by turns, with one optimizer
        loops = {"loop": (plain.loop, self.measure.plain_steps), "batched": (batched, self.measure.batched_steps)}
        train_epoch(trainer)  # workers start, and memory is taken
        speeds = {"clamp3": [], **{name: [] for name in loops}}
        for _ in range(rounds):
            begin = time.perf_counter()
            train_epoch(trainer)
            speeds["clamp3"].append(
                len(trainer.samplers[0]) * trainer.samplers[0].global_batch_size / (time.perf_counter() - begin)
            )
            for name, (plain.loop, steps) in loops.items():
                begin = time.perf_counter()
                items = sum(plain.step(batch) for batch in plain_batches(trainer, steps))
                speeds[name].append(items / (time.perf_counter() - begin))
        ratios = {
            name: median(ours / theirs for ours, theirs in zip(speeds["clamp3"], speeds[name], strict=True))
            for name in loops
        }
        lengths = [len(trainer.loaders[0].dataset[0, place].sequences["music"]) for place in range(self.measure.items)]
        return {
            **{contender: median(values) for contender, values in speeds.items()},
            "ratio": ratios["loop"],
            "batched_ratio": ratios["batched"],
            "batch_size": self.measure.batch_size,
            "mean_length": sum(lengths) / len(lengths),
            "padding_ratio": self.sizes.patch_length * len(lengths) / sum(lengths),
        }

    def race(self, loss: float) -> dict:
        """Seconds of training until the evaluation loss is at most `loss`, looked at after each epoch."""
        found = {"loss": loss if math.isfinite(loss) else None}
        for contender in ("clamp3", "loop"):
            trainer, seconds, reached = self.trainer(), 0.0, math.inf
            plain = self.plain(trainer.model) if contender == "loop" else None
            while reached > loss or not seconds:
                begin = time.perf_counter()
                if plain is None:
                    train_epoch(trainer)
                else:
                    trainer.model.train()
                    for batch in plain_batches(trainer, len(trainer.samplers[0])):
                        plain.step(batch)
                    trainer.progress.epoch += 1
                seconds += time.perf_counter() - begin
                reached = trainer.evaluate()["eval_loss"]
            found[contender] = {"seconds": seconds, "epochs": trainer.progress.epoch, "eval_loss": reached}
        return found


def train_epoch(trainer) -> None:
    trainer.train_epoch()
    trainer.progress.epoch, trainer.progress.items = trainer.progress.epoch + 1, 0


def plain_batches(trainer, count: int) -> Iterator[list]:
    """The first `count` batches of the trainer's epoch, read by this process."""
    sampler, examples = trainer.samplers[0], trainer.loaders[0].dataset
    sampler.set(trainer.progress.epoch)
    for _, keys in zip(range(count), sampler, strict=False):
        yield [examples[key] for key in keys]


def write_items(folder: Path, tunes: list[tuple[str, str, str]]) -> None:
    """Tunes (name, ABC, description) as training items."""
    folder.mkdir()
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for name, abc, text in tunes:
            folder.joinpath(f"{name}.abc").write_text(abc, encoding="utf-8")
            item = {"id": name, "filepaths": [f"{name}.abc"], "title": text.split("\n")[0], "analysis": text}
            file.write(json.dumps(item) + "\n")


def save_narrow_text_model(folder: Path, width: int, layers: int) -> None:
    """The configuration of a text tower of hidden size `width`, beside the tokenizer in `folder`."""
    from transformers import XLMRobertaConfig

    from workload import TEXT_VOCABULARY

    sizes = {"hidden_size": width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": width // 64, "intermediate_size": 4 * width}
    limits = {"vocab_size": TEXT_VOCABULARY, "max_position_embeddings": 130, "type_vocab_size": 1}
    XLMRobertaConfig(**sizes, **limits).save_pretrained(folder)


def markdown(figures: dict) -> Iterator[str]:
    """The table, as lines."""
    yield from conditions(figures)
    speeds = {name: figures[name] for name in TARGETS if name in figures}
    if speeds:
        yield ""
        head = "model", "patches, padded to", "batch", "plain loop", "batched loop", "clamp3"
        yield table_row(*head, "over the plain loop", "over the batched loop")
        yield "|---|---|---|---|---|---|---|---|"
        for name, found in speeds.items():
            lengths = f"{found['mean_length']:.0f}, {found['padding_ratio']:.0f}x"
            rates = (f"{found[contender]:.1f} items/s" for contender in ("loop", "batched", "clamp3"))
            ratio = at_least(found["ratio"], TARGETS[name], "{:.1f}x")
            batched = f"{found['batched_ratio']:.2f}x"
            if name == "tiny":
                batched = at_least(found["batched_ratio"], BATCHED_TARGET, "{:.2f}x")
            yield table_row(PARTS[name], lengths, str(found["batch_size"]), *rates, ratio, batched)
    if found := figures.get("loss"):
        yield ""
        ours, theirs = found["clamp3"], found["loop"]
        yield (
            f"Evaluation loss {ours['eval_loss']:.2f} after {ours['seconds']:.0f} s of training; in the plain loop "
            f"{theirs['eval_loss']:.2f} after {theirs['seconds']:.0f} s: {theirs['seconds'] / ours['seconds']:.1f}x."
        )


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "code"))  # config.py, for the knobs
    sys.exit(main())
