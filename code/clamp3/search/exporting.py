"""An index as a Parquet file, a LanceDB table or a Qdrant collection: what each file is, and its feature.

These need pyarrow, lancedb and qdrant-client, which are imported when they are first used.
"""

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.search.index import Index
from clamp3.search.integrity import check_entry, record_of

BLOCK = 10_000  # rows at once
UPSERT = 500  # points in a request to Qdrant
Row = dict[str, Any]


def export(index: Index, out: str, to: str, name: str = "clamp3") -> int:
    """Write all files of `index`: `to` is one of TARGETS. Returns how many there are.

    `out` is a file ("parquet"), the folder of a database ("lance"), or a folder or the address of a server ("qdrant");
    `name` is that of the table or collection there. Raises UserError where it is there already, where the package is
    missing, and Damaged where a record or a feature is not what was written. Nothing is left of what has failed.
    """
    with index.snapshot():
        if not len(index):
            raise UserError(f"{index.folder} is empty: there is nothing to export")
        TARGETS[to](index, out, name)
        return len(index)


def rows(index: Index) -> Iterator[list[Row]]:
    """The rows by the BLOCK: file, modality, metadata (a dict), fingerprint of the weights, feature (hidden,).

    A name that is not UTF-8 has \\xNN for the bytes that are not.
    """
    entries, fingerprint = index.entries(), index.meta.get("fingerprint")
    while block := list(islice(entries, BLOCK)):
        for entry in block:
            check_entry(index.contents, record_of(entry))
        yield [
            {
                "file": os.fsencode(entry.path).decode("utf-8", "backslashreplace"),
                "modality": entry.modality,
                "metadata": entry.metadata,
                "fingerprint": fingerprint,
                "feature": index.features[entry.row],
            }
            for entry in block
        ]


def _package(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{install} is not installed: pip install {install}") from None


def _arrow(index: Index) -> tuple[Any, Iterator[Any]]:
    """The schema, and the blocks as record batches; metadata is JSON."""
    arrow = _package("pyarrow", "pyarrow")
    texts = [(column, arrow.string()) for column in ("file", "modality", "metadata", "fingerprint")]
    facts = {"weights": str(index.meta.get("weights"))}
    schema = arrow.schema([*texts, ("feature", arrow.list_(arrow.float32(), index.features.shape[1]))], facts)
    blocks = ([{**row, "metadata": json.dumps(row["metadata"])} for row in block] for block in rows(index))
    return schema, (arrow.RecordBatch.from_pylist(block, schema) for block in blocks)


def _to_parquet(index: Index, out: str, _name: str) -> None:
    parquet = _package("pyarrow.parquet", "pyarrow")
    schema, batches = _arrow(index)
    if os.path.lexists(out):
        raise _is_there(out, "remove it or give another name")
    with _written(out), atomic_write(Path(out)) as file, parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _to_lance(index: Index, out: str, name: str) -> None:
    lancedb = _package("lancedb", "lancedb")
    schema, batches = _arrow(index)
    with _written(out):
        database = lancedb.connect(out)
        try:
            table = database.create_table(name, schema=schema)
        except ValueError as error:
            raise _is_there(f"a table {name} in {out}") if "already exists" in str(error) else error from None
        try:
            for batch in batches:  # in this thread, as the index is read; LanceDB would do so in one of its own
                table.add(batch)
        except BaseException:
            database.drop_table(name)
            raise


def _to_qdrant(index: Index, out: str, name: str) -> None:
    qdrant = _package("qdrant_client", "qdrant-client")
    at = {"url": out} if out.startswith(("http://", "https://")) else {"path": out}
    with _written(out), contextlib.closing(qdrant.QdrantClient(**at)) as client:
        if client.collection_exists(name):
            raise _is_there(f"a collection {name} in {out}")
        _fill(client, qdrant.models, name, index)


def _fill(client: Any, models: ModuleType, name: str, index: Index) -> None:
    """A new collection of cosines; what a row says of its file is the payload."""
    size = models.VectorParams(size=index.features.shape[1], distance=models.Distance.COSINE)
    client.create_collection(name, size)
    try:
        number = 0
        for block in rows(index):
            for start in range(0, len(block), UPSERT):
                points = []
                for row in block[start : start + UPSERT]:
                    vector = row.pop("feature").tolist()
                    points.append(models.PointStruct(id=number, vector=vector, payload=row))
                    number += 1
                client.upsert(name, points, wait=True)
    except BaseException:
        client.delete_collection(name)
        raise


@contextlib.contextmanager
def _written(out: str) -> Iterator[None]:
    """A block that writes to `out`; what goes wrong there becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # those of clients, of their transports and of Rust are of many kinds
        raise UserError(f"{out} cannot be written: {' '.join(str(error).split())}") from error


def _is_there(what: str, way_out: str = "remove it, or give another by --name") -> UserError:
    return UserError(f"there is {what} already: {way_out}")


TARGETS: dict[str, Callable[[Index, str, str], None]] = {
    "parquet": _to_parquet,
    "lance": _to_lance,
    "qdrant": _to_qdrant,
}
