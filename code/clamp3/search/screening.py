"""How many references have at least a given cosine with each query, most of them told by a few of their numbers.

Features are turned so that their first numbers hold the most (principal components). What the others add to a cosine
is at most the product of the two lengths that are left (Cauchy and Schwarz). Where that cannot change the answer, it
is known; the comparisons in doubt are made again with four times the numbers, then with all, and in float64 where the
rounding of float32 could decide. So the answer is exact whatever the features are. How much is in doubt depends on
them, and a sample tells before whether whole products cost less.
"""

from dataclasses import dataclass

import numpy as np

LARGE = 500_000_000  # comparisons, from which it is worth while
WIDTHS = 16, 24, 32, 48, 64, 96, 128  # numbers of a feature, one of which is looked at first
FURTHER = 4  # times as many are looked at next
ROUNDING = 1e-5  # more than the error of a float32 product of rows of length one
ROWS = 2048  # queries of a thread at once
# Rows in a product, and the multiplications of one that BLAS does on the thread that asks for it: our threads do not
# wait for its own.
TOGETHER, ALONE = 32, 250_000
GATHERED = 196_608  # numbers of features that are copied at once
SAMPLE = 2048  # rows of each side that tell the principal components
TRIED = 256, 4096  # queries and references that tell the cost
# What is paid, in the time that one more number of a comparison takes in a whole product: for counting there, for
# looking at one in a small product and for a number in that; for a pair that may count; for looking again at one, and
# for a number of that.
COUNTING, LOOKING, SMALL = 40, 30, 1.8
FOUND, AGAIN, NUMBER = 800, 1500, 24


@dataclass(frozen=True)
class Level:
    """The first numbers of queries (n, width) and references (m, width), and what the others may add.

    That is at most the product of the `rests` of the two, (n,) and (m,), rounding included.
    """

    queries: np.ndarray
    references: np.ndarray
    query_rests: np.ndarray
    reference_rests: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, references: np.ndarray, basis: np.ndarray | None = None) -> "Level":
        """Of float32 rows (n, hidden) and (m, hidden), along the columns of `basis` (hidden, width); None: all."""
        first, second = (side if basis is None else side @ basis for side in (queries, references))
        return cls(first, second, rests(queries, first), rests(references, second))


def rests(features: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """The lengths (n,) that `heads` (n, width) leave of the features, made longer by what rounding may do."""
    squares, known = (np.einsum("nh,nh->n", rows, rows, dtype=np.float64) for rows in (features, heads))
    longer = np.sqrt(np.maximum(squares - known, 0) + ROUNDING)
    return np.where(squares > 0, longer, 1e-7).astype(np.float32)  # products with zeros are exact


class Screen:
    """Counts the references (m, hidden) that have at least a given cosine with a query, of (n, hidden).

    All are float32, of length one or zero.
    """

    def __init__(self, queries: np.ndarray, references: np.ndarray, basis: np.ndarray, width: int):
        first, second = (Level.of(queries, references, basis[:, :size]) for size in (width, FURTHER * width))
        self.levels = first, second, Level.of(queries, references)
        self.heads = np.hstack([first.references, np.ones((len(references), 1), np.float32)])

    @classmethod
    def worth_while(cls, queries: np.ndarray, references: np.ndarray, least: np.ndarray) -> "Screen | None":
        """With what makes it quickest for cosines of at least `least` (n,); None where whole products are quicker."""
        if len(queries) * len(references) < LARGE:
            return None
        basis = principal(np.concatenate([evenly(queries, SAMPLE), evenly(references, SAMPLE)]))
        few, many = TRIED
        paid = costs(evenly(queries, few), evenly(references, many), evenly(least, few), basis)
        width = min(paid, key=paid.__getitem__)
        return cls(queries, references, basis, width) if width < queries.shape[1] else None

    def ahead(self, rows: slice, least: np.ndarray, owners: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How many references have at least the cosines `least` (rows, depth) with these queries: (rows, depth).

        Pairs of queries `owners`, counted from the first of `rows`, and references `columns` do not count.
        """
        first, ahead = self.levels[0], np.zeros(least.shape, np.int64)
        width = first.queries.shape[1] + 1
        size = max(1, ALONE // (TOGETHER * width))
        for place, wanted in enumerate(least.T):
            queries = np.zeros((-(-len(least) // TOGETHER) * TOGETHER, width), np.float32)
            queries[: len(least)] = np.hstack([first.queries[rows], -wanted[:, None]]) / first.query_rests[rows, None]
            queries = queries.reshape(-1, TOGETHER, width)
            for start in range(0, len(self.heads), size):
                block = slice(start, start + size)
                bounds = first.reference_rests[block]
                margins = (queries @ self.heads[block].T).reshape(-1, len(bounds))[: len(least)]
                inside = (columns >= block.start) & (columns < block.stop)
                margins[owners[inside], columns[inside] - start] = -np.inf
                found = np.flatnonzero(margins >= -bounds)
                query, reference = np.divmod(found, len(bounds))
                counted = margins.reshape(-1)[found] > bounds[reference]
                doubtful = np.flatnonzero(~counted)
                of = query[doubtful]
                counted[doubtful] = self.reached(of + rows.start, reference[doubtful] + start, wanted[of])
                ahead[:, place] += np.bincount(query[counted], minlength=len(ahead))
        return ahead

    def reached(self, query: np.ndarray, reference: np.ndarray, least: np.ndarray) -> np.ndarray:
        """Which pairs, by their indices (p,), have at least these cosines (p,): bool."""
        reached, doubtful = np.zeros(len(query), bool), np.arange(len(query))
        for level in self.levels[1:]:
            of, to = query[doubtful], reference[doubtful]
            margins = products(level.queries, of, level.references, to) - least[doubtful]
            bounds = level.query_rests[of] * level.reference_rests[to]
            reached[doubtful] = margins > bounds
            doubtful = doubtful[np.abs(margins) <= bounds]
        whole = self.levels[-1]
        exact = products(whole.queries, query[doubtful], whole.references, reference[doubtful], np.float64)
        reached[doubtful] = exact >= least[doubtful]
        return reached


def products(
    queries: np.ndarray, query: np.ndarray, references: np.ndarray, reference: np.ndarray, dtype: type = np.float32
) -> np.ndarray:
    """Inner products (p,) of pairs of rows, by their indices (p,)."""
    found: np.ndarray = np.empty(len(query), dtype)
    size = max(1, GATHERED // queries.shape[1])
    for start in range(0, len(query), size):
        part = slice(start, start + size)
        np.einsum("ph,ph->p", queries[query[part]], references[reference[part]], dtype=dtype, out=found[part])
    return found


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spaced."""
    return rows[:: max(1, -(-len(rows) // count))]


def principal(rows: np.ndarray) -> np.ndarray:
    """An orthogonal basis (hidden, hidden), float32, along whose first columns rows (n, hidden) are longest."""
    _, vectors = np.linalg.eigh(rows.T @ rows.astype(np.float64))
    return np.ascontiguousarray(vectors[:, ::-1].astype(np.float32))


def costs(queries: np.ndarray, references: np.ndarray, least: np.ndarray, basis: np.ndarray) -> dict[int, float]:
    """What a comparison of these costs, by the width that is looked at first; the whole one is for whole products."""
    hidden = queries.shape[1]
    widths = [width for width in WIDTHS if width < hidden]
    found: dict[int, float] = {}  # the share of comparisons that may count, by width
    doubtful: dict[int, float] = {}  # and of those in doubt
    for width in {min(width, hidden) for first in (*widths, hidden) for width in (first, FURTHER * first)}:
        level = Level.of(queries, references, basis[:, :width])
        margins = level.queries @ level.references.T - least[:, None]
        bounds = np.outer(level.query_rests, level.reference_rests)
        found[width] = float(np.mean(margins >= -bounds))
        doubtful[width] = float(np.mean(np.abs(margins) <= bounds))
    paid = {hidden: float(hidden + COUNTING)}
    for width in widths:
        further = min(FURTHER * width, hidden)
        again = (AGAIN + NUMBER * further) * doubtful[width] + (AGAIN + NUMBER * hidden) * doubtful[further]
        paid[width] = (
            LOOKING + SMALL * width + FOUND * found[width] + again + 4 * (AGAIN + NUMBER * hidden) * doubtful[hidden]
        )
    return paid
