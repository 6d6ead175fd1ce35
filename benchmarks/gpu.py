"""How fast CLaMP 3 trains at full size on a GPU: items/s, memory, and the share of the peak.

    python benchmarks/gpu.py                      both stages with each of the knobs below: some minutes on an H100
    python benchmarks/gpu.py --batch-size 128     for a GPU with less memory
    python benchmarks/gpu.py --json figures.json  the figures as JSON too
    python benchmarks/gpu.py --quick              a small model and short items, also on a CPU: does it run?
It prints a Markdown table. Steps are the trainer's own, from a batch in pinned memory to new weights; texts train too.
Items are random: all of them as long as a tower takes (512 patches, 128 frames, 128 tokens), or of any length from an
eighth of that on. How fast they are read is measured apart, for one worker process (TRAIN_WORKERS says how many).
Of the peak: the matrix products of real positions, forward and backward, against one large product.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import XLMRobertaConfig

from clamp3.distributed import default_device
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import EOS_ID
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import prepare_layers
from clamp3.sizes import ModelSizes
from clamp3.training.batches import Batch, Collate
from clamp3.training.data import Example, Examples
from clamp3.training.loop import Trainer, chosen_precision, deterministic
from clamp3.training.objectives import Contrastive
from clamp3.training.settings import Settings

SMALL = {"patch_length": 16, "patch_num_layers": 1, "m3_hidden_size": 64, "clamp3_hidden_size": 64}
SMALL |= {"audio_hidden_size": 64, "audio_num_layers": 1, "max_audio_length": 8, "max_text_length": 8}
PEAK_SIZE, SMALL_PEAK_SIZE = 8192, 256
CHARACTERS = (4, 32)  # of a patch
SHORTEST = 8  # the shortest item is the longest one's length, divided by that


@dataclass(frozen=True)
class Run:
    """One row of the table: the knobs that it sets."""

    modality: str
    full_length: bool = True
    compile_layers: bool = False
    recompute_layers: bool = False
    micro_batch: int = 0
    deterministic: bool = True

    @property
    def title(self) -> str:
        knobs = {
            "COMPILE_LAYERS": self.compile_layers,
            "RECOMPUTE_LAYERS": self.recompute_layers,
            f"CLAMP3_MICRO_BATCH {self.micro_batch}": self.micro_batch,
            "not DETERMINISTIC": not self.deterministic,
        }
        return ", ".join(name for name, on in knobs.items() if on) or "as config.py has it"


def runs(modality: str, batch_size: int) -> list[Run]:
    plain = Run(modality)
    knobs = (
        {"compile_layers": True},
        {"recompute_layers": True},
        {"micro_batch": batch_size // 4},
        {"deterministic": False},
    )
    mixed = Run(modality, full_length=False)
    return [plain, *(replace(plain, **knob) for knob in knobs), mixed, replace(mixed, compile_layers=True)]


class Items(Examples):
    """As many random items as a batch has, one batch an epoch."""

    def __init__(self, run: Run, sizes: ModelSizes, vocabulary: int, count: int):
        super().__init__(0, training=True)
        rng = np.random.default_rng(0)
        self.examples = [
            Example(
                str(number), {"text": self.text(run, sizes, rng, vocabulary), "music": self.music(run, sizes, rng)}
            )
            for number in range(count)
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        return self.examples[index]

    def positions(self, name: str) -> list[int]:
        return [len(example.sequences[name]) for example in self.examples]

    @staticmethod
    def length(run: Run, longest: int, rng: np.random.Generator) -> int:
        return longest if run.full_length else int(rng.integers(longest // SHORTEST, longest, endpoint=True))

    def text(self, run: Run, sizes: ModelSizes, rng: np.random.Generator, vocabulary: int) -> np.ndarray:
        return rng.integers(4, vocabulary, self.length(run, sizes.max_text_length, rng))

    def music(self, run: Run, sizes: ModelSizes, rng: np.random.Generator) -> np.ndarray:
        if run.modality == "audio":
            frames = self.length(run, sizes.max_audio_length, rng)
            return rng.standard_normal((frames, sizes.audio_hidden_size), dtype=np.float32)
        shape = self.length(run, sizes.patch_length, rng), sizes.patch_size
        characters = rng.integers(EOS_ID + 1, 128, shape, np.uint8)
        return np.where(np.arange(shape[1]) < rng.integers(*CHARACTERS, (shape[0], 1)), characters, 0).astype(np.uint8)


class Bench:
    """Full-size training on a device."""

    def __init__(self, device: torch.device, batch_size: int, steps: int, small: bool):
        self.device, self.batch_size, self.steps = device, batch_size, steps
        with tempfile.TemporaryDirectory() as folder, device:  # random weights are made faster there
            self.sizes = ModelSizes(**SMALL | {"text_model_name": small_text_model(folder)} if small else {})
            self.model = CLaMP3Model(self.sizes)
        self.peak = matmul_peak(device, SMALL_PEAK_SIZE if small else PEAK_SIZE)

    def measure(self, run: Run) -> dict:
        """Items/s, memory and share of the peak, of steps after some that do not count."""
        torch._dynamo.reset()
        self.model.train_on(run.modality)
        prepare_layers(self.model.towers.values(), run.compile_layers, run.recompute_layers)
        items = Items(run, self.sizes, self.model.text_model.config.vocab_size, self.batch_size)
        settings = Settings(Path("unused.pth"), Path("unused.txt"), 1, self.batch_size, 1e-5)
        state = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=self.device)
        objective = Contrastive(self.model, run.modality, run.micro_batch)
        trainer = Trainer(objective, items, items, {}, settings, state)
        trainer.model.train()
        batch = Collate({})(items.examples)
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        try:
            with deterministic(run.deterministic):
                first = self.seconds(trainer, batch, 1)
                self.seconds(trainer, batch, 2)
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds = self.seconds(trainer, batch, self.steps) / self.steps
        except torch.OutOfMemoryError:
            return {"out_of_memory": True}
        finally:
            self.model.zero_grad()
            if self.device.type == "cuda":
                del trainer, objective
                torch.cuda.empty_cache()
        return {
            "items_per_s": self.batch_size / seconds,
            "step_ms": 1000 * seconds,
            "first_step_s": first,
            "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0,
            "peak_share": self.flops(run, items) / seconds / self.peak,
        }

    def seconds(self, trainer: Trainer, batch: Batch, steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            trainer.step(batch)
        trainer.log_losses()  # waits for the device
        return time.perf_counter() - begin

    def flops(self, run: Run, items: Items) -> float:
        """Of a step's matrix products: forward, and twice that backward. What is computed again does not count."""
        total = 0
        for name, tower in (("text", "text"), ("music", run.modality)):
            config = self.model.towers[tower].config
            width, inner = config.hidden_size, config.intermediate_size
            linear = 4 * width * width + 2 * width * inner  # query, key, value, output; feed-forward
            products = sum(length * (linear + 2 * length * width) for length in items.positions(name))
            total += 3 * 2 * config.num_hidden_layers * products
        return total


def small_text_model(folder: str) -> str:
    """`folder`, with the configuration of a small text tower."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 256}
    XLMRobertaConfig(vocab_size=100, max_position_embeddings=16, type_vocab_size=1, **sizes).save_pretrained(folder)
    return folder


def matmul_peak(device: torch.device, size: int) -> float:
    """FLOP/s of a large product, in the precision that training takes here."""
    a, b = (torch.randn(size, size, device=device, dtype=chosen_precision("auto", device)) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait_for(device)
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        wait_for(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - begin))
    return best


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reading(sizes: ModelSizes) -> float:
    """Pieces of as many bars as a tower takes that one worker encodes in a second."""
    rng = np.random.default_rng(0)
    bars = ["".join(rng.choice(list("CDEFGABcdefgab"), 8)) for _ in range(sizes.patch_length)]
    piece, encoder = "L:1/8\nM:4/4\nK:C\n" + "|".join(bars) + "|]\n", InputEncoder(sizes)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < 1:
        encoder.encode_symbolic(piece)
        count += 1
    return count / (time.perf_counter() - begin)


def markdown(figures: dict) -> Iterator[str]:
    """The table, as lines."""
    size = "a SMALL model, whose figures say nothing; " if figures["quick"] else ""
    yield (
        f"{figures['date']}, {size}{figures['device']}, torch {figures['torch']}, {figures['precision']}, batch "
        f"{figures['batch_size']}, {figures['steps']} steps each; peak {figures['peak'] / 1e12:.0f} TFLOP/s. "
        f"One worker encodes {figures['reading']:.0f} pieces of full length a second."
    )
    yield ""
    yield "| stage | lengths | knobs | items/s | a step | memory | of the peak | first step |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in figures["rows"]:
        lengths = "full" if row["full_length"] else "mixed"
        begin = f"| {row['modality']} | {lengths} | {row['title']} |"
        if row.get("out_of_memory"):
            yield f"{begin} out of memory | | | | |"
        else:
            yield (
                f"{begin} {row['items_per_s']:.0f} | {row['step_ms']:.0f} ms | {row['peak_GB']:.1f} GB | "
                f"{row['peak_share']:.0%} | {row['first_step_s']:.1f} s |"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, help="default: 256")
    parser.add_argument("--steps", type=int, help="that count, of each run; default: 10")
    parser.add_argument("--quick", action="store_true", help="a small model, short items, one step, nothing compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the training commands do
    device = default_device()
    if device.type != "cuda" and not args.quick:
        parser.error("there is no GPU here; --quick shows whether it runs")
    batch_size, steps = args.batch_size or (8 if args.quick else 256), args.steps or (1 if args.quick else 10)
    bench = Bench(device, batch_size, steps, args.quick)
    figures = {
        "date": time.strftime("%Y-%m-%d"),
        "quick": args.quick,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "precision": str(chosen_precision("auto", device)).removeprefix("torch."),
        "batch_size": batch_size,
        "steps": steps,
        "peak": bench.peak,
        "reading": reading(bench.sizes),
        "rows": [],
    }
    for run in [*runs("symbolic", batch_size), *runs("audio", batch_size)]:
        if args.quick and run.compile_layers:
            continue
        print(f"{run.modality}: {run.title}", file=sys.stderr, flush=True)
        row = {"modality": run.modality, "full_length": run.full_length, "title": run.title}
        figures["rows"].append(row | bench.measure(run))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("\n".join(markdown(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
