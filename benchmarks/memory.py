"""What memory embedding takes over time, and what keeps it: the same work under several settings of the allocator.

    python benchmarks/memory.py                       two minutes under each setting
    python benchmarks/memory.py --minutes 60 --only "as it is"
    python benchmarks/memory.py --precision bf16      layers by oneDNN, which keeps code for each shape it has met
    python benchmarks/memory.py --quick               a few seconds: does it run?
It prints a Markdown table. A model of medium size with random weights embeds real tunes of all lengths, some so long
that they have many segments, in calls of 1 to 200 tunes. The slope is that of a line through the second half.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "as it is": {},
    "2 arenas": {"MALLOC_ARENA_MAX": "2"},
    "blocks of 1 MB and more returned": {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"},
    "oneDNN keeps nothing": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"},
}
MEDIUM = {"m3_hidden_size": 384, "patch_num_layers": 6, "audio_num_layers": 1, "token_num_layers": 1}
LARGEST_CALL, MOST_JOINED = 200, 40  # tunes in a call; tunes joined to one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2, help="under each setting; default: %(default)s")
    parser.add_argument("--only", choices=[*SETTINGS], help="one of the settings")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quick", action="store_true", help="a small model, a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.minutes * 60, args.precision, args.quick)))
        return 0
    minutes = 0.05 if args.quick else args.minutes
    figures = {}
    for name in [args.only] if args.only else SETTINGS:
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--measure", "--minutes", str(minutes), "--precision", args.precision]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "code"), **SETTINGS[name]}
        done = subprocess.run([*command, *["--quick"] * args.quick], env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        figures[name] = json.loads(done.stdout)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("| setting | calls | tunes/s | at first | at the end | peak | slope | blocks in use | threads |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, found in figures.items():
        print(
            f"| {name} | {found['calls']} | {found['tunes_per_s']:.1f} | {found['first_mb']:.0f} MB "
            f"| {found['last_mb']:.0f} MB | {found['peak_mb']:.0f} MB "
            f"| {found['slope_mb_per_minute']:+.1f} MB a minute | {found['in_use_mb']:.0f} MB | {found['threads']} |"
        )
    return 0


def measure(seconds: float, precision: str, small: bool) -> dict[str, float]:
    """Embed for so many seconds; what memory this process had meanwhile."""
    import torch

    from clamp3.features.embedder import Embedder
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.sizes import ModelSizes
    from workload import SMALL, save_text_model

    sys.path.append(str(ROOT / "examples"))
    import tempfile

    from corpus import folk_tunes

    with tempfile.TemporaryDirectory() as folder:
        save_text_model(Path(folder), ["a reel"], small=True)
        sizes = ModelSizes(**(SMALL if small else MEDIUM), text_model_name=folder)
        torch.manual_seed(0)
        embedder = Embedder(CLaMP3Model(sizes), sizes, "cpu", precision, as_is=True)
    tunes = [tune.abc for tune in folk_tunes()]
    chance = random.Random(0)
    times, memory, calls, embedded = [], [], 0, 0
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds:
        chosen = chance.sample(tunes, min(len(tunes), int(LARGEST_CALL ** chance.random())))
        if chance.random() < 0.2:
            chosen = ["\n".join(chance.sample(tunes, chance.randrange(2, MOST_JOINED)))]
        embedder.embed_symbolic(chosen)
        calls, embedded = calls + 1, embedded + len(chosen)
        times.append(now)
        memory.append(resident())
    half = len(times) // 2
    slope = np.polyfit(times[half:], memory[half:], 1)[0] * 60 if len(times) - half > 1 else 0.0
    return {
        "calls": calls,
        "tunes_per_s": embedded / (time.monotonic() - begin),
        "first_mb": memory[0],
        "last_mb": memory[-1],
        "peak_mb": max(memory),
        "slope_mb_per_minute": slope,
        "in_use_mb": allocated(),
        "threads": len(os.listdir("/proc/self/task")),
        "series": [round(value) for value in memory[:: max(1, len(memory) // 50)]],
    }


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def allocated() -> float:
    """MB that the C library's allocator has given out, in heaps and in mappings, and not got back."""
    import ctypes

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names]

    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo2
    found = library.mallinfo2()
    return (found.uordblks + found.hblkhd) / 1e6


if __name__ == "__main__":
    sys.exit(main())
