"""Ranking: which references are closest to a query, and how good that is.

Features are rows (n, hidden), likeness is the cosine, and memory grows with the sets, never with their product.
"""

from collections.abc import Iterator, Sequence

import numpy as np

QUERIES, REFERENCES = 1024, 8192  # scored at once: 32 MB
# Cosines closer than this tie: what rounding adds depends on where a row lies in its block.
TIE = 1e-6
DEPTH = 10  # of nDCG


def normalized(features: np.ndarray) -> np.ndarray:
    """Rows (n, hidden) scaled to length one, float32; rows of zeros, or with NaN, become zeros: they tie with all."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    return np.where(usable, features, 0) / np.where(usable, norms, 1)


def spans(length: int, size: int) -> Iterator[slice]:
    """`length` cut into slices of `size`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def top_k(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k references closest to each query, best first, equal ones in their order: indices and cosines (n, k).

    Fewer where there are fewer references.
    """
    return top_k_of_unit(normalized(queries), normalized(references), k)


def top_k_of_unit(
    queries: np.ndarray, references: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of rows that are of length one, among the references that are `allowed` (m,), by default all."""
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


def positions(
    queries: np.ndarray, references: np.ndarray, right: Sequence[Sequence[int]], deepest: int = DEPTH
) -> np.ndarray:
    """Where each query's right references stand among all references, from 1, best first: (n, depth).

    `right[i]` are the indices of query i's. Depth is the greatest number of them, `deepest` at most; 0 stands where a
    query has fewer. Wrong references that tie with a right one stand before it. Raises ValueError for a query without.
    """
    right = [np.unique(np.asarray(indices, np.int64)) for indices in right]
    counts = [len(indices) for indices in right]
    if len(right) != len(queries) or not all(counts):
        raise ValueError("each query needs a right reference")
    queries, references = normalized(queries), normalized(references)
    depth = min(deepest, max(counts, default=0))
    found = np.zeros((len(queries), depth), np.int64)
    for rows in spans(len(queries), QUERIES):
        best = np.full((len(queries[rows]), depth), np.inf, np.float32)  # which no reference reaches
        for line, query, indices in zip(best, queries[rows], right[rows], strict=True):
            line[: len(indices)] = np.sort(references[indices] @ query)[::-1][:depth]
        owners, columns = np.repeat(np.arange(len(best)), counts[rows]), np.concatenate(right[rows])
        ahead = np.zeros(best.shape, np.int64)  # wrong references
        for block in spans(len(references), REFERENCES):
            scores = queries[rows] @ references[block].T  # (rows, block)
            inside = (columns >= block.start) & (columns < block.stop)
            scores[owners[inside], columns[inside] - block.start] = -np.inf
            for place in range(depth):
                ahead[:, place] += np.count_nonzero(scores >= best[:, place, None] - TIE, axis=1)
        found[rows] = np.where(np.isfinite(best), ahead + np.arange(1, depth + 1), 0)
    return found


def ranks_of_pairs(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For row i of `queries` (n, hidden), the rank, from 1, of row i of `references` (n, hidden) by cosine.

    References that tie with the right one rank before it.
    """
    return positions(queries, references, np.arange(len(queries))[:, None], deepest=1).reshape(-1)
