from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clamp3.errors import UserError
from clamp3.search.ranking import DEPTH, TIE, normalized, positions

MOST_MISMATCHED = 10_000_000  # pairs whose cosines calibrate scores
RESAMPLES = 1000
HITS = (1, 10, 100)


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
