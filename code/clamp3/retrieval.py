"""Ranking: which references are closest to a query, and how good that is.

Features are rows (n, hidden), likeness is the cosine, and memory grows with the sets, never with their product.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clamp3.errors import UserError

QUERIES, REFERENCES = 1024, 8192  # scored at once: 32 MB
# Cosines closer than this tie: what rounding adds depends on where a row lies in its block.
TIE = 1e-6
MOST_MISMATCHED = 10_000_000  # pairs whose cosines calibrate scores
RESAMPLES = 1000
HITS = (1, 10, 100)
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


def metrics(ranks: Sequence[int] | np.ndarray, hits: Sequence[int] = HITS) -> dict[str, float]:
    """Mean reciprocal rank, and for each of `hits` the share of queries whose rank is no worse."""
    ranks = np.asarray(ranks)
    return {"MRR": float((1 / ranks).mean()), **{f"Hit@{k}": float((ranks <= k).mean()) for k in hits}}


# ---------- evaluation ----------


@dataclass(frozen=True)
class Estimate:
    """A figure over all queries, and the interval that holds it for 95 % of the samples like these."""

    value: float
    low: float
    high: float


def ndcg(places: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """nDCG@10 of each query, from its right references' `positions` and how many there are; relevance is 0 or 1."""
    gains = np.zeros(places.shape)
    seen = (places > 0) & (places <= DEPTH)
    gains[seen] = 1 / np.log2(places[seen] + 1)
    ideal = np.cumsum(1 / np.log2(np.arange(2, DEPTH + 2)))
    return gains.sum(axis=1) / ideal[np.minimum(counts, DEPTH) - 1]


def evaluate(
    queries: np.ndarray, references: np.ndarray, right: Sequence[Sequence[int]], seed: int = 0
) -> dict[str, Estimate]:
    """MRR, Hit@1/10/100 and median rank of the best right reference, and nDCG@10, with bootstrap intervals.

    `right` as in `positions`. The intervals are percentiles over samples of queries. Raises ValueError for no queries.
    """
    if not len(queries):
        raise ValueError("no queries to evaluate")
    places = positions(queries, references, right)
    ranks = places[:, 0]
    counts = [len(set(indices)) for indices in right]
    by_query = {"MRR": 1 / ranks, **{f"Hit@{k}": ranks <= k for k in HITS}, f"nDCG@{DEPTH}": ndcg(places, counts)}
    values = np.stack(list(by_query.values()), axis=1).astype(np.float64)  # (n, figures)

    def figures(chosen: np.ndarray | slice) -> list[float]:
        return [*values[chosen].mean(axis=0), float(np.median(ranks[chosen]))]

    rng = np.random.default_rng(seed)
    samples = [figures(rng.integers(len(ranks), size=len(ranks))) for _ in range(RESAMPLES)]
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    estimates = map(Estimate, map(float, figures(slice(None))), map(float, low), map(float, high))
    return dict(zip([*by_query, "median rank"], estimates, strict=True))


def reverse(right: Sequence[Sequence[int]], references: int) -> list[list[int]]:
    """For each of so many references, the queries whose right references it is among."""
    owners: list[list[int]] = [[] for _ in range(references)]
    for query, indices in enumerate(right):
        for index in indices:
            owners[index].append(query)
    return owners


def evaluate_both(
    queries: np.ndarray, references: np.ndarray, right: Sequence[Sequence[int]]
) -> dict[str, dict[str, Estimate]]:
    """`evaluate` from queries to references and back; those that belong to nothing are candidates alone."""
    directions = {
        "query_to_reference": (queries, references, right),
        "reference_to_query": (references, queries, reverse(right, len(references))),
    }
    figures = {}
    for name, (askers, candidates, answers) in directions.items():
        asking = [index for index, own in enumerate(answers) if len(own)]
        figures[name] = evaluate(askers[asking], candidates, [answers[index] for index in asking])
    return figures


# ---------- scores ----------


def pair_scores(queries: np.ndarray, references: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosine of each of `pairs` (n, 2), and its percentile among the cosines of the pairs that are none of them.

    The percentile is the share, in %, of mismatched pairs below; NaN where there are none. Of more than
    MOST_MISMATCHED, those of queries at even distances count.
    """
    queries, references = normalized(queries), normalized(references)
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    cosines = np.einsum("ph,ph->p", queries[pairs[:, 0]], references[pairs[:, 1]])
    rows = max(1, min(len(queries), MOST_MISMATCHED // max(len(references), 1)))
    sampled = np.linspace(0, len(queries) - 1, rows).astype(np.int64) if len(queries) else np.zeros(0, np.int64)
    scores = queries[sampled] @ references.T  # (rows, references)
    line = np.full(len(queries), -1)
    line[sampled] = np.arange(len(sampled))
    matched = pairs[line[pairs[:, 0]] >= 0]
    wrong = np.ones(scores.shape, bool)
    wrong[line[matched[:, 0]], matched[:, 1]] = False
    mismatched = np.sort(scores[wrong])
    if not len(mismatched):
        return cosines, np.full(len(pairs), np.nan)
    return cosines, 100 * np.searchsorted(mismatched, cosines - np.float32(TIE)) / len(mismatched)


def group_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of the two sets' mean features."""
    means = normalized(np.stack([np.mean(first, axis=0), np.mean(second, axis=0)]))
    return float(means[0] @ means[1])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between normal distributions fitted to the two sets: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    Heusel et al. 2017, equation 6. The trace of the root is the sum of the roots of the eigenvalues of R C2 R, where
    R R = C1. Raises UserError for fewer than two rows in a set.
    """
    if min(len(first), len(second)) < 2:
        raise UserError("the Fréchet distance needs two features or more in each set")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    offset = first.mean(axis=0) - second.mean(axis=0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = sum(np.trace(covariance) for covariance in covariances)
    return float(offset @ offset + traces - 2 * np.sqrt(shared.clip(min=0)).sum())
