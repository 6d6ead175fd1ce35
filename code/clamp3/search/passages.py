"""Passages in an index: 8-bit rows in passages-N.i8, a slice of them for each file, and the closest ones to a query.

A row is where its passage begins and ends, the numbers of its feature as signed bytes, and what they are multiplied
by so that their length is one: a cosine is right to about 0.001.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clamp3.features.passages import Passage
from clamp3.inputs.passages import Span
from clamp3.io.workers import own_cores
from clamp3.search.ranking import normalized, spans

BLOCK = 2048  # rows that are scored at once, by each thread: as floats they stay in its cache
POOL = 5000  # passages that a calibration looks at, of those closest without it
LOW = 9.0  # below any cosine
MOST = 127  # of a number in a row


@dataclass(frozen=True)
class Slice:
    """Which rows are a file's passages: its record in the database."""

    row: int  # of the file's entry
    first: int
    count: int
    unit: str  # of all of them: "bars", "seconds" or "lines"; "" of none
    sum: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)


def row_type(hidden: int) -> np.dtype:
    """The type of a row for features of `hidden` numbers."""
    return np.dtype([("place", "<f4", (2,)), ("scale", "<f4"), ("numbers", "i1", (hidden,))])


def encoded(passages: Sequence[Passage], hidden: int) -> np.ndarray:
    """The rows (n,) of passages. Raises ValueError where a feature is not finite."""
    rows = np.zeros(len(passages), row_type(hidden))
    if not len(passages):
        return rows
    features = np.stack([passage.feature for passage in passages])
    if not np.isfinite(features).all():
        raise ValueError("a passage's feature is not finite")
    unit = normalized(features)
    largest = np.abs(unit).max(axis=1, keepdims=True)
    numbers = np.rint(unit * (MOST / np.where(largest > 0, largest, 1)))
    rows["place"] = [(passage.span.first, passage.span.last) for passage in passages]
    rows["numbers"] = numbers
    rows["scale"] = 1 / np.maximum(np.linalg.norm(numbers, axis=1), 1)
    return rows


def unit_of(passages: Sequence[Passage]) -> str:
    return passages[0].span.unit if passages else ""


def slice_sum(rows: np.ndarray, unit: str, content: str) -> int:
    """The checksum of a file's passages; `content` is the file's hash, so that no other file is given them."""
    return zlib.crc32(rows.tobytes(), zlib.crc32(f"{unit} {len(rows)} {content}".encode("utf-8", "surrogatepass")))


def cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The cosine of `query` (hidden,), of length one, with each of `rows` (n,)."""
    found = np.empty(len(rows), np.float32)

    def score(part: slice) -> None:
        block = rows[part]
        found[part] = (block["numbers"].astype(np.float32) @ query) * block["scale"]

    with ThreadPoolExecutor(own_cores()) as pool:
        list(pool.map(score, spans(len(rows), BLOCK)))
    return found


def closest(
    query: np.ndarray,
    rows: np.ndarray,
    slices: Sequence[Slice],
    k: int,
    per_file: int | None = None,
    rescored: Callable[[np.ndarray, list[str]], np.ndarray] | None = None,
) -> list[tuple[float, Slice, Span]]:
    """The k passages closest to `query` (hidden,), of length one, in `slices`, which are in the order of their rows.

    At most `per_file` of a file. Equal ones are in the order of their rows. `rescored` gives other scores (n,) to
    features (n, hidden) and their units: to the POOL closest, of which the k best are then taken.
    """
    slices = [one for one in slices if one.count]
    if not slices:
        return []
    scores = cosines(query, rows)
    starts = np.fromiter((one.first for one in slices), np.int64, len(slices))
    counts = np.fromiter((one.count for one in slices), np.int64, len(slices))
    if counts.sum() < len(rows):  # what lies between the slices belongs to no file
        alive = np.zeros(len(rows) + 1, np.int32)
        np.add.at(alive, starts, 1)
        np.add.at(alive, starts + counts, -1)
        scores[np.cumsum(alive[:-1]) == 0] = -np.inf
    if rescored is not None:
        pool = np.argpartition(-scores, POOL)[:POOL] if len(scores) > POOL else np.arange(len(scores))
        pool = np.sort(pool[np.isfinite(scores[pool])])
        units = [slices[number].unit for number in (np.searchsorted(starts, pool, "right") - 1).tolist()]
        scores[:] = np.where(np.isfinite(scores), -LOW, -np.inf)
        scores[pool] = rescored(decoded(rows[pool]), units)
    best = np.maximum.reduceat(scores, starts)
    # Whatever is among the k closest is of a file whose best passage is among the k closest of such.
    chosen = np.argsort(-best, kind="stable")[:k]
    found = []
    for number in chosen.tolist():
        one = slices[number]
        own = scores[one.rows]
        for place in np.argsort(-own, kind="stable")[: k if per_file is None else per_file].tolist():
            found.append((float(own[place]), one.first + place, one))
    found.sort(key=lambda hit: (-hit[0], hit[1]))
    found = [hit for hit in found[:k] if hit[0] > -LOW]
    return [(cosine, one, Span(one.unit, *rows["place"][at].tolist())) for cosine, at, one in found]


def decoded(rows: np.ndarray) -> np.ndarray:
    """The features (n, hidden) of `rows`, of length one."""
    return rows["numbers"].astype(np.float32) * rows["scale"][:, None]
