"""What rows of an index take on disk and in processor time where clamp3_index.py export writes them: 20,000 of them.

    python benchmarks/index_export.py
It needs pyarrow and lancedb. Features are random, 768 numbers of length one; paths have 29 characters.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from clamp3.search.exporting import export
from clamp3.search.index import Entry, Index

ROWS = 20_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder, "index"))
        entries = [Entry(Path(f"/music/collection/{n:07}.abc"), "symbolic", "0" * 64, 1000, 0) for n in range(ROWS)]
        with index.writing():
            index.add(entries, np.random.default_rng(0).normal(size=(ROWS, 768)).astype(np.float32))
        for to in ("parquet", "lance"):
            out, start = Path(folder, to), time.process_time()
            export(index, str(out), to)
            rate = ROWS / (time.process_time() - start)
            size = sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file())
            print(f"{to}: {size / ROWS:.0f} bytes a row, {rate:,.0f} rows a second of processor time")


if __name__ == "__main__":
    main()
