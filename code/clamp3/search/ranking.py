"""Ranking: the nearest references of each query by cosine similarity, and the ranks of the relevant ones.

Features are rows (n, hidden). Similarities are computed in blocks, so that memory grows with the number of queries and
of references, not with their product.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from clamp3.io.workers import own_cores
from clamp3.search.screening import ROWS, Screen

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
        size = REFERENCES * max(1, QUERIES // len(queries[rows]))  # the fewer queries, the longer their products
        for block in spans(len(references), size) if k else ():
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
    positives = [np.asarray(indices, np.int64) for indices in relevant]
    positives = [np.unique(indices) if len(indices) > 1 else indices for indices in positives]
    counts = np.array([len(indices) for indices in positives], np.int64)
    if len(positives) != len(queries) or not counts.all():
        raise ValueError("each query needs a relevant reference")
    queries, references = normalized(queries), normalized(references)
    best = np.full((len(queries), min(deepest, counts.max(initial=0))), np.inf, np.float32)  # above any cosine
    for line, query, indices in zip(best, queries, positives, strict=True):
        line[: len(indices)] = np.sort(references[indices] @ query)[::-1][: len(line)]
    least = best - TIE
    columns = np.concatenate([np.zeros(0, np.int64), *positives])
    ends = np.concatenate([[0], np.cumsum(counts)])
    screen = Screen.worth_while(queries, references, least[:, 0]) if len(queries) else None

    def ahead(rows: slice) -> np.ndarray:
        """Irrelevant references that rank before each relevant one of these queries."""
        mine = slice(ends[rows.start], ends[rows.stop])
        relevant_pairs = np.repeat(np.arange(rows.stop - rows.start), counts[rows]), columns[mine]
        if screen is not None:
            return screen.ahead(rows, least[rows], *relevant_pairs)
        return _ahead(queries[rows], references, least[rows], *relevant_pairs)

    threads, size = (1, QUERIES) if screen is None else (own_cores(), ROWS)  # BLAS has its own for whole products
    with ThreadPoolExecutor(threads) as pool:
        found = np.concatenate([np.zeros_like(best[:0], np.int64), *pool.map(ahead, spans(len(queries), size))])
    return np.where(np.isfinite(best), found + np.arange(1, best.shape[1] + 1), 0)


def _ahead(
    queries: np.ndarray, references: np.ndarray, least: np.ndarray, owners: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """How many references (m, hidden) have at least these cosines (n, depth) with each query (n, hidden): (n, depth).

    Pairs of queries `owners` and references `columns` do not count.
    """
    ahead = np.zeros(least.shape, np.int64)
    for block in spans(len(references), REFERENCES):
        scores = queries @ references[block].T  # (n, block)
        inside = (columns >= block.start) & (columns < block.stop)
        scores[owners[inside], columns[inside] - block.start] = -np.inf
        for place in range(least.shape[1]):
            ahead[:, place] += np.count_nonzero(scores >= least[:, place, None], axis=1)
    return ahead


def ranks_of_pairs(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """1-based ranks (n,) of row i of `references` (n, hidden) for row i of `queries` (n, hidden), by cosine.

    Ties are broken against the query.
    """
    return positions(queries, references, np.arange(len(queries))[:, None], deepest=1).reshape(-1)
