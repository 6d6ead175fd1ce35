"""An index as a Parquet file, a LanceDB table or a Qdrant collection: what each file is, and its feature.

These need pyarrow, lancedb and qdrant-client, which are imported when they are first used.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.io.rows import name_in_row, package
from clamp3.search.engines import NAME, qdrant_client, reached
from clamp3.search.index import Index
from clamp3.search.integrity import check_entry, record_of

BLOCK = 10_000  # rows at once
UPSERT = 500  # points in a request to Qdrant
Row = dict[str, Any]


def export(index: Index, out: str, to: str, name: str = NAME, api_key: str | None = None) -> int:
    """Write all files of `index`: `to` is one of TARGETS. Returns how many there are.

    `out` is a file ("parquet"), the folder of a database ("lance"), or a folder or the address of a server ("qdrant");
    `name` is that of the table or collection there, and `api_key` for a server that wants one. Raises UserError where
    it is there already, where the package is missing, and Damaged where a record or a feature is not what was written.
    Nothing is left of what has failed.
    """
    with index.snapshot():
        if not len(index):
            raise UserError(f"{index.folder} is empty: there is nothing to export")
        TARGETS[to](index, out, name, api_key)
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
                "file": name_in_row(entry.path),
                "modality": entry.modality,
                "metadata": entry.metadata,
                "fingerprint": fingerprint,
                "feature": index.features[entry.row],
            }
            for entry in block
        ]


def _arrow(index: Index) -> tuple[Any, Iterator[Any]]:
    """The schema, and the blocks as record batches; metadata is JSON."""
    arrow = package("pyarrow", "pyarrow")
    texts = [(column, arrow.string()) for column in ("file", "modality", "metadata", "fingerprint")]
    facts = {"weights": str(index.meta.get("weights"))}
    schema = arrow.schema([*texts, ("feature", arrow.list_(arrow.float32(), index.features.shape[1]))], facts)
    blocks = ([{**row, "metadata": json.dumps(row["metadata"])} for row in block] for block in rows(index))
    return schema, (arrow.RecordBatch.from_pylist(block, schema) for block in blocks)


def _to_parquet(index: Index, out: str, _name: str, _api_key: str | None) -> None:
    parquet = package("pyarrow.parquet", "pyarrow")
    schema, batches = _arrow(index)
    if os.path.lexists(out):
        raise _is_there(out, "remove it or give another name")
    with reached(out, "written"), atomic_write(Path(out)) as file, parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _to_lance(index: Index, out: str, name: str, _api_key: str | None) -> None:
    lancedb = package("lancedb", "lancedb")
    schema, batches = _arrow(index)
    with reached(out, "written"):
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


def _to_qdrant(index: Index, out: str, name: str, api_key: str | None) -> None:
    models = package("qdrant_client", "qdrant-client").models
    with reached(out, "written"), contextlib.closing(qdrant_client(out, api_key)) as client:
        if client.collection_exists(name):
            raise _is_there(f"a collection {name} in {out}")
        _fill(client, models, name, index)


def _fill(client: Any, models: ModuleType, name: str, index: Index) -> None:
    """A new collection of cosines; what a row says of its file is the payload."""
    size = models.VectorParams(size=index.features.shape[1], distance=models.Distance.COSINE)
    client.create_collection(name, size, metadata={"weights": index.meta.get("weights")})
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


def _is_there(what: str, way_out: str = "remove it, or give another by --name") -> UserError:
    return UserError(f"there is {what} already: {way_out}")


TARGETS: dict[str, Callable[[Index, str, str, str | None], None]] = {
    "parquet": _to_parquet,
    "lance": _to_lance,
    "qdrant": _to_qdrant,
}
