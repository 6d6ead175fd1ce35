"""Search in indexes of 10,000, 100,000 and 1,000,000 features of 768 numbers: how fast, how right, how large.

    python benchmarks/search.py
    python benchmarks/search.py --sizes 10000 100000 --json figures.json
The features are those that the small model gives to real tunes, turned into 768 dimensions; there are fewer tunes
than features, so most lie between a tune and one of its neighbours, and each has noise of a tenth of its length.
Queries are further tunes, and descriptions of tunes (which lie apart from all music). They are asked one by one, in a
new process, after one that is not counted.
Compared is loading one .npy for each reference and each query, as the original does: measured for as many files as
--files says. A million takes a quarter of an hour, 4 GB of memory and 8 GB of disk.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.search.index import Entry, Index  # noqa: E402
from clamp3.search.ranking import normalized, spans, top_k_of_unit  # noqa: E402
from corpus import folk_tunes  # noqa: E402
from descriptions import full_description  # noqa: E402

HIDDEN = 768
NOISE = 0.1
NEIGHBOURS = 50
BLOCK = 50_000
QUERIES = 200  # of each kind
TOP = 10
TARGETS = {"exact": 80, "approximate": 5}  # ms for the median query, among a million; recall: 0.98; opening: 1 s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=10_000, help="of the comparison; default: %(default)s")
    parser.add_argument("--tunes", type=int, default=4000, help="real ones; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the indexes go while it runs")
    parser.add_argument("--json", type=Path, help="write all figures")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return

    music, texts = real_features(args.tunes)
    figures = {"cores": len(os.sched_getaffinity(0)), "sizes": {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        queries = np.concatenate([made(music[-QUERIES:], QUERIES, 1), turned(texts[:QUERIES], 2)])
        np.save(Path(folder) / "queries.npy", queries)
        figures["one_npy_each_ms"] = one_file_each(music, queries, args.files, Path(folder) / "files")
        figures["files"] = args.files
        for size in args.sizes:
            index_folder = Path(folder) / "index"
            built = build(index_folder, music[: -QUERIES or None], size)
            command = [sys.executable, __file__, "--measure", str(index_folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures["sizes"][size] = {**built, **json.loads(done.stdout.splitlines()[-1])}
            for path in index_folder.iterdir():
                path.unlink()
            index_folder.rmdir()
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


# ---------- features ----------


def real_features(tunes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (tunes, hidden), each of length one, of tunes from all collections and of their descriptions."""
    from clamp3.features.embedder import Embedder

    step = max(1, 12_738 // tunes)
    chosen = list(islice(folk_tunes(), 0, step * tunes, step))
    embedder = Embedder.from_pretrained("tiny", device="cpu")
    parts = [chosen[part] for part in spans(len(chosen), 500)]
    music = [embedder.embed_symbolic([tune.abc for tune in part]) for part in tqdm(parts, desc="tunes", delay=1)]
    texts = [embedder.embed_text([full_description(tune) for tune in part]) for part in parts]
    return normalized(np.concatenate(music)), normalized(np.concatenate(texts))


def turned(features: np.ndarray, seed: int) -> np.ndarray:
    """`features` (n, hidden) in HIDDEN dimensions, always turned the same way, with noise, of length one."""
    hidden = features.shape[1]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((HIDDEN, hidden)))[0].astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal((len(features), HIDDEN), np.float32)
    return normalized(normalized(features) @ turn.T + NOISE * normalized(noise))


def made(music: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` features: those of the tunes in `music`, then ones between a tune and a neighbour."""
    rng = np.random.default_rng(seed)
    owners = np.arange(count) % len(music)
    neighbours = top_k_of_unit(music, music, min(NEIGHBOURS, len(music)))[0]
    others = neighbours[owners, rng.integers(neighbours.shape[1], size=count)]
    way = np.where(np.arange(count) < len(music), 0, rng.uniform(0, 0.5, count)).astype(np.float32)[:, None]
    return turned(music[owners] * (1 - way) + music[others] * way, seed)


# ---------- what is measured ----------


def build(folder: Path, music: np.ndarray, size: int) -> dict:
    """An index of `size` features in `folder`, prepared for approximate search, and what that took."""
    index, seconds = Index.create(folder), 0.0
    with index.writing():
        for part in tqdm(list(spans(size, BLOCK)), desc=f"{size} features", delay=1):
            features = made(music, part.stop - part.start, part.start + 3)
            entries = [
                Entry(Path(f"/music/{number}.abc"), "symbolic", f"{number:064}", 1, 1) for number in range(size)[part]
            ]
            start = time.perf_counter()
            index.add(entries, features)
            seconds += time.perf_counter() - start
        with index.database:
            index.set_meta(weights="none", identity="benchmark")
        start = time.perf_counter()
        index.compact(approximate=True)
        prepared = time.perf_counter() - start
    index.close()
    disk = sum(path.stat().st_size for path in folder.iterdir())
    return {"adding_s": seconds, "preparing_s": prepared, "disk_MB": disk / 1e6}


def measure(folder: Path) -> dict:
    """How an index is opened and searched; in a process of its own."""
    queries = np.load(folder.parent / "queries.npy")
    before = memory()
    start = time.perf_counter()
    index = Index(folder)
    opened = time.perf_counter() - start
    found, figures = {}, {"open_s": opened}
    for how, approximate in (("approximate", True), ("exact", False)):
        start = time.perf_counter()
        index.search(queries[0], TOP, approximate=approximate)
        figures[f"{how}_first_ms"] = 1e3 * (time.perf_counter() - start)
        times, found[how] = [], []
        for query in queries:
            start = time.perf_counter()
            result = index.search(query, TOP, approximate=approximate)
            times.append(1e3 * (time.perf_counter() - start))
            found[how].append({entry.row for _, entry in result})
        figures |= {f"{how}_p50_ms": np.median(times), f"{how}_p99_ms": np.percentile(times, 99)}
        figures[f"{how}_own_MB"] = (memory() - before) / 1e6
    for query, exact in zip(queries[::20], found["exact"][::20], strict=True):
        if set(np.argsort(-(index.features @ query), kind="stable")[:TOP].tolist()) != exact:
            raise RuntimeError("the exact search does not find what NumPy finds")
    shared = [len(one & other) / TOP for one, other in zip(found["approximate"], found["exact"], strict=True)]
    recall = {"recall_music": np.mean(shared[:QUERIES]), "recall_text": np.mean(shared[QUERIES:])}
    return {name: float(value) for name, value in {**figures, **recall}.items()}


def memory() -> int:
    """Bytes that this process has for itself: maps of files, which the system may drop, do not count."""
    return int(re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def one_file_each(music: np.ndarray, queries: np.ndarray, count: int, folder: Path) -> float:
    """Milliseconds for a query among `count` references that are loaded for it, one .npy each."""
    folder.mkdir()
    for number, feature in enumerate(made(music, count, 3)):
        np.save(folder / f"{number}.npy", feature[None])
    times = []
    for query in queries[:5]:
        start = time.perf_counter()
        references = np.concatenate([np.load(folder / name) for name in os.listdir(folder)])
        cosines = normalized(references) @ query
        np.argsort(-cosines)[:TOP]
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def report(figures: dict) -> None:
    """Print a Markdown table."""
    sizes = figures["sizes"]
    rows = {
        "adding the features": "{adding_s:.1f} s",
        "preparing approximate search": "{preparing_s:.1f} s",
        "on disk": "{disk_MB:,.0f} MB",
        "opening": "{open_s:.4f} s",
        "approximate: median, 99th percentile": "{approximate_p50_ms:.1f} ms, {approximate_p99_ms:.1f} ms",
        "… recall@10, queries of music and text": "{recall_music:.3f}, {recall_text:.3f}",
        "… memory beyond maps of files": "{approximate_own_MB:.0f} MB",
        "exact: median, 99th percentile": "{exact_p50_ms:.1f} ms, {exact_p99_ms:.1f} ms",
        "first query, approximate and exact": "{approximate_first_ms:.0f} ms, {exact_first_ms:.0f} ms",
    }
    print(f"| {figures['cores']} cores | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for title, form in rows.items():
        print(f"| {title} | " + " | ".join(form.format(**found) for found in sizes.values()) + " |")
    loaded = figures["one_npy_each_ms"]
    print(f"\nLoading {figures['files']:,} .npy files for each query: {loaded:,.0f} ms a query")
    same = sizes.get(figures["files"])
    if same:
        print(f"… over exact search in the index: {loaded / same['exact_p50_ms']:.0f}x")


if __name__ == "__main__":
    main()
