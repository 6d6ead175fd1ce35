"""What memory embedding takes over time, and what keeps it: the same work under several settings.

    python benchmarks/memory.py                       two minutes under each setting, on an idle machine
    python benchmarks/memory.py --minutes 60 --only "as it is"
    python benchmarks/memory.py --quick               a few seconds: does it run?
It prints a Markdown table. A model of medium size with random weights embeds real tunes of all lengths, some so long
that they have many segments, in calls of 1 to 200 tunes, and the features are kept. The slope is that of a line
through the second half. Linux with glibc only.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.features import memory  # noqa: E402

KEPT = float("inf")  # seconds until freed memory is returned
SETTINGS: dict[str, tuple[float | None, dict[str, str]]] = {
    "as it is": (None, {}),
    "freed memory is kept": (KEPT, {}),
    "… with 2 arenas": (KEPT, {"MALLOC_ARENA_MAX": "2"}),
    "… but for blocks over 1 MB": (KEPT, {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}),
}
MEDIUM = {"m3_hidden_size": 384, "patch_num_layers": 6, "audio_num_layers": 1, "token_num_layers": 1}
LARGEST_CALL, MOST_JOINED = 200, 40  # tunes in a call; tunes joined to one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2, help="under each setting; default: %(default)s")
    parser.add_argument("--only", choices=[*SETTINGS], help="one of the settings")
    parser.add_argument("--quick", action="store_true", help="a small model, a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)  # in the process that is measured
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.minutes * 60, args.measure, args.quick)))
        return 0
    minutes = 0.05 if args.quick else args.minutes
    figures = {}
    for name in [args.only] if args.only else SETTINGS:
        print(f"{name} …", file=sys.stderr, flush=True)
        interval, variables = SETTINGS[name]
        command = [sys.executable, __file__, "--measure", str(interval or memory.INTERVAL), "--minutes", str(minutes)]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "code"), **variables}
        done = subprocess.run([*command, *["--quick"] * args.quick], env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        figures[name] = json.loads(done.stdout)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("| setting | tunes | tunes/s | at first | at the end | of that in use | slope in the second half |")
    print("|---|---|---|---|---|---|---|")
    for name, found in figures.items():
        print(
            f"| {name} | {found['tunes']} | {found['tunes_per_s']:.1f} | {found['first_mb']:.0f} MB "
            f"| {found['last_mb']:.0f} MB | {found['in_use_mb']:.0f} MB "
            f"| {found['slope_mb_per_minute']:+.1f} MB a minute |"
        )
    return 0


def measure(seconds: float, interval: float, small: bool) -> dict[str, object]:
    """Embed for so many seconds, and return freed memory at this interval; what memory this process had meanwhile."""
    import torch

    from clamp3.features.embedder import Embedder
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.sizes import ModelSizes
    from corpus import folk_tunes
    from workload import SMALL, save_text_model

    memory.INTERVAL = interval
    with tempfile.TemporaryDirectory() as folder:
        save_text_model(Path(folder), ["a reel"], small=True)
        sizes = ModelSizes(**(SMALL if small else MEDIUM), text_model_name=folder)
        torch.manual_seed(0)
        embedder = Embedder(CLaMP3Model(sizes), sizes, "cpu", as_is=True)
    tunes = [tune.abc for tune in folk_tunes()]
    chance = random.Random(0)
    series: list[tuple[float, float]] = []  # seconds, MB
    features: list[np.ndarray] = []
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds:
        chosen = chance.sample(tunes, min(len(tunes), int(LARGEST_CALL ** chance.random())))
        if chance.random() < 0.2:
            chosen = ["\n".join(chance.sample(tunes, chance.randrange(2, MOST_JOINED)))]
        features += list(embedder.embed_symbolic(chosen))
        series.append((now, resident()))
    elapsed, last = time.monotonic() - begin, resident()
    ctypes.CDLL(None).malloc_trim(0)
    later = series[len(series) // 2 :]
    return {
        "tunes": len(features),
        "tunes_per_s": len(features) / elapsed,
        "first_mb": series[0][1],
        "last_mb": last,
        "in_use_mb": resident(),
        "slope_mb_per_minute": np.polyfit(*zip(*later, strict=True), 1)[0] * 60 if len(later) > 1 else 0.0,
        "series": series[:: max(1, len(series) // 50)],
    }


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
