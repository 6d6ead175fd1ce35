"""An embedder that embeds for minutes: how its memory and its handles grow.

python tests/reliability/long_run.py MINUTES
"""

import json
import os
import resource
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("code", "tests", "examples")]

EVERY = 2.0  # seconds between measurements
MOST = {"MB more in the second half": 100, "handles more in the second half": 4}  # by the slope; more is a loss


def write_inputs(folder: Path) -> list[Path]:
    """Music, texts, MIDI and sound of many lengths."""
    import soundfile

    from clamp3.formats.midi import mtf_to_midi
    from corpus import describe, folk_tunes
    from notes import read_melody, to_mtf, to_sound

    rng = np.random.default_rng(0)
    for number, tune in enumerate(islice(folk_tunes(), 0, 9000, 45)):
        folder.joinpath(f"{number}.abc").write_text(tune.abc * (1 if number % 5 else 4))
        folder.joinpath(f"{number}.txt").write_text(describe(tune))
        if number % 3 == 0:
            folder.joinpath(f"{number}.mid").write_bytes(mtf_to_midi(to_mtf(read_melody(tune.abc))))
            np.save(folder / f"{number}.npy", rng.standard_normal((1, rng.integers(2, 300), 128), np.float32))
        if number % 9 == 0:
            samples = to_sound(read_melody(tune.abc), float(rng.uniform(1, 40)), 24_000, "fiddle")
            soundfile.write(folder / f"{number}.wav", samples, 24_000)
    return sorted(folder.iterdir())


def slope(times: list[float], values: list[float]) -> float:
    """By least squares, an hour."""
    return float(np.polyfit(times, values, 1)[0] * 3600) if len(times) > 2 else 0.0


def measured() -> tuple[float, int, int]:
    """Resident MB, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count()


def run(minutes: float) -> dict:
    """Embed files in batches of random ones for so long; returns the figures."""
    from clamp3.features.embedder import Embedder

    chance, found, files = Random(0), [], 0
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(Path(folder))
        embedder = Embedder.from_pretrained("tiny", device="cpu")
        begin = last = time.monotonic()
        while (now := time.monotonic()) - begin < minutes * 60:
            chosen = chance.sample(paths, chance.randrange(1, 40))
            assert np.isfinite(embedder.embed_files(chosen)).all()
            embedder.embed_text(["a lively reel " * chance.randrange(1, 200)])
            files += len(chosen) + 1
            if now - last >= EVERY:
                found.append((now - begin, *measured()))
                last = now
    times, memory, handles, threads = (list(column) for column in zip(*found, strict=True))
    half = len(found) // 2
    slopes = [slope(times[half:], [float(value) for value in values[half:]]) for values in (memory, handles)]
    more = [value * (times[-1] - times[half]) / 3600 for value in slopes]
    return {
        "minutes": round(minutes, 2),
        "files": files,
        "MB at first": round(memory[0]),
        "MB at half": round(memory[half]),
        "MB at the end": round(memory[-1]),
        "most MB": round(max(memory)),
        "MB more in the second half": round(more[0]),
        "MB an hour by it": round(slopes[0], 1),
        "handles at first": handles[0],
        "handles at the end": handles[-1],
        "handles more in the second half": round(more[1]),
        "threads at the end": threads[-1],
    }


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]))))
