"""Processes that write to an index and read it at once, or are killed at it: each judged by NumPy.

python tests/index_processes.py crowd FOLDER SECONDS [WRITERS READERS]
python tests/index_processes.py kills FOLDER KILLS [SEED]
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
from answers import save_features
from clamp3.search import indexing
from clamp3.search.index import Entry, Index, is_index
from clamp3.search.indexing import update_index
from clamp3.search.repair import check
from clamp3.search.store import Store

HIDDEN = 8


@cache
def feature_of(seed: int) -> np.ndarray:
    """A feature (hidden,) of length one that belongs to `seed` alone."""
    feature = np.random.default_rng(seed).standard_normal(HIDDEN).astype(np.float32)
    return feature / np.linalg.norm(feature)


def forked(work: Callable[[], None]) -> int:
    """The number of a process that does `work`; its exit code is 0 if nothing is raised."""
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(300)
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def failures(children: list[int]) -> int:
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


# ---------- at once ----------


def crowd(folder: Path, seconds: float, writers: int = 2, readers: int = 3) -> dict[str, int]:
    """Let processes write to an index in `folder` and read it; returns how many entries and rows it has in the end.

    Raises AssertionError where any of them saw what was never there.
    """
    end = time.monotonic() + seconds
    children = [forked(lambda number=number: write(folder, number, end)) for number in range(writers)]
    children += [forked(lambda number=number: read(folder, number, end)) for number in range(readers)]
    assert failures(children) == 0
    assert check(folder) == []
    index = Index(folder)
    found = {entry.path: entry.metadata["seed"] for entry in index.entries()}
    expected = {}
    for number in range(writers):
        lines = (folder.parent / f"writer-{number}").read_text().split()
        expected |= {Path(f"/{number}/{name}"): int(seed) for name, seed in (line.split("=") for line in lines)}
    assert found == expected
    return {"entries": len(found), "compactions": int(index.meta["features"].split("-")[1].split(".")[0])}


def write(folder: Path, number: int, end: float) -> None:
    """Add files, new and known ones, remove some and clear their rows away; at last note which there are."""
    chance, there = random.Random(number), {}
    index = Index.create(folder)
    while time.monotonic() < end:
        new = {f"{chance.randrange(60)}": chance.randrange(10**6) for _ in range(chance.randrange(1, 15))}
        gone = chance.sample(sorted(there), len(there) // 3)
        with index.writing():
            entries = [
                Entry(Path(f"/{number}/{name}"), "text", str(seed), 1, 1, {"seed": seed}) for name, seed in new.items()
            ]
            index.add(entries, np.stack([feature_of(seed) for seed in new.values()]))
            there |= new
            index.remove(Path(f"/{number}/{name}") for name in gone)
            for name in gone:
                del there[name]
            index.compact(approximate=chance.random() < 0.1)
    (folder.parent / f"writer-{number}").write_text(" ".join(f"{name}={seed}" for name, seed in there.items()))


def read(folder: Path, number: int, end: float) -> None:
    """Open the index, or use it again, and compare what it finds with all that it has."""
    chance, index, looks = random.Random(100 + number), None, 0
    while time.monotonic() < end:
        if not is_index(folder):
            continue
        if index is None or chance.random() < 0.5:
            index = Index(folder)
        with index.snapshot():
            seeds = [entry.metadata["seed"] for entry in index.entries()]
            assert len(seeds) == len(index)
            if seeds:
                query = feature_of(10**7 + chance.randrange(50))
                cosines = np.stack([feature_of(seed) for seed in seeds]) @ query
                found = index.search(query, 5, approximate=False)
                np.testing.assert_allclose([cosine for cosine, _ in found], np.sort(cosines)[::-1][:5], atol=1e-5)
                for cosine, entry in found:
                    assert abs(feature_of(entry.metadata["seed"]) @ query - cosine) < 1e-5
                looks += 1
        if chance.random() < 0.3:
            index.close()
            index = None
    assert looks, "it never came to look"


# ---------- killed ----------


def kills(folder: Path, count: int, seed: int = 0) -> int:
    """Kill each of building, adding to and removing from an index `count` times; returns how many were hit at work."""
    chance, hit = random.Random(seed), 0
    inputs, index = folder / "in", folder / "index"
    seeds = {f"{number}.npy": number for number in range(120)}
    save_features(inputs, {name: feature_of(number)[None] for name, number in seeds.items()})
    indexing.TRANSACTION = 15
    for _ in range(3 * count):
        child = forked(lambda: Index.create(index).close())
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if is_index(index):
            assert check(index) == []
            shutil.rmtree(index)
    hit += killed(lambda: build(index, inputs), index, inputs, [seeds], count, chance)
    changed = {**seeds, **{f"{number}.npy": 1000 + number for number in range(0, 150, 2)}}
    save_features(inputs, {name: feature_of(number)[None] for name, number in changed.items() if number >= 1000})
    hit += killed(lambda: build(index, inputs), index, inputs, [seeds, changed], count, chance)
    left = {name: number for name, number in changed.items() if int(Path(name).stem) % 3 == 0}
    gone = [(inputs / name).resolve() for name in changed.keys() - left.keys()]
    return hit + killed(lambda: remove(index, gone), index, inputs, [changed, left], count, chance)


def build(folder: Path, inputs: Path) -> None:
    if not is_index(folder):
        Index.create(folder).close()
    update_index(Index(folder), inputs, lambda: None, approximate=True)


def remove(folder: Path, gone: list[Path]) -> None:
    index = Index(folder)
    with index.writing():
        for start in range(0, len(gone), 10):
            index.remove(gone[start : start + 10])
            index.compact()


def killed(
    work: Callable[[], None], folder: Path, inputs: Path, states: list[dict], count: int, chance: random.Random
) -> int:
    """Begin `work` again and again, and kill it; then let it come to its end. Each file is in one of its `states`."""
    hit, duration = 0, 0.1  # of which the first kill comes at work, as later ones have nothing to do once it is done
    for _ in range(count):
        child = forked(work)
        time.sleep(chance.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hit += os.WIFSIGNALED(status)
        duration *= 1.5 if os.WIFSIGNALED(status) else 0.5
        if is_index(folder):
            assert_each_is_in_a_state(folder, inputs, states)
    assert failures([forked(work)]) == 0
    assert_each_is_in_a_state(folder, inputs, states[-1:])
    assert len(Store(folder)) == len(states[-1])
    assert not list(folder.glob(".*"))
    return hit


def assert_each_is_in_a_state(folder: Path, inputs: Path, states: list[dict]) -> None:
    assert check(folder) == []
    index = Index(folder)
    for entry in index.entries():
        name = entry.path.relative_to(inputs.resolve()).name
        allowed = [feature_of(state[name]) for state in states if name in state]
        assert any(np.allclose(index.features[entry.row], feature, atol=1e-6) for feature in allowed), name
    if len(index):
        entry = next(index.entries())
        assert index.search(np.array(index.features[entry.row]), 1, approximate=False)[0][1] == entry


def main() -> None:
    what, folder, number, *others = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if what == "crowd":
        print(crowd(Path(folder, "index"), float(number), *map(int, others)))
    else:
        print(f"{kills(Path(folder), int(number), *map(int, others))} of {3 * int(number)} kills hit a run at work")


if __name__ == "__main__":
    main()
