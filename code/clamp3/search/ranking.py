"""Ranking: the nearest references of each query by cosine similarity, and the ranks of the relevant ones.

Features are rows (n, hidden). Similarities are computed in blocks, so that memory grows with the number of queries and
of references, not with their product.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

QUERIES, REFERENCES = 1024, 8192  # in a block of similarities: 32 MB
# Cosines closer than this are ties: rounding errors depend on where a row lies in its block.
TIE = 1e-6
DEPTH = 10  # of nDCG

# For each query, the indices of its relevant references.
Relevant: TypeAlias = Sequence[Sequence[int] | np.ndarray] | np.ndarray


def normalized(features: np.ndarray) -> np.ndarray:
    """Rows (n, hidden) scaled to unit length, float32. Zero and non-finite rows become zeros, which tie with all."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    return np.where(usable, features, 0) / np.where(usable, norms, 1)


def spans(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size`, the last one shorter, that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def top_k(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and cosines, both (n, k), of the k nearest references of each query, best first.

    Ties are in the order of the references. Fewer than k where there are fewer references.
    """
    return top_k_of_unit(normalized(queries), normalized(references), k)


def top_k_of_unit(
    queries: np.ndarray, references: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of unit-length rows, among the references that are `allowed` (m,) bool; default: all."""
    k = min(k, len(references) if allowed is None else int(np.count_nonzero(allowed)))
    indices, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for rows in spans(len(queries), QUERIES):
        best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries[rows])
        for block in spans(len(references), REFERENCES) if k else ():
            scores = queries[rows] @ references[block].T  # (rows, block)
            if allowed is not None:
                scores[:, ~allowed[block]] = -np.inf
            depth = min(k, scores.shape[1])
            least = -np.partition(-scores, depth - 1, axis=1)[:, depth - 1]
            for row, (known, known_scores) in enumerate(best):
                new = np.flatnonzero(scores[row] >= least[row])
                merged = np.concatenate([known_scores, scores[row, new]])
                order = np.argsort(-merged, kind="stable")[:k]
                best[row] = np.concatenate([known, new + block.start])[order], merged[order]
        for row, (found, scores) in enumerate(best, rows.start):
            indices[row], cosines[row] = found, scores
    return indices, cosines


def positions(queries: np.ndarray, references: np.ndarray, relevant: Relevant, deepest: int = DEPTH) -> np.ndarray:
    """1-based ranks of each query's relevant references among all references, best first: (n, depth).

    `relevant[i]` holds the indices of query i's. The depth is the largest number of relevant references of a query,
    but at most `deepest`; rows with fewer end in zeros. Ties are broken against the query: irrelevant references rank
    before a relevant one of the same cosine. Raises ValueError for a query without a relevant reference.
    """
    positives = [np.unique(np.asarray(indices, np.int64)) for indices in relevant]
    counts = [len(indices) for indices in positives]
    if len(positives) != len(queries) or not all(counts):
        raise ValueError("each query needs a relevant reference")
    queries, references = normalized(queries), normalized(references)
    depth = min(deepest, max(counts, default=0))
    found = np.zeros((len(queries), depth), np.int64)
    for rows in spans(len(queries), QUERIES):
        best = np.full((len(queries[rows]), depth), np.inf, np.float32)  # above any cosine
        for line, query, indices in zip(best, queries[rows], positives[rows], strict=True):
            line[: len(indices)] = np.sort(references[indices] @ query)[::-1][:depth]
        owners, columns = np.repeat(np.arange(len(best)), counts[rows]), np.concatenate(positives[rows])
        ahead = np.zeros(best.shape, np.int64)  # irrelevant references that rank before each relevant one
        for block in spans(len(references), REFERENCES):
            scores = queries[rows] @ references[block].T  # (rows, block)
            inside = (columns >= block.start) & (columns < block.stop)
            scores[owners[inside], columns[inside] - block.start] = -np.inf
            for place in range(depth):
                ahead[:, place] += np.count_nonzero(scores >= best[:, place, None] - TIE, axis=1)
        found[rows] = np.where(np.isfinite(best), ahead + np.arange(1, depth + 1), 0)
    return found


def ranks_of_pairs(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """1-based ranks (n,) of row i of `references` (n, hidden) for row i of `queries` (n, hidden), by cosine.

    Ties are broken against the query.
    """
    return positions(queries, references, np.arange(len(queries))[:, None], deepest=1).reshape(-1)
