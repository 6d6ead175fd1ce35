"""Damages to the files of an index, and a judge of what an index answers: NumPy, over all rows."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clamp3.search.index import Entry, Index

HIDDEN = 8


def flipped(data: bytes, chance: random.Random) -> bytes:
    """With one bit changed."""
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, chance: random.Random, fill: Callable[[int], bytes]) -> bytes:
    """With some bytes, or a page, replaced."""
    length = min(chance.choice((1, 2, 8, 100, 4096)), len(data))
    start = chance.randrange(len(data) - length + 1)
    return data[:start] + fill(length) + data[start + length :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flipped": flipped,
    "flipped at the start": lambda data, chance: flipped(data[:120], chance) + data[120:],
    "zeroed": lambda data, chance: overwritten(data, chance, bytes),
    "noise": lambda data, chance: overwritten(data, chance, chance.randbytes),
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "exchanged": lambda data, chance: overwritten(
        data, chance, lambda length: data[(start := chance.randrange(len(data) - length + 1)) : start + length]
    ),
    "empty": lambda data, chance: b"",
    "gone": lambda data, chance: None,
}


class Judge:
    """The rows that an index was given, by path."""

    def __init__(self, features: np.ndarray, entries: list[Entry]):
        self.entries = {entry.path: entry for entry in entries}
        rows = features.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.rows = dict(zip(self.entries, rows, strict=True))

    def without(self, paths: set[Path]) -> "Judge":
        left = [path for path in self.rows if path not in paths]
        return Judge(np.stack([self.rows[path] for path in left]), [self.entries[path] for path in left])

    def best(self, query: np.ndarray, k: int, modality: str | None) -> list[tuple[float, Path]]:
        paths = [path for path, entry in self.entries.items() if modality in (None, entry.modality)]
        unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
        cosines = np.array([self.rows[path] for path in paths]).reshape(-1, len(query)) @ unit
        return [(cosines[place], paths[place]) for place in np.argsort(-cosines, kind="stable")[:k]]

    def assert_right(self, index: Index, approximate: bool | None = None) -> None:
        """That the index has these entries, each as it was given, and finds what is closest."""
        there = {entry.path: entry for entry in index.entries()}
        assert there.keys() == self.entries.keys() and len(index) == len(there)
        for path, entry in self.entries.items():
            found = there[path]
            assert (found.modality, found.hash, found.size) == (entry.modality, entry.hash, entry.size)
            assert (found.modified, found.metadata) == (entry.modified, entry.metadata)
        assert sum(index.counts().values()) == len(there)
        for query in np.random.default_rng(1).standard_normal((1, HIDDEN)).astype(np.float32):
            for modality in (None, "text"):
                expected = self.best(query, 5, modality)
                found = index.search(query, 5, approximate, modality)
                assert [entry.path for _, entry in found] == [path for _, path in expected]
                cosines = [[cosine for cosine, _ in result] for result in (found, expected)]
                np.testing.assert_allclose(*cosines, atol=1e-5)


def make_index(folder: Path, count: int = 80, seed: int = 3) -> Judge:
    """An index of `count` rows, some of them of files that have been removed; it can search approximately."""
    features = np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)
    entries = [
        Entry(
            Path(f"/music/{number} 愛.abc"),
            "text" if number % 3 else "symbolic",
            f"{number:064x}",
            100 + number,
            10**18 + number,
            {"title": f"Tune {number}"} if number % 2 else {},
        )
        for number in range(count)
    ]
    index = Index.create(folder)
    with index.writing():
        index.add(entries, features)
        index.record(identity="an identity", weights="weights.pth")
        index.compact(approximate=True)
        removed = {entry.path for entry in entries[::7]}
        index.remove(removed)
    index.close()
    return Judge(features, entries).without(removed)
