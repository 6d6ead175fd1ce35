"""Features as a .npy for each input against rows of Parquet files (`--to parquet`): 20,000 of them, written and read.

    python benchmarks/feature_files.py [FOLDER]
It needs pyarrow. Features are random, 768 numbers each, in 20 folders; FOLDER, on the disk that is meant, is for them
(default: that of temporary files). Both are written and read in turn, in five rounds; figures are of the median round.
Reading is that of clamp3_search.py, with the files in the cache of the system, as they were just written.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clamp3.features.parts import rows_done, save_in_parts
from clamp3.io.files import save_array
from clamp3.io.folders import Job, Outcome
from clamp3.search.collection import load_collection

FILES, ROUNDS = 20_000, 5


def write_npy(jobs: list[Job], features: np.ndarray, _out: Path) -> None:
    for job, feature in zip(jobs, features, strict=True):
        save_array(job.target.with_suffix(".npy"), feature)


def write_parquet(jobs: list[Job], features: np.ndarray, out: Path) -> None:
    made = (Outcome(job, content=feature) for job, feature in zip(jobs, features, strict=True))
    assert sum(outcome.failure is None for outcome in save_in_parts(made, out, "f")) == FILES


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    features = np.random.default_rng(0).normal(size=(FILES, 1, 768)).astype(np.float32)
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=next(iter(sys.argv[1:]), None)) as folder:
        for _ in range(ROUNDS):
            for kind, write in (("npy", write_npy), ("parquet", write_parquet)):
                out = Path(folder, kind)
                names = [Path(f"{number % 20:02}", f"{number:07}.abc") for number in range(FILES)]
                jobs = [Job(Path("/music") / name, (out / name,), 0) for name in names]
                took = seconds.setdefault(kind, {"written": [], "read": [], "looked": [], "removed": []})
                took["written"].append(timed(lambda: write(jobs, features, out)))  # noqa: B023
                look = rows_done if kind == "parquet" else lambda out: set(out.rglob("*"))
                took["looked"].append(timed(lambda: look(out)))  # noqa: B023
                took["read"].append(timed(lambda: load_collection(out, lambda: None)))  # noqa: B023
                files = [path for path in out.rglob("*") if path.is_file()]
                size = sum(path.stat().st_blocks for path in files) * 512 / FILES
                took["removed"].append(timed(lambda: shutil.rmtree(out)))  # noqa: B023
                if len(took["written"]) == ROUNDS:
                    print(f"{kind}: {len(files)} files, {size:.0f} bytes of disk a feature")
    for what in seconds["npy"]:
        npy, parquet = (statistics.median(seconds[kind][what]) for kind in ("npy", "parquet"))
        ratio = statistics.median(a / b for a, b in zip(seconds["npy"][what], seconds["parquet"][what], strict=True))
        print(f"{what}: {FILES / npy:,.0f} .npy a second, {FILES / parquet:,.0f} rows a second, {ratio:.1f} times")


if __name__ == "__main__":
    main()
