"""Corrections of a shared space that need no training, since each kind of item lies in a cone of its own.

All of them make new features whose cosines rank better or not; none looks at which items belong together. Of queries
(n, hidden) and references (m, hidden), rows of length one:
    centre     the mean of each side is taken away from it (Mu and Viswanath 2018)
    whiten     and the variance of the references becomes the same in all directions, as far as it is known
    csls       a reference loses its mean cosine with the queries nearest to it (Conneau et al. 2018, equation 2)
    querybank  or the logarithm of its sum of exponentials over the queries (Bogolin et al. 2022, inverted softmax)
The last two take from a cosine what depends on the reference alone, and so are features with two numbers more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from clamp3.search.ranking import QUERIES, normalized, spans

Method: TypeAlias = Literal["none", "centre", "whiten", "csls", "querybank"]
METHODS: tuple[Method, ...] = get_args(Method)
NEIGHBOURS = 10  # of CSLS
SHARPNESS = 20.0  # of the exponentials, over a cosine
RIDGE = 0.1  # of the mean variance, added to that of each direction
FEWEST = 10  # items of a kind, from which their mean says anything


def calibrated(
    queries: np.ndarray, references: np.ndarray, method: str, bank: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, …) and (m, …) of queries and references, to be compared by cosine, by one of METHODS.

    `bank` (b, hidden) is what queries are like, by default the queries; where that is under FEWEST, a side stays as it
    is. Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is no calibration; there are {', '.join(METHODS)}")
    queries, references = normalized(queries), normalized(references)
    bank = queries if bank is None else normalized(bank)
    if method in ("centre", "whiten"):
        near, far = (side.mean(axis=0) if len(side) >= FEWEST else np.float32(0) for side in (bank, references))
        matrix = whitening(references) if method == "whiten" and len(references) >= FEWEST else None
        queries, references = queries - near, references - far
        return (queries, references) if matrix is None else (queries @ matrix, references @ matrix)
    if method == "none" or len(bank) < FEWEST:
        return queries, references
    return _beside_bias(queries), _with_bias(references, crowding(bank, references, method))


def whitening(references: np.ndarray) -> np.ndarray:
    """The matrix (hidden, hidden) that evens out the variances of `references` (m, hidden)."""
    values, vectors = np.linalg.eigh(np.cov(references, rowvar=False, dtype=np.float64))
    values = np.maximum(values, 0)
    return (vectors / np.sqrt(values + RIDGE * values.mean() + np.finfo(float).tiny)).astype(np.float32)


def crowding(bank: np.ndarray, references: np.ndarray, method: str) -> np.ndarray:
    """What a cosine with each of `references` loses (m,), so that no reference is everyone's neighbour."""
    lost = np.empty(len(references), np.float32)
    for rows in spans(len(references), QUERIES):
        cosines = references[rows] @ bank.T
        if method == "csls":
            nearest = min(NEIGHBOURS, len(bank))
            lost[rows] = np.partition(cosines, -nearest, axis=1)[:, -nearest:].mean(axis=1) / 2
        else:
            lost[rows] = np.logaddexp.reduce(SHARPNESS * cosines, axis=1) / SHARPNESS
    return lost


def _with_bias(references: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """References of one length whose cosines with `_beside_bias(queries)` rank as `queries @ references.T - lost`."""
    lost = lost - lost.mean()
    filling = np.sqrt(np.maximum(np.square(lost).max() - np.square(lost), 0))
    return np.hstack([references, -lost[:, None], filling[:, None]]).astype(np.float32)


def _beside_bias(queries: np.ndarray) -> np.ndarray:
    """The queries for `_with_bias`."""
    zeros, ones = np.zeros((len(queries), 1), np.float32), np.ones((len(queries), 1), np.float32)
    return np.hstack([queries, ones, zeros]).astype(np.float32)


@dataclass(frozen=True)
class Space:
    """What a search corrects cosines by, where items are of several modalities and there is one query.

    All is taken from a sample of the references: the mean of each modality, the variances of all; and as what queries
    are like, those of the query's modality. Where there are fewer than FEWEST, it stays as it is.
    """

    method: str
    means: dict[str, np.ndarray]
    matrix: np.ndarray | None
    sample: dict[str, np.ndarray]  # by modality, of length one; "" for all

    @classmethod
    def of(cls, sample: np.ndarray, kinds: Sequence[str], method: str) -> "Space":
        """From features (n, hidden) of references and their modalities; `method` is one of METHODS."""
        if method not in METHODS:
            raise ValueError(f"{method!r} is no calibration; there are {', '.join(METHODS)}")
        if method == "none":
            return cls(method, {}, None, {})
        unit, of = normalized(sample), np.asarray(kinds)
        parts = {str(kind): unit[of == kind] for kind in np.unique(of)}
        if method in ("csls", "querybank"):
            return cls(method, {}, None, {"": unit} | parts)
        means = {kind: part.mean(axis=0) for kind, part in parts.items() if len(part) >= FEWEST}
        moved = unit - np.stack([means.get(str(kind), np.zeros(unit.shape[1], np.float32)) for kind in of])
        matrix = whitening(moved) if method == "whiten" and len(unit) >= FEWEST else None
        return cls(method, means, matrix, {})

    def queries(self, features: np.ndarray, own: str) -> np.ndarray:
        """Features of queries of the modality `own`, to be compared by cosine with those that `references` gives."""
        unit = normalized(features)
        if self.method in ("csls", "querybank"):
            return _beside_bias(unit)
        moved = unit - self.means[own] if own in self.means else unit
        return moved if self.matrix is None else moved @ self.matrix

    def references(self, features: np.ndarray, kinds: Sequence[str], own: str) -> np.ndarray:
        """Features of references of these modalities, for queries of the modality `own`."""
        unit = normalized(features)
        if self.method in ("csls", "querybank"):
            bank = self.sample.get(own, self.sample[""][:0])
            bank = bank if len(bank) >= FEWEST else self.sample[""]
            return _with_bias(unit, crowding(bank, unit, self.method))
        if self.means:
            unit = unit - np.stack([self.means.get(kind, np.zeros(unit.shape[1], np.float32)) for kind in kinds])
        return unit if self.matrix is None else unit @ self.matrix
