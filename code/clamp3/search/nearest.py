"""The rows closest to a query among very many, without reading them all.

Rows are kept a second time, compressed to a byte a number and grouped around centroids (faiss). An approximate search
looks at the groups closest to the query; an exact one looks at all, and goes on until the error of compression cannot
have hidden a better row. In both, what is found is scored by the rows themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.search.ranking import spans

BLOCK = 16_384  # rows that are read at once
ROWS_A_GROUP = 500  # on average
TRAINING_ROWS = 40  # for each centroid, which are enough for faiss
PROBED = 64, 1 / 32  # how many groups an approximate search looks at, or what share of them if that is more
CANDIDATES = 20  # for each row that is asked for, scored anew
EXACT_CANDIDATES = 2000  # for each row that is asked for, looked through by an exact search at first
ROUNDING = 1e-5  # of faiss's sums
SEED = 0

Found = tuple[np.ndarray, np.ndarray]  # the indices of rows, and their cosines with the query


def faiss_module() -> Any:
    """The library. Raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("approximate search needs faiss: pip install faiss-cpu") from None
    return faiss


class Nearest:
    """Finds rows (n, hidden) of length one by their cosine with a query."""

    def __init__(self, index: Any, error: float):
        """`index` is a faiss index, `error` the greatest distance between a row and what it has kept of it."""
        self.index, self.error = index, error
        index.parallel_mode = 1  # a query's groups are shared out to the cores

    @classmethod
    def build(cls, rows: np.ndarray) -> "Nearest":
        """Train on some of `rows` (n, hidden), float32 of length one, which may be a map of a file, and add all."""
        faiss = faiss_module()
        count, hidden = rows.shape
        groups = max(1, count // ROWS_A_GROUP)
        chosen = np.sort(np.random.default_rng(SEED).permutation(count)[: groups * TRAINING_ROWS])
        index = faiss.index_factory(hidden, f"IVF{groups},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False
        index.cp.min_points_per_centroid = 1  # else it complains of small sets
        index.train(rows[chosen])
        parts = [(rows[part].min(axis=0), rows[part].max(axis=0)) for part in spans(count, BLOCK)]
        lows, highs = zip(*parts, strict=True)
        index.sq.train(np.stack([np.min(lows, axis=0), np.max(highs, axis=0)]))  # so that no number is cut off
        error = 0.0
        for part in spans(count, BLOCK):
            block = np.ascontiguousarray(rows[part])
            index.add(block)
            kept = index.sq.decode(index.sq.compute_codes(block))
            error = max(error, float(np.linalg.norm(block - kept, axis=1).max()))
        return cls(index, error)

    @classmethod
    def load(cls, path: Path, error: float) -> "Nearest":
        """Map the file that `save` wrote."""
        faiss = faiss_module()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY), error)

    def save(self, path: Path) -> None:
        """Write the index to `path`, whole or not at all."""
        with atomic_write(path) as file:
            faiss_module().write_index(self.index, file.name)

    @property
    def count(self) -> int:
        """How many rows it knows, from the first."""
        return self.index.ntotal

    def approximate(self, query: np.ndarray, rows: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The k rows closest to `query` (hidden,) that are found in the groups closest to it: indices and cosines.

        `allowed` (n,) tells which rows may be found.
        """
        least, share = PROBED
        groups = min(self.index.nlist, max(least, round(share * self.index.nlist)))
        found, _ = self._candidates(query, k * CANDIDATES, groups, allowed)
        return best_of(found, query, rows, k)

    def exact(self, query: np.ndarray, rows: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found | None:
        """The k rows closest to `query` (hidden,), equal ones in their order: indices and cosines.

        None where so many are nearly as close that reading all rows is faster.
        """
        count = k * EXACT_CANDIDATES
        while count <= self.count // 10:
            found, scores = self._candidates(query, count, self.index.nlist, allowed)
            _, cosines = best_of(found[: k * CANDIDATES], query, rows, k)
            needed = np.searchsorted(-scores, self.error + ROUNDING - cosines[-1]) if len(cosines) else 0
            if needed < len(found) or len(found) < count:  # no other row can be as close
                return best_of(found[:needed], query, rows, k)
            count *= 10
        return None

    def _candidates(self, query: np.ndarray, count: int, groups: int, allowed: np.ndarray | None) -> Found:
        """The `count` rows closest by what is kept of them, best first, and their scores; fewer where there are."""
        faiss = faiss_module()
        options = faiss.SearchParametersIVF(nprobe=groups)
        if allowed is not None:
            bits = np.packbits(allowed[: self.count], bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            options.sel = selector
        scores, found = self.index.search(query[None], min(count, self.count), params=options)
        there = found[0] >= 0
        return found[0][there], scores[0][there]


def best_of(found: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The k rows closest to `query` among those `found`, best first, equal ones in their order."""
    found = np.sort(found)
    cosines = rows[found] @ query
    order = np.argsort(-cosines, kind="stable")[:k]
    return found[order], cosines[order]
