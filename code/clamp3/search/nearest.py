"""The rows closest to a query among very many, without reading them all.

Rows are kept a second time, compressed to a byte a number and grouped around centroids (faiss). A search looks at the
groups closest to the query, and what it finds there is scored by the rows themselves.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.search.ranking import spans

BLOCK = 16_384  # rows that are read at once
ROWS_A_GROUP = 500  # on average
TRAINING_ROWS = 40  # for each centroid, which are enough for faiss
PROBED = 48, 1 / 42  # how many groups a search looks at, or what share of them if that is more
CANDIDATES = 20  # for each row that is asked for, scored anew
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
    """Finds rows (n, hidden) of length one by their cosine with a query, nearly always the closest ones."""

    def __init__(self, index: Any):
        """`index` is a faiss index."""
        self.index = index
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
        for part in spans(count, BLOCK):
            index.add(np.ascontiguousarray(rows[part]))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> "Nearest":
        """Map the file that `save` wrote. It must be known to be whole: faiss does not look."""
        faiss = faiss_module()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY))

    def save(self, path: Path) -> int:
        """Write the index to `path`, whole or not at all. Returns its checksum (CRC-32)."""
        faiss, checksum = faiss_module(), 0
        with atomic_write(path) as file:

            def write(block: bytes) -> None:
                nonlocal checksum
                file.write(block)
                checksum = zlib.crc32(block, checksum)

            faiss.write_index(self.index, faiss.PyCallbackIOWriter(write))
            file.flush()
            os.fsync(file.fileno())
        return checksum

    @property
    def count(self) -> int:
        """How many rows it knows, from the first."""
        return self.index.ntotal

    def search(
        self, query: np.ndarray, rows: np.ndarray, k: int, allowed: np.ndarray | None, others: np.ndarray
    ) -> Found:
        """The k rows closest to `query` (hidden,) in the groups closest to it and among `others`, by their indices.

        `allowed` (n,) tells which rows may be found; None: all.
        """
        faiss = faiss_module()
        least, share = PROBED
        groups = min(self.index.nlist, max(least, round(share * self.index.nlist)))
        options = faiss.SearchParametersIVF(nprobe=groups)
        if allowed is not None:
            bits = np.packbits(allowed[: self.count], bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            options.sel = selector
        _, found = self.index.search(query[None], min(k * CANDIDATES, self.count), params=options)
        return best_of(np.concatenate([found[0][found[0] >= 0], others]), query, rows, k)


def best_of(found: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The k rows closest to `query` among those `found`, best first, equal ones in their order."""
    found = np.sort(found)
    cosines = rows[found] @ query
    order = np.argsort(-cosines, kind="stable")[:k]
    return found[order], cosines[order]
