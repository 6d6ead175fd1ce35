"""Train the small model in code/clamp3/tiny from nothing: data, M3, symbolic music, audio, and how good it is.

    make train-demo
    python examples/train_tiny.py --work train-demo --output code/clamp3/tiny
It takes 34 minutes on two CPU cores, needs no network, and runs the training commands as one would by hand. A run
that is stopped is taken up by the same command.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clamp3.training.checkpoints import last_path
from clamp3.training.texts import lines_of
from corpus import Tune, folk_tunes
from descriptions import LANGUAGES, full_description, short_descriptions
from notes import Melody, contour, read_melody, to_mtf

CODE = Path(__file__).resolve().parents[1] / "code"
SEED = 42
SETS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
TEST_TUNES, VALIDATION_TUNES = 1024, 256  # the first are for the final figures alone
SHORTEST = 12  # notes of a held-out tune
SHORT_TEXTS = 2  # of each item and language
VOCABULARY = 6000
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's, with its ids 0 to 3
WIDTH, TEXT_LAYERS = 128, 3
SIZES = {
    "PATCH_LENGTH": 128,
    "PATCH_NUM_LAYERS": 3,
    "TOKEN_NUM_LAYERS": 1,
    "M3_HIDDEN_SIZE": WIDTH,
    "MAX_TEXT_LENGTH": 96,
    "AUDIO_HIDDEN_SIZE": WIDTH,
    "AUDIO_NUM_LAYERS": 2,
    "CLAMP3_HIDDEN_SIZE": WIDTH,
}
PROCESSES = 2
SCHEDULE = {"WARMUP_STEPS": 100, "RATE_DECAY": "cosine"}  # of each stage
M3_KNOBS = {"M3_NUM_EPOCH": 8, "M3_LEARNING_RATE": 1e-3, "M3_BATCH_SIZE": 8, "M3_WANDB_LOG": False}
CLAMP3_KNOBS = {"CLAMP3_BATCH_SIZE": 64, "CLAMP3_WANDB_LOG": False, "SAVE_EVERY": 0}
MERT_STEPS = 500
AUDIO_TUNES = 4000  # of the training tunes


@dataclass(frozen=True)
class Stage:
    """A stage of training; the paper's schedule (section 4.1) has four."""

    modality: str
    freeze_text: bool
    epochs: int  # in each, a tune comes four times, with four languages
    rate: float

    @property
    def title(self) -> str:
        return f"{self.modality}, text frozen" if self.freeze_text else f"{self.modality} and text"


STAGES = (
    Stage("symbolic", False, 4, 1.5e-3),
    Stage("audio", True, 6, 2e-3),
    Stage("audio", False, 1, 1e-4),
    Stage("symbolic", True, 1, 3e-4),
)


# ---------- data ----------


def held_out(melodies: list[Melody], rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Indices for training, validation and the final figures. No tune has copies, in whatever key, in two of them."""
    copies = defaultdict(list)
    for index, melody in enumerate(melodies):
        copies[contour(melody)].append(index)
    groups = list(copies.values())
    training, others = [], []
    for position in rng.permutation(len(groups)):
        first = groups[position][0]
        if len(others) < TEST_TUNES + VALIDATION_TUNES and len(melodies[first].notes) >= SHORTEST:
            others.append(first)
        else:
            training += groups[position]
    return sorted(training), others[TEST_TUNES:], others[:TEST_TUNES]


def items(tune: Tune, files: list[str], rng: np.random.Generator, languages: tuple[str, ...]) -> Iterator[dict]:
    """The tune as lines of a JSONL file, one for each language of its translations."""
    for language in languages:
        english, foreign = (short_descriptions(tune, name, rng) for name in ("en", language))
        yield {
            "id": tune.name,
            "filepaths": files,
            "title": tune.title,
            "tags": [next(english) for _ in range(SHORT_TEXTS)],
            "analysis": full_description(tune),
            "translations": {
                "language": language,
                "tags": [next(foreign) for _ in range(SHORT_TEXTS)],
                "analysis": full_description(tune, language),
            },
        }


def prepare_data(work: Path) -> None:
    """Tunes as ABC and MTF, and {train,validation,test}_symbolic.jsonl, in data/; and text/, the text model."""
    folder = work / "data"
    if work.joinpath("text", "config.json").is_file():  # written last
        return
    rng = np.random.default_rng(SEED)
    tunes = list(folk_tunes())
    melodies = [read_melody(tune.abc) for tune in tunes]
    for name, indices in zip(SETS, held_out(melodies, rng), strict=True):
        folder.joinpath(name).mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}_symbolic.jsonl", "w", encoding="utf-8") as file:
            for index in indices:
                tune = tunes[index]
                files = [f"{name}/{kind}/{tune.name}.{kind}" for kind in ("abc", "mtf")]
                for path, text in zip(files, (tune.abc, to_mtf(melodies[index])), strict=True):
                    folder.joinpath(path).parent.mkdir(exist_ok=True)
                    folder.joinpath(path).write_text(text, encoding="utf-8")
                languages = LANGUAGES[1:] if name == TRAIN else LANGUAGES[1:2]
                for item in items(tune, files, rng, languages):
                    file.write(json.dumps(item, ensure_ascii=False) + "\n")
    texts = (
        lines_of(item, translated) for item in read_items(folder / f"{TRAIN}_symbolic.jsonl") for translated in (0, 1)
    )
    make_text_model(work / "text", list(dict.fromkeys(line for lines in texts for line in lines)))


def read_items(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------- the text model ----------


def make_text_model(folder: Path, texts: list[str]) -> None:
    """In `folder`, a byte-level tokenizer with the words of `texts`, and a small XLM-R's configuration."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

    bos, pad, eos, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{bos} $A {eos}", special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (bos, eos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        cls_token=bos,
        eos_token=eos,
        sep_token=eos,
        pad_token=pad,
        unk_token=unknown,
        add_prefix_space=True,  # as the pre-tokenizer has it, for transformers 4
    )
    fast.save_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=len(fast),
        hidden_size=WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=WIDTH // 64,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=SIZES["MAX_TEXT_LENGTH"] + 2,
        type_vocab_size=1,
    ).save_pretrained(folder)


# ---------- training ----------


def train(script: str, work: Path, knobs: dict) -> None:
    """Run a training command in two processes, with the model's sizes and `knobs`. Exits where it fails."""
    common = {"TEXT_MODEL_NAME": str(work / "text"), "TRAIN_WORKERS": 0, "SEED": SEED, "SAVE_STEPS": 0, **SCHEDULE}
    weights = Path(knobs["CLAMP3_WEIGHTS_PATH" if "CLAMP3_WEIGHTS_PATH" in knobs else "M3_WEIGHTS_PATH"])
    config = weights.with_name(f"{weights.stem.replace('weights', 'config')}.json")
    config.write_text(json.dumps({**SIZES, **common, **knobs}, indent=4), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
    print(f"\n$ CLAMP3_CONFIG={config} torchrun --nproc_per_node {PROCESSES} code/{script} --device cpu", flush=True)
    environment = {**os.environ, "CLAMP3_CONFIG": str(config), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run([*launcher, str(CODE / script), "--device", "cpu"], env=environment).returncode
    if code:
        sys.exit(f"error: {script} ended with exit code {code}")


def train_m3(work: Path) -> None:
    """M3 on the ABC files."""
    data = work / "data"
    folders = {
        f"M3_{kind}_FOLDERS": [str(data / name / "abc")] for kind, name in (("TRAIN", TRAIN), ("EVAL", VALIDATION))
    }
    train("train_m3.py", work, {**M3_KNOBS, **folders, "M3_WEIGHTS_PATH": str(work / "weights_m3.pth")})


def train_stage(number: int, work: Path) -> None:
    """A stage of CLaMP 3's training, which goes on from the one before."""
    stage, data = STAGES[number], work / "data"
    weights = stage_weights(number, work)
    if number and not weights.is_file():
        shutil.copyfile(result_of(number - 1, work), weights)
    files = {
        "CLAMP3_TRAIN_JSONL": str(data / f"{TRAIN}_{stage.modality}.jsonl"),
        "CLAMP3_EVAL_JSONL": str(data / f"{VALIDATION}_{stage.modality}.jsonl"),
        "M3_WEIGHTS_PATH": str(work / "weights_m3.pth"),
        "CLAMP3_WEIGHTS_PATH": str(weights),
    }
    training = {"CLAMP3_NUM_EPOCH": stage.epochs, "CLAMP3_LEARNING_RATE": stage.rate, "FREEZE_TEXT": stage.freeze_text}
    train(f"train_clamp3_{stage.modality}.py", work, {**CLAMP3_KNOBS, **training, **files})


def stage_weights(number: int, work: Path) -> Path:
    return work / f"weights_stage_{number + 1}_{STAGES[number].modality}.pth"


def result_of(number: int, work: Path) -> Path:
    """The weights that a stage ends with. Its best ones are by evaluation loss, which rises while tunes still come to
    be found better: the model only gets too sure of itself."""
    return last_path(stage_weights(number, work))


# ---------- sound ----------


def prepare_audio(work: Path) -> None:
    """The listening network, and its features of some of the training tunes and of all others."""
    from tiny_mert import extract, train_mert

    data, folder = work / "data", work / "mert"
    paths = {name: sorted(data.joinpath(name, "abc").glob("*.abc")) for name in SETS}
    chosen = np.random.default_rng(SEED).permutation(len(paths[TRAIN]))[:AUDIO_TUNES]
    paths[TRAIN] = [paths[TRAIN][index] for index in sorted(chosen)]
    if not folder.joinpath("model.safetensors").is_file():
        melodies = [read_melody(path.read_text(encoding="utf-8")) for path in paths[TRAIN]]
        figures = train_mert(melodies, folder, MERT_STEPS, SEED)
        work.joinpath("mert.json").write_text(json.dumps(figures, indent=4), encoding="utf-8")
    sources = [(path, path.parents[1] / "npy" / f"{path.stem}.npy") for part in paths.values() for path in part]
    extract([pair for pair in sources if not pair[1].is_file()], folder, SEED, PROCESSES)
    for name in SETS:
        with open(data / f"{name}_audio.jsonl", "w", encoding="utf-8") as file:
            for item in read_items(data / f"{name}_symbolic.jsonl"):
                item["filepaths"] = [f"{name}/npy/{item['id']}.npy"]
                if (data / item["filepaths"][0]).is_file():
                    file.write(json.dumps(item, ensure_ascii=False) + "\n")


# ---------- what is shipped ----------


def export(work: Path, output: Path) -> None:
    """Sizes, weights as fp16, text model, listening network, and the names of the held-out tunes."""
    import torch
    from safetensors.torch import save_file

    from clamp3.models.weights import read_weights
    from clamp3.sizes import ModelSizes

    output.mkdir(parents=True, exist_ok=True)
    for name, path in (("clamp3", result_of(len(STAGES) - 1, work)), ("m3", work / "weights_m3.pth")):
        tensors = {key: tensor.to(torch.float16).contiguous() for key, tensor in read_weights(path).items()}
        save_file(tensors, output / f"{name}.safetensors", metadata={"format": "pt"})
    for folder in ("text", "mert"):
        shutil.copytree(work / folder, output / folder, dirs_exist_ok=True)
    sizes = asdict(ModelSizes(**{name.lower(): size for name, size in SIZES.items()}))
    knobs = {name.upper(): size for name, size in sizes.items() if name != "text_model_name"}
    output.joinpath("config.json").write_text(json.dumps(knobs, indent=4) + "\n", encoding="utf-8")
    names = [item["id"] for item in read_items(work / "data" / f"{TEST}_symbolic.jsonl")]
    output.joinpath("held_out.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def measure(work: Path, output: Path, minutes: dict[str, list[float]]) -> None:
    """figures.json and README.md, the model card: how good the shipped model is on the held-out tunes."""
    from importlib.metadata import version

    from measure_tiny import mean_overlaps, pair_figures, pair_rows, query_figures, query_rows
    from tiny_mert import SECONDS

    embedder = load(output)
    by_name = {tune.name: tune for tune in folk_tunes()}
    tunes = [by_name[name] for name in output.joinpath("held_out.txt").read_text(encoding="utf-8").split()]
    audio = [np.load(work / "data" / TEST / "npy" / f"{tune.name}.npy") for tune in tunes]
    queries = query_figures(embedder, tunes)
    figures = {
        "pairs": pair_figures(embedder, tunes, audio),
        "queries": queries,
        "overlap of the best ten with the English query's": mean_overlaps(queries),
        "training": {name: read_items(path) for name, path in logged(work).items()},
        "listening": json.loads(work.joinpath("mert.json").read_text(encoding="utf-8")),
        "minutes by the clock and of all cores": minutes,
        "seed": SEED,
    }
    output.joinpath("figures.json").write_text(
        json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    card = Path(__file__).with_name("tiny_card.md").read_text(encoding="utf-8")
    overlaps = mean_overlaps(queries)
    card = card.format(
        width=WIDTH,
        megabytes=sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6,
        held_out=len(tunes),
        library=f"version {version('music21')}",
        seed=SEED,
        minutes=sum(clock for clock, _ in minutes.values()),
        core_minutes=sum(cores for _, cores in minutes.values()),
        m3_epochs=M3_KNOBS["M3_NUM_EPOCH"],
        mert_steps=MERT_STEPS,
        seconds=SECONDS,
        audio_tunes=AUDIO_TUNES,
        stages=stage_rows(figures["training"]),
        pairs=pair_rows(figures["pairs"]),
        queries=query_rows(queries),
        precision=np.mean([entry["precision@10"] for entry in queries]),
        chance=np.mean([entry["right tunes"] / len(tunes) for entry in queries]),
        overlap=", ".join(f"{language} {value:.2f}" for language, value in overlaps.items()),
        listening=", ".join(f"{name} {value:.2f}" for name, value in figures["listening"].items()),
    )
    output.joinpath("README.md").write_text(card, encoding="utf-8")
    print(card)


def load(folder: Path):
    """The shipped model in `folder`, wherever that is."""
    from clamp3.features.embedder import Embedder
    from clamp3.sizes import ModelSizes

    knobs = json.loads(folder.joinpath("config.json").read_text(encoding="utf-8"))
    sizes = ModelSizes.from_knobs({**knobs, "TEXT_MODEL_NAME": str(folder.absolute() / "text")})
    weights = folder / "clamp3.safetensors"
    return Embedder.from_pretrained(weights, device="cpu", sizes=sizes, mert=folder / "mert")


def logged(work: Path) -> dict[str, Path]:
    """By stage, where its epochs' figures are."""
    stages = {f"stage {n + 1}: {stage.title}": stage_weights(n, work) for n, stage in enumerate(STAGES)}
    weights = {"M3": work / "weights_m3.pth", **stages}
    return {name: path.with_name(f"{path.stem.replace('weights', 'logs')}.jsonl") for name, path in weights.items()}


def stage_rows(training: dict[str, list[dict]]) -> str:
    """Rows of the model card's table."""
    rows = []
    for name, epochs in training.items():
        last = epochs[-1]
        found = " and ".join(
            f"{last[key]:.2f}" for key in ("text_to_music_MRR", "text_to_music_Hit@10") if key in last
        )
        losses = f"{epochs[0]['eval_loss']:.3f}, {last['eval_loss']:.3f}"
        rows.append(f"| {name} | {len(epochs)} | {sum(e['seconds'] for e in epochs) / 60:.1f} | {losses} | {found} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("train-demo"), help="folder for data and checkpoints")
    parser.add_argument("--output", type=Path, help="folder for what is shipped (default: tiny in that of --work)")
    args = parser.parse_args()
    work = args.work.absolute()
    output = args.output or work / "tiny"
    steps = {
        "tunes and texts": lambda: prepare_data(work),
        "M3": lambda: train_m3(work),
        "stage 1": partial(train_stage, 0, work),
        "sound": lambda: prepare_audio(work),
        **{f"stage {number + 1}": partial(train_stage, number, work) for number in range(1, len(STAGES))},
        "export": lambda: export(work, output),
    }
    for title, step in steps.items():
        print(f"\n{title}\n{'-' * len(title)}", flush=True)
        timed(work, title, step)
    measure(work, output, json.loads(work.joinpath("minutes.json").read_text(encoding="utf-8")))
    return 0


def timed(work: Path, title: str, step: Callable[[], None]) -> None:
    """Do a step, and add the minutes that it took to minutes.json: by the clock, and of all cores' work."""
    clock, cores = time.perf_counter(), sum(os.times()[:4])
    step()
    path = work / "minutes.json"
    minutes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    took = np.array([time.perf_counter() - clock, sum(os.times()[:4]) - cores]) / 60
    minutes[title] = (np.array(minutes.get(title, [0, 0])) + took).round(2).tolist()
    path.write_text(json.dumps(minutes, indent=4), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
