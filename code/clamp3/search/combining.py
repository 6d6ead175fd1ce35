"""Several queries as one, and answers that differ from each other."""

from collections.abc import Sequence

import numpy as np

from clamp3.errors import UserError
from clamp3.search.ranking import normalized

WITHOUT = 0.5  # what a cosine with a query that is subtracted counts, where one that is added counts 1
DIVERSE = 0.3  # what being unlike other answers counts, where that is asked for; closeness to the query: the rest
POOL = 100  # candidates from which diverse answers are chosen, at least
POOL_FACTOR = 10  # and for each answer that is wanted
VANISHED = 1e-3  # of a combined query's length, below which nothing but rounding is left of it


def combined_query(
    query: np.ndarray, also: Sequence[np.ndarray] = (), without: Sequence[np.ndarray] = (), weight: float = WITHOUT
) -> np.ndarray:
    """One query (hidden,) of length one that stands for several, each a feature (hidden,) of any length.

    It is the direction of `query` + Σ `also` - `weight` · Σ `without`, all of length one. So it ranks files by the sum
    of their cosines with the queries that are added, minus `weight` times those with the queries that are subtracted,
    and it can be used wherever a single query can: among passages, in approximate search, and with a calibration.
    A `query` alone stays as it is. Raises UserError where the queries cancel each other out, or differ in width.
    """
    parts = [np.asarray(part, np.float32).reshape(-1) for part in (query, *also, *without)]
    if len({part.size for part in parts}) > 1:
        raise UserError("the queries have features of different widths, which different models made")
    if len(parts) == 1:
        return normalized(parts[0][None])[0]
    weights = np.array([1.0] * (1 + len(also)) + [-weight] * len(without), np.float32)
    total = weights @ normalized(np.stack(parts))
    if np.linalg.norm(total) < VANISHED:
        raise UserError("the queries cancel each other out: nothing is left to search for")
    return normalized(total[None])[0]


def pool_size(k: int) -> int:
    """How many candidates `diverse` should choose k answers from."""
    return max(POOL, POOL_FACTOR * k)


def diverse(cosines: np.ndarray, features: np.ndarray, k: int, share: float = DIVERSE) -> np.ndarray:
    """The places (k,) of candidates that are close to the query and unlike each other, in the order of choice.

    Maximal marginal relevance (Carbonell and Goldstein 1998): the next answer is always that of the largest
    (1 - `share`) · cosine with the query - `share` · largest cosine with an answer that is there. `cosines` (n,) are
    the candidates' with the query, `features` (n, hidden) theirs. A `share` of 0 leaves the order by cosine, 1 asks
    for unlike ones alone, behind a first that is the closest. Equal candidates keep their order.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of diversity is from 0 to 1, not {share}")
    unit, count = normalized(features), min(k, len(cosines))
    chosen = np.zeros(count, np.int64)
    closest = np.full(len(cosines), -np.inf, np.float32)  # to what has been chosen
    left = np.ones(len(cosines), bool)
    for place in range(count):
        scores = (1 - share) * cosines - share * closest if place else np.asarray(cosines)
        chosen[place] = best = int(np.argmax(np.where(left, scores, -np.inf)))
        left[best] = False
        closest = np.maximum(closest, unit @ unit[best])
    return chosen
