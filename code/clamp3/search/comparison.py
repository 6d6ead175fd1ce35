"""Which of two sets of features ranks better on the same items, how sure that is, and what chance would reach."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from clamp3.search.metrics import HITS, MEDIAN, Measured, resampled
from clamp3.search.ranking import DEPTH

FEW = 20  # queries, under which a bootstrap takes too much for sure


@dataclass(frozen=True)
class Difference:
    """A measure by two sets of features, and the first minus the other with its 95 % bootstrap interval."""

    first: float
    other: float
    difference: float
    low: float
    high: float
    better: str | None  # "first" or "other", None where both are equal
    sure: float | None  # the share of resamples in which that one is better, with half of those where both are equal

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def differences(first: Measured, second: Measured, seed: int = 0) -> dict[str, Difference]:
    """The measures of two results of the same queries, in the same order, compared by a paired bootstrap.

    Both are taken over the same resampled queries (Efron and Tibshirani 1993, chapter 16). Raises ValueError where
    their numbers of queries differ.
    """
    if len(first.ranks) != len(second.ranks):
        raise ValueError(f"{len(first.ranks)} and {len(second.ranks)} queries cannot be compared one by one")
    (names, ours, our_samples), (_, theirs, their_samples) = (resampled(one, seed) for one in (first, second))
    found = {}
    for column, name in enumerate(names):
        samples = our_samples[:, column] - their_samples[:, column]
        low, high = np.percentile(samples, [2.5, 97.5])
        difference = ours[column] - theirs[column]
        gain = -difference if name == MEDIAN else difference  # the lower a rank the better
        wins = samples * np.sign(difference)
        found[name] = Difference(
            first=float(ours[column]),
            other=float(theirs[column]),
            difference=float(difference),
            low=float(low),
            high=float(high),
            better=("first" if gain > 0 else "other") if gain else None,
            sure=float(np.mean(wins > 0) + np.mean(wins == 0) / 2) if gain else None,
        )
    return found


def chance(measured: Measured) -> dict[str, float]:
    """What rankings at random would reach on average, and the median of their ranks: of the same queries."""
    total, density = measured.references, best_rank_densities(measured)
    ranks = np.arange(1, total + 1)
    cumulative = np.cumsum(density).clip(max=1)
    gains = np.cumsum(1 / np.log2(np.arange(2, DEPTH + 2)))
    ideal = gains[np.minimum(measured.counts, DEPTH) - 1]
    lowest, highest = (np.searchsorted(cumulative, 0.5 + margin) + 1 for margin in (-1e-9, 1e-9))
    return {
        "MRR": float(density @ (1 / ranks)),
        **{f"Hit@{k}": float(cumulative[k - 1]) if k < total else 1.0 for k in HITS},
        f"nDCG@{DEPTH}": float(np.mean(np.array(measured.counts) / total * gains[min(DEPTH, total) - 1] / ideal)),
        MEDIAN: float(lowest + min(highest, total)) / 2,
    }


def best_rank_densities(measured: Measured) -> np.ndarray:
    """How probable each rank (references,) is of a query's best relevant reference, ranked at random."""
    density = np.zeros(measured.references)
    for count, times in Counter(measured.counts).items():
        density += times / len(measured.counts) * best_rank_density(measured.references, count)
    return density


def best_rank_density(total: int, count: int) -> np.ndarray:
    """How probable each rank (total,) is of the best of `count` relevant references, ranked at random."""
    places = np.arange(total)
    beyond = np.cumprod((total - count - places).clip(min=0) / (total - places))  # that it ranks after the place
    return -np.diff(beyond, prepend=1.0)


def common_items(first: Sequence[str], other: Sequence[str]) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    """The indices of the files that both have, in the order of the first, and those that either alone has.

    Files are the same if their names are, or else without the extension, where that leaves no doubt.
    """
    places = {file: index for index, file in enumerate(other)}
    pairs = {index: places[file] for index, file in enumerate(first) if file in places}
    taken = set(pairs.values())
    ours = _by_name(first, [index for index in range(len(first)) if index not in pairs])
    theirs = _by_name(other, [index for index in range(len(other)) if index not in taken])
    pairs |= {ours[name]: theirs[name] for name in ours.keys() & theirs.keys()}
    taken = set(pairs.values())
    only_first = [file for index, file in enumerate(first) if index not in pairs]
    only_other = [file for index, file in enumerate(other) if index not in taken]
    return sorted(pairs.items()), only_first, only_other


def _by_name(files: Sequence[str], indices: Sequence[int]) -> dict[str, int]:
    """Those of `indices` whose files are alone in having their path without the extension, by that."""
    names = {index: str(PurePosixPath(files[index]).with_suffix("")) for index in indices}
    uses = Counter(names.values())
    return {name: index for index, name in names.items() if uses[name] == 1}
