"""The measurements of benchmarks/extraction.py: contenders take turns, and the figures are medians over the rounds."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoTokenizer

from clamp3.distributed import PRECISIONS, start
from clamp3.features.embedder import Embedder
from clamp3.features.extraction import extract
from clamp3.formats.registry import extensions, model_inputs
from clamp3.inputs.patchilizer import VOCAB_SIZE
from clamp3.inputs.segments import cut
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.linear import Linear
from clamp3.models.weights import build_model
from plain_loop import BatchedLoop, PlainLoop
from workload import ROOT, Kind, Workload

LOOPS = ("loop", "batched")
REPEATS = 3  # of the quick contenders, in each round
PEAK_SHAPES = ((4096, 4096, 4096), (2048, 768, 3072))
IMPORTS = {
    "import torch, transformers": "import torch, transformers",
    "import torch, BertModel": "import torch; from transformers import BertModel",
}
FEW = 4  # tunes: a process that does hardly more than start


class Contenders:
    """Ours in each precision and the plain loop, each with a model of its own."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self.state = start("cpu")
        sizes, weights = workload.sizes, workload.weights
        self.precisions = ["fp32"]
        if workload.small or matmul_peak(torch.bfloat16, False) > matmul_peak(torch.float32, False):
            self.precisions.append("bf16")  # for which other processors have no arithmetic
        self.embedders = {precision: embedder_of(workload, precision) for precision in self.precisions}
        tokenizer = AutoTokenizer.from_pretrained(sizes.text_model_name)
        self.loop = PlainLoop(build_model(CLaMP3Model, sizes, weights), sizes, tokenizer)
        self.batched = BatchedLoop(build_model(CLaMP3Model, sizes, weights), sizes, tokenizer)

    def run(self, contender: str, kind: Kind) -> tuple[float, np.ndarray]:
        """Seconds for all files of a kind, files to files, and the features (files, hidden) in the files' order."""
        inputs = self.workload.inputs(kind.name)
        with tempfile.TemporaryDirectory() as folder:
            output, quiet = Path(folder), io.StringIO()
            begin = time.perf_counter()
            if contender in LOOPS:
                getattr(self, contender).extract(kind.modality, inputs, output)
            else:
                with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                    embedder = self.embedders[contender]
                    taken = extensions(model_inputs())
                    report = extract(lambda: embedder, inputs, output, taken, pooled=True, state=self.state)
                if report.failures:
                    raise RuntimeError(f"extraction failed: {report.failures[0]}")
            seconds = time.perf_counter() - begin
            return seconds, np.concatenate([np.load(path) for path in sorted(output.glob("*.npy"))])

    def lengths(self, kind: Kind) -> list[int]:
        """Of the files of a kind, in patches, tokens or frames."""
        read = getattr(self.loop, f"read_{kind.modality}")
        return [len(read(path)) for path in sorted(self.workload.inputs(kind.name).iterdir())]

    def flops(self, kind: Kind, lengths: list[int], padded: bool) -> float:
        """Of the tower's matrix products: on real positions, or on those that the loop pads to."""
        max_length = self.embedders["fp32"].max_lengths[kind.modality]
        tower = getattr(self.loop.model, f"{kind.modality}_model")
        config = getattr(tower, "base", tower).config
        width, inner = config.hidden_size, config.intermediate_size
        total = 0
        for segment in (segment for length in lengths for segment in cut(0, length, max_length)):
            positions = max_length if padded else segment.length
            linear = 4 * width * width + 2 * width * inner  # query, key, value, output; feed-forward
            total += 2 * config.num_hidden_layers * positions * (linear + 2 * positions * width)
            if padded and kind.modality == "symbolic":  # the one-hot product, which ours replaces by a sum of rows
                total += 2 * positions * self.workload.sizes.patch_size * VOCAB_SIZE * width
        return total


def embedder_of(workload: Workload, precision: str = "fp32") -> Embedder:
    """Ours, on the CPU, with a model of its own."""
    model = build_model(CLaMP3Model, workload.sizes, workload.weights)
    return Embedder(model, workload.sizes, "cpu", precision)


def matmul_peak(dtype: torch.dtype, small: bool) -> float:
    """FLOP/s of the fastest of some large matrix products, by PyTorch's own linear layer and by ours."""
    best = 0.0
    for rows, inner, columns in ((256, 256, 256),) if small else PEAK_SHAPES:
        inputs = torch.randn(rows, inner).to(dtype)
        layers = [layer(inner, columns, dtype=dtype).requires_grad_(False) for layer in (torch.nn.Linear, Linear)]
        for layer in layers * 5:
            begin = time.perf_counter()
            with torch.inference_mode():
                layer(inputs)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - begin))
    return best


def measure_kinds(workload: Workload, kinds: list[Kind], rounds: int) -> dict:
    """Speed, share of the peak and agreement, for each of `kinds`; and the peaks."""
    contenders = Contenders(workload)
    compared = contenders.precisions
    results, peaks = {}, {precision: [] for precision in compared}
    for kind in kinds:
        for precision in compared:
            contenders.run(precision, kind)  # the first run reads the weights and converts them
        seconds: dict[str, list[float]] = {contender: [] for contender in (*LOOPS, *compared)}
        shares: dict[str, list[float]] = {contender: [] for contender in seconds}
        lengths, features = contenders.lengths(kind), {}
        for number in range(rounds):
            note(f"{kind.name}: round {number + 1} of {rounds}")
            peak = {precision: matmul_peak(PRECISIONS[precision], workload.small) for precision in compared}
            for contender in seconds:
                taken = []
                for _ in range(1 if contender == "loop" else REPEATS):
                    spent, features[contender] = contenders.run(contender, kind)
                    taken.append(spent)
                seconds[contender].append(median(taken))
                flops = contenders.flops(kind, lengths, padded=contender == "loop")
                shares[contender].append(flops / seconds[contender][-1] / peak.get(contender, peak["fp32"]))
            for precision in compared:
                peaks[precision].append(peak[precision])
        results[kind.name] = summary(kind, workload, lengths, seconds, shares, features)
    peak_gflops = {precision: median(values) / 1e9 for precision, values in peaks.items()}
    return {"kinds": results, "peak_gflops": peak_gflops}


def summary(kind: Kind, workload: Workload, lengths: list[int], seconds: dict, shares: dict, features: dict) -> dict:
    """The figures of one kind; a ratio is the median of the rounds' ratios."""
    max_length = {"symbolic": workload.sizes.patch_length}.get(kind.modality)
    max_length = max_length or getattr(workload.sizes, f"max_{kind.modality}_length")
    padded = sum(len(cut(0, length, max_length)) for length in lengths) * max_length

    def ratio(slow: str, fast: str) -> float:
        return median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    figures = {
        "files": len(lengths),
        "unit": kind.unit,
        "mean_length": sum(lengths) / len(lengths),
        "padding_ratio": padded / sum(lengths),
        "files_per_s": {contender: len(lengths) / median(values) for contender, values in seconds.items()},
        "peak_share": {contender: median(values) for contender, values in shares.items()},
        "fp32_over_loop": ratio("loop", "fp32"),
        "fp32_over_batched": ratio("batched", "fp32"),
        "cosine_fp32_to_loop": min_cosine(features["fp32"], features["loop"]),
        "cosine_fp32_to_batched": min_cosine(features["fp32"], features["batched"]),
    }
    if "bf16" in features:
        rounded, exact = features["bf16"], features["fp32"]
        figures["bf16_over_fp32"] = ratio("fp32", "bf16")
        figures["cosine_bf16_to_fp32"] = min_cosine(rounded, exact)
        figures["centred_cosine_bf16_to_fp32"] = min_cosine(rounded - rounded.mean(axis=0), exact - exact.mean(axis=0))
    return figures


def min_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The least of the rows' cosines."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float((np.sum(found * expected, axis=1, dtype=np.float64) / norms).min())


def measure_processes(workload: Workload, kinds: list[Kind], rounds: int) -> dict:
    """Wall time, peak memory and time to the first feature of whole processes, once the files are in memory."""
    few = workload.folder / "inputs" / "few"
    few.mkdir(exist_ok=True)
    for path in sorted(workload.inputs("abc").iterdir())[:: workload.items // FEW][:FEW]:
        shutil.copy(path, few)
    runs: dict[str, Callable[[], dict]] = {
        name: lambda code=code: run_command(["-c", code], workload, "abc") for name, code in IMPORTS.items()
    }
    runs["few"] = lambda: run_extraction(few, workload, "abc")
    for kind in kinds:
        runs[kind.name] = lambda kind=kind: run_extraction(workload.inputs(kind.name), workload, kind.name)
    measured: dict[str, list[dict]] = {name: [] for name in runs}
    for number in range(rounds + (not workload.small)):  # the first reads the files from the disk, and does not count
        note(f"processes: round {number} of {rounds}")
        for name, run in runs.items():
            measured[name].append(run())
    return {name: process_summary(found[-rounds:]) for name, found in measured.items()}


def process_summary(found: list[dict]) -> dict:
    firsts = [run["first_output_seconds"] for run in found]
    return {
        "seconds": median(run["seconds"] for run in found),
        "peak_bytes": max(run["peak_bytes"] for run in found),
        "first_output_seconds": None if None in firsts else median(firsts),
    }


def run_extraction(inputs: Path, workload: Workload, kind: str) -> dict:
    """The documented command on a folder."""
    with tempfile.TemporaryDirectory() as output:
        command = [str(ROOT / "code" / "extract_clamp3.py"), str(inputs), output, "--get_global", "--device", "cpu"]
        return run_command(command, workload, kind, output)


def run_command(arguments: list[str], workload: Workload, kind: str, output: str = os.devnull) -> dict:
    """What benchmarks/command.py says of `python ARGUMENTS`."""
    runner = [sys.executable, str(Path(__file__).with_name("command.py")), output, sys.executable]
    done = subprocess.run(
        [*runner, *arguments], env=workload.environment(kind), cwd=workload.folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)}\nended with exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


class Interference:
    """How much of the machine other work took, where /proc tells (else nan): figures are worth little above 5 %."""

    def __init__(self):
        self.begin = self._now()

    def share(self) -> float:
        """Since it was made, of all cores."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self.begin, strict=True))
        return max(0.0, busy - own) / wall / os.cpu_count()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = os.times()
        try:
            fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        except OSError:
            fields = ["nan"] * 8
        user, nice, system, _idle, _wait, interrupt, soft_interrupt, steal = map(float, fields)
        busy = (user + nice + system + interrupt + soft_interrupt + steal) / os.sysconf("SC_CLK_TCK")
        own = times.user + times.system + times.children_user + times.children_system
        return times.elapsed, busy, own


def machine() -> dict[str, str | int]:
    """Where the figures come from."""
    name = "unknown CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
