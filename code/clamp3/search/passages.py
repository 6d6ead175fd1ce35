"""Passages in an index: 8-bit rows in passages-N.i8, a slice of them for each file, and the closest ones to a query.

A row is where its passage begins and ends, the numbers of its feature as signed bytes, what they are multiplied by so
that their length is one (a cosine is right to about 0.001), and the fingerprint of its melody (`inputs.melodies`),
which rows of format 3 do not have.
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
FEW = 0.1  # of all rows, that are better copied than all looked at
MARGIN = 1e-3  # by which rounding may raise a cosine above 1
LOW = 9.0  # below any sum of two cosines
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


def row_type(hidden: int, melody: int = 0) -> np.dtype:
    """The type of a row for features of `hidden` numbers, and fingerprints of `melody` words of 64 bits."""
    fields = [("place", "<f4", (2,)), ("scale", "<f4"), ("numbers", "i1", (hidden,)), ("melody", "<u8", (melody,))]
    return np.dtype(fields if melody else fields[:-1])


def encoded(passages: Sequence[Passage], kind: np.dtype) -> np.ndarray:
    """The rows (n,) of passages, of a `row_type`. Raises ValueError where a feature is not finite."""
    rows = np.zeros(len(passages), kind)
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
    if "melody" in (kind.names or ()):
        rows["melody"] = [passage.melody for passage in passages]
    return rows


def unit_of(passages: Sequence[Passage]) -> str:
    return passages[0].span.unit if passages else ""


def slice_sum(rows: np.ndarray, unit: str, content: str) -> int:
    """The checksum of a file's passages; `content` is the file's hash, so that no other file is given them."""
    return zlib.crc32(rows.tobytes(), zlib.crc32(f"{unit} {len(rows)} {content}".encode("utf-8", "surrogatepass")))


def cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The cosine of `query` (hidden,), of length one, with each of `rows` (n,)."""
    return _by_blocks(rows, lambda block: (block["numbers"].astype(np.float32) @ query) * block["scale"])


def melodic_cosines(melody: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """The cosine of the fingerprint `melody` with that of each of `rows` (n,), as vectors of zeros and ones.

    Zeros where there is none, or where the rows have none.
    """
    if melody is None or "melody" not in (rows.dtype.names or ()):
        return np.zeros(len(rows), np.float32)
    own = _ones(melody)

    def score(block: np.ndarray) -> np.ndarray:
        theirs = np.ascontiguousarray(block["melody"])
        return _ones(theirs & melody) / np.sqrt(np.maximum(own * _ones(theirs), 1))

    return _by_blocks(rows, score)


def _by_blocks(rows: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `score` gives to `rows` (n,), in float32, block by block in threads."""
    found = np.empty(len(rows), np.float32)

    def fill(part: slice) -> None:
        found[part] = score(rows[part])

    with ThreadPoolExecutor(own_cores()) as pool:
        list(pool.map(fill, spans(len(rows), BLOCK)))
    return found


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits are set in the last dimension (…,) float32 of `words` (…, n) uint64."""
    if hasattr(np, "bitwise_count"):  # from NumPy 2.0 on
        counts = np.bitwise_count(words)
    else:
        counts = np.unpackbits(words.view(np.uint8), axis=-1)
    return counts.astype(np.float32) @ np.ones(counts.shape[-1], np.float32)  # as sums, but faster


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    file: Slice
    span: Span
    cosine: float
    melodic: float  # the cosine of its melody, 0 if none are compared


def closest(
    query: np.ndarray,
    rows: np.ndarray,
    slices: Sequence[Slice],
    k: int,
    per_file: int | None = None,
    rescored: Callable[[np.ndarray, list[str]], np.ndarray] | None = None,
    melody: np.ndarray | None = None,
) -> list[Hit]:
    """The k passages closest to `query` (hidden,), of length one, in `slices`, which are in the order of their rows.

    At most `per_file` of a file. Equal ones are in the order of their rows. With a fingerprint `melody`, the closest
    are those of the largest sums of both cosines. `rescored` gives other cosines (n,) to features (n, hidden) and
    their units: to the POOL closest, of which the k best are then taken.
    """
    slices = [one for one in slices if one.count]
    if not slices:
        return []
    melodic = melodic_cosines(melody, rows)
    starts = np.fromiter((one.first for one in slices), np.int64, len(slices))
    counts = np.fromiter((one.count for one in slices), np.int64, len(slices))
    if counts.sum() < len(rows):  # what lies between the slices belongs to no file
        alive = np.zeros(len(rows) + 1, np.int32)
        np.add.at(alive, starts, 1)
        np.add.at(alive, starts + counts, -1)
        melodic[np.cumsum(alive[:-1]) == 0] = -np.inf
    if melody is None or rescored is not None or len(slices) <= k:
        found = cosines(query, rows)
    else:
        found = _promising_cosines(query, rows, melodic, starts, k)
    scores = found + melodic
    if rescored is not None:
        pool = np.argpartition(-scores, POOL)[:POOL] if len(scores) > POOL else np.arange(len(scores))
        pool = np.sort(pool[np.isfinite(scores[pool])])
        units = [slices[number].unit for number in (np.searchsorted(starts, pool, "right") - 1).tolist()]
        found[pool] = rescored(decoded(rows[pool]), units)
        scores[:] = np.where(np.isfinite(scores), -LOW, -np.inf)
        scores[pool] = (found + melodic)[pool]
    best = np.maximum.reduceat(scores, starts)
    # Whatever is among the k closest is of a file whose best passage is among the k closest of such.
    chosen = np.argsort(-best, kind="stable")[:k]
    hits = []
    for number in chosen.tolist():
        one = slices[number]
        own = scores[one.rows]
        for place in np.argsort(-own, kind="stable")[: k if per_file is None else per_file].tolist():
            hits.append((float(own[place]), one.first + place, one))
    hits.sort(key=lambda hit: (-hit[0], hit[1]))
    return [
        Hit(one, Span(one.unit, *rows["place"][at].tolist()), float(found[at]), float(melodic[at]))
        for score, at, one in hits[:k]
        if score > -LOW
    ]


def _promising_cosines(
    query: np.ndarray, rows: np.ndarray, melodic: np.ndarray, starts: np.ndarray, k: int
) -> np.ndarray:
    """The `cosines` (n,) of the rows that may be among the k closest, by file or not, of more files; else -inf.

    `melodic` (n,) are the other cosines, and `starts` the files' first rows. Some rows with the highest of these show
    what sum k files reach; where more than 1 is missing to it, no cosine gives that.
    """
    found = np.full(len(rows), -np.inf, np.float32)
    chosen = np.argpartition(-melodic, POOL)[:POOL] if len(rows) > POOL else np.arange(len(rows))
    found[chosen] = cosines(query, rows[chosen])
    best = np.maximum.reduceat(found + melodic, starts)
    others = np.flatnonzero((melodic > np.partition(best, -k)[-k] - 1 - MARGIN) & np.isinf(found))
    if len(others) > FEW * len(rows):
        return cosines(query, rows)
    found[others] = cosines(query, rows[others])
    return found


def decoded(rows: np.ndarray) -> np.ndarray:
    """The features (n, hidden) of `rows`, of length one."""
    return rows["numbers"].astype(np.float32) * rows["scale"][:, None]
