"""Retrieval metrics with bootstrap confidence intervals, and the similarity of pairs and of sets of features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clamp3.errors import UserError
from clamp3.search.calibration import calibrated
from clamp3.search.ranking import DEPTH, TIE, Relevant, normalized, positions

MOST_MISMATCHED = 10_000_000  # mismatched pairs, at most, among which percentiles are computed
RESAMPLES = 1000  # of the bootstrap
HITS = (1, 10, 100)
MEDIAN = "median rank"
SUBSETS = 15  # through whose Fréchet distances a line is laid
FEWEST_EXTRAPOLATED = 20  # items of a set that has such subsets


def metrics(ranks: Sequence[int] | np.ndarray, hits: Sequence[int] = HITS) -> dict[str, float]:
    """MRR and, for each k of `hits`, Hit@k, of 1-based ranks (n,)."""
    ranks = np.asarray(ranks)
    return {"MRR": float((1 / ranks).mean()), **{f"Hit@{k}": float((ranks <= k).mean()) for k in hits}}


# ---------- evaluation ----------


@dataclass(frozen=True)
class Estimate:
    """A metric over all queries with its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float


def ndcg(ranks: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """nDCG@10 of each query, with binary relevance, from ranks (n, depth) and counts of its relevant references."""
    gains = np.zeros(ranks.shape)
    retrieved = (ranks > 0) & (ranks <= DEPTH)
    gains[retrieved] = 1 / np.log2(ranks[retrieved] + 1)
    ideal = np.cumsum(1 / np.log2(np.arange(2, DEPTH + 2)))
    return gains.sum(axis=1) / ideal[np.minimum(counts, DEPTH) - 1]


@dataclass(frozen=True)
class Measured:
    """What each of n queries has reached."""

    ranks: np.ndarray  # (n,) of the best relevant reference, from 1
    values: dict[str, np.ndarray]  # (n,) float64 by the name of a measure whose mean is reported
    counts: list[int]  # relevant references of each
    references: int  # all that were ranked


def measure(queries: np.ndarray, references: np.ndarray, relevant: Relevant) -> Measured:
    """Rank, reciprocal rank, Hit@1/10/100 and nDCG@10 of each query; `relevant` as for `positions`.

    Raises ValueError where there are no queries.
    """
    if not len(queries):
        raise ValueError("no queries to evaluate")
    all_ranks = positions(queries, references, relevant)
    ranks = all_ranks[:, 0]
    counts = [len(set(indices)) for indices in relevant]
    by_query = {"MRR": 1 / ranks, **{f"Hit@{k}": ranks <= k for k in HITS}, f"nDCG@{DEPTH}": ndcg(all_ranks, counts)}
    return Measured(
        ranks, {name: values.astype(np.float64) for name, values in by_query.items()}, counts, len(references)
    )


def resampled(measured: Measured, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the measures, their values (measures,), and those over resampled queries (RESAMPLES, measures).

    Results of the same number of queries are resampled alike, so that they can be compared query by query.
    """
    values = np.stack(list(measured.values.values()), axis=1)  # (n, measures)

    def summary(rows: np.ndarray | slice) -> list[float]:
        return [*values[rows].mean(axis=0), float(np.median(measured.ranks[rows]))]

    rng = np.random.default_rng(seed)
    samples = [summary(rng.integers(len(values), size=len(values))) for _ in range(RESAMPLES)]
    return [*measured.values, MEDIAN], np.array(summary(slice(None))), np.array(samples)


def estimates(measured: Measured, seed: int = 0) -> dict[str, Estimate]:
    """Each measure over all queries and the median rank, with bootstrap intervals over resampled queries."""
    names, values, samples = resampled(measured, seed)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return dict(zip(names, map(Estimate, values.tolist(), low.tolist(), high.tolist()), strict=True))


def evaluate(queries: np.ndarray, references: np.ndarray, relevant: Relevant, seed: int = 0) -> dict[str, Estimate]:
    """MRR, Hit@1/10/100 and median rank of the best relevant reference, and nDCG@10, with confidence intervals.

    `relevant` as for `positions`. The intervals are bootstrap percentiles over resampled queries. Raises ValueError
    where there are no queries.
    """
    return estimates(measure(queries, references, relevant), seed)


def reverse(relevant: Relevant, references: int) -> list[list[int]]:
    """For each of the `references` (a number), the queries to which it is relevant."""
    queries: list[list[int]] = [[] for _ in range(references)]
    for query, indices in enumerate(relevant):
        for index in indices:
            queries[index].append(query)
    return queries


def measure_both(
    queries: np.ndarray, references: np.ndarray, relevant: Relevant, calibrate: str = "none"
) -> dict[str, Measured]:
    """`measure` from queries to references and back; items without a partner are candidates only.

    With `calibrate`, one of calibration.METHODS, after that correction in each direction, which knows all queries and
    references and nothing of which belong together.
    """
    directions = {
        "query_to_reference": (queries, references, relevant),
        "reference_to_query": (references, queries, reverse(relevant, len(references))),
    }
    measured = {}
    for name, (sources, candidates, positives) in directions.items():
        paired = [index for index, indices in enumerate(positives) if len(indices)]
        if calibrate != "none":
            sources, candidates = calibrated(sources, candidates, calibrate)
        measured[name] = measure(sources[paired], candidates, [positives[index] for index in paired])
    return measured


def evaluate_both(
    queries: np.ndarray, references: np.ndarray, relevant: Relevant, calibrate: str = "none"
) -> dict[str, dict[str, Estimate]]:
    """`evaluate` from queries to references and back, as `measure_both` does."""
    both = measure_both(queries, references, relevant, calibrate)
    return {name: estimates(measured) for name, measured in both.items()}


# ---------- scores ----------


def pair_scores(
    queries: np.ndarray, references: np.ndarray, pairs: np.ndarray | Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (n,) of the `pairs` (n, 2), and their percentiles (n,) among the cosines of all mismatched pairs.

    A percentile is the share, in %, of mismatched pairs with a lower cosine; NaN where there are none. Of more than
    MOST_MISMATCHED, those of evenly spaced queries are taken.
    """
    queries, references = normalized(queries), normalized(references)
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    cosines = np.einsum("ph,ph->p", queries[pairs[:, 0]], references[pairs[:, 1]])
    rows = max(1, min(len(queries), MOST_MISMATCHED // max(len(references), 1)))
    sampled = np.linspace(0, len(queries) - 1, rows).astype(np.int64) if len(queries) else np.zeros(0, np.int64)
    scores = queries[sampled] @ references.T  # (rows, references)
    row_of = np.full(len(queries), -1)  # of `scores`, by query
    row_of[sampled] = np.arange(len(sampled))
    matched = pairs[row_of[pairs[:, 0]] >= 0]
    is_mismatched = np.ones(scores.shape, bool)
    is_mismatched[row_of[matched[:, 0]], matched[:, 1]] = False
    mismatched = np.sort(scores[is_mismatched])
    if not len(mismatched):
        return cosines, np.full(len(pairs), np.nan)
    return cosines, 100 * np.searchsorted(mismatched, cosines - np.float32(TIE)) / len(mismatched)


def group_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine similarity of the mean features of two sets."""
    means = normalized(np.stack([np.mean(first, axis=0), np.mean(second, axis=0)]))
    return float(means[0] @ means[1])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of normal distributions fitted to two sets: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), from 0.

    Heusel et al. 2017, equation 6. The trace of the square root is the sum of the square roots of the eigenvalues of
    R C2 R, where R R = C1. Raises UserError for a set of fewer than two rows.
    """
    if min(len(first), len(second)) < 2:
        raise UserError("the Fréchet distance needs two features or more in each set")
    return _frechet(_normal(first), _normal(second))


@dataclass(frozen=True)
class Extrapolated:
    """A Fréchet distance as it would be with endless items in the first set, and how well the line fits."""

    intercept: float  # where the line meets 1/N = 0, which may be below zero
    r2: float  # the share of the distances' variance that the line explains
    sizes: list[int]  # of the subsets

    @property
    def value(self) -> float:
        return max(self.intercept, 0.0)


def frechet_infinity(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Extrapolated | None:
    """What `frechet_distance` tends to as the first set grows, from a line through its values over 1/N of subsets.

    That of N items is too large by about a constant over N (Chong and Forsyth 2020, Gui et al. 2024 for music).
    The second set stays as it is. Subsets, of a quarter of the items and more, are drawn without replacement: with
    replacement, the line would lead to the distance of all items. None for fewer than FEWEST_EXTRAPOLATED items.
    """
    if len(first) < FEWEST_EXTRAPOLATED:
        return None
    rng, reference = np.random.default_rng(seed), _normal(second)
    sizes = np.linspace(len(first) // 4, len(first), SUBSETS).astype(int)
    subsets = (rng.choice(len(first), size, replace=False) for size in sizes)
    distances = np.array([_frechet(reference, _normal(first[rows])) for rows in subsets])
    slope, value = np.polyfit(1 / sizes, distances, 1)
    total = np.square(distances - distances.mean()).sum()
    left = np.square(distances - value - slope / sizes).sum()
    return Extrapolated(float(value), float(1 - left / total) if total > 0 else 1.0, sizes.tolist())


def _normal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (hidden,) and covariance (hidden, hidden) of features (n, hidden)."""
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


def _frechet(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
    values, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ covariance_2 @ root)
    traces = np.trace(covariance_1) + np.trace(covariance_2)
    distance = np.sum((mean_1 - mean_2) ** 2) + traces - 2 * np.sqrt(eigenvalues.clip(min=0)).sum()
    return max(float(distance), 0.0)  # rounding takes equal sets below
