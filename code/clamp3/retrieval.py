"""Ranking: which references are closest to a query, and how good that is."""

from collections.abc import Sequence

import numpy as np

BLOCK = 1024  # queries scored at a time: memory grows with the references, not with the square


def normalized(features: np.ndarray) -> np.ndarray:
    """Rows (n, hidden) scaled to length one, float32; rows of zeros stay zeros."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def ranks_of_pairs(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For row i of `queries` (n, hidden), the rank, from 1, of row i of `references` (n, hidden) by cosine.

    References that tie with the right one rank before it.
    """
    queries, references = normalized(queries), normalized(references)
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        scores = queries[rows] @ references.T  # (block, n)
        right = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
        ranks[rows] = (scores >= right[:, None]).sum(axis=1)
    return ranks


def metrics(ranks: Sequence[int] | np.ndarray, hits: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """Mean reciprocal rank, and for each of `hits` the share of queries whose rank is no worse."""
    ranks = np.asarray(ranks)
    return {"MRR": float((1 / ranks).mean()), **{f"Hit@{k}": float((ranks <= k).mean()) for k in hits}}
