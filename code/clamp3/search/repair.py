"""What is broken in an index, and a whole one made of what is not: the work of clamp3_index.py check and repair."""

import contextlib
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.io.files import remove_orphans
from clamp3.io.reports import FileIssue
from clamp3.search.index import NOTED, Index, locked
from clamp3.search.integrity import (
    COLUMNS,
    COLUMNS_1,
    DATABASE,
    FILES,
    FORMAT,
    Contents,
    Damaged,
    Entry,
    accessible,
    check_entry,
    check_pages,
    connect,
    damages,
    entry_of,
    explained,
    facts_problem,
    map_features,
    map_passages,
    nearest_problem,
    note_verified,
    passage_type,
    read_contents,
    read_facts,
    read_slices,
    slice_problem,
    stored_path,
    write_database,
)
from clamp3.search.passages import Slice
from clamp3.search.store import is_index, missing_index

PAGE = 4096  # bytes of the database's first page, which says where its tables are


def check(folder: Path) -> list[FileIssue]:
    """What is broken in the index in `folder`: its files, with a sentence each. All of them are read.

    Raises UserError where there is no index, or one of a later version of this code.
    """
    return [FileIssue(str(damage.file), damage.what) for damage in _damages(folder)]


def _damages(folder: Path) -> list[Damaged]:
    found: list[Damaged] = []
    try:
        if not is_index(folder):
            raise missing_index(folder)
        with accessible(folder), explained(folder), contextlib.closing(connect(folder / DATABASE)) as database:
            database.execute("BEGIN")
            found.extend(check_pages(folder, database))
            contents = read_contents(folder, database)
            found.extend(damages(contents, database))
            files = {kind: contents.facts[kind] for kind in FILES if kind in contents.facts}
            if "nearest" in files and (problem := nearest_problem(folder, contents.facts, look=True)):
                found.append(Damaged(folder / files["nearest"], problem))
            if not found and len(contents.features) >= NOTED:
                note_verified(folder, [DATABASE, *files.values()])
    except Damaged as damage:
        found.append(damage)
    return found


def repair(folder: Path) -> list[FileIssue]:
    """Make the index in `folder` whole again. Returns the files that it no longer has, each with the reason.

    What can be trusted stays. Raises UserError where there is no index, or one of a later version of this code.
    """
    dropped: list[FileIssue] = []
    if not is_index(folder):
        raise missing_index(folder)
    with locked(folder), explained(folder):
        remove_orphans(folder)
        if any(not damage.file.match("nearest-*") for damage in _damages(folder)):
            with accessible(folder):
                dropped = _rewrite(folder)
    index = Index(folder)
    with contextlib.closing(index), index.writing():
        index.compact()
    return dropped


@dataclass
class Salvaged:
    """What can be read of a database."""

    facts: dict[str, Any] | None  # None where neither copy can be trusted
    records: list[tuple]
    gone: set[int]
    slices: list[Slice]  # which nothing vouches for


def _rewrite(folder: Path) -> list[FileIssue]:
    """Write a new database with all that can be trusted of the old one; returns what cannot."""
    with tempfile.TemporaryDirectory() as scratch:
        salvaged = _salvaged(folder, Path(scratch))
    facts = salvaged.facts or {}
    whole = _whole_rows(folder, facts), _whole_passages(folder, facts)
    contents = Contents(folder, FORMAT, facts, np.zeros(0, np.int64), *whole)
    kept: dict[Path, Entry] = {}
    dropped = []
    for record in salvaged.records:
        contents.version = FORMAT if len(record) == len(COLUMNS.split(",")) else 1
        try:
            check_entry(contents, record)
            entry = entry_of(record)
            kept[entry.path] = replace(entry, feature_sum=zlib.crc32(contents.features[entry.row]))
        except Damaged as damage:
            reason = damage.what if salvaged.facts else "cannot be trusted: what made the features cannot be read"
            dropped.append(FileIssue(stored_path(record[1]), f"{damage.file.name} {reason}"))
    contents.version = FORMAT
    slices = _whole_slices(contents, kept.values(), salvaged.slices, dropped)
    free = set(range(len(contents.features))) - {entry.row for entry in kept.values()}
    if lost := free - salvaged.gone - {record[0] for record in salvaged.records}:
        dropped.append(FileIssue("?", f"{DATABASE} is damaged: the names of {len(lost)} files cannot be read"))
    write_database(folder, facts | {"rows": len(contents.features)}, kept.values(), sorted(free), slices)
    return dropped


def _whole_slices(
    contents: Contents, kept: Iterable[Entry], slices: Iterable[Slice], dropped: list[FileIssue]
) -> list[Slice]:
    """Those of `slices` that are what was written; `dropped` takes the files whose passages are not."""
    by_row, whole, end = {entry.row: entry for entry in kept}, [], 0
    for found in slices:
        entry = by_row.get(found.row)
        if entry and not slice_problem(contents, found, entry.hash) and found.first >= end:
            whole.append(found)
            end = found.first + found.count
    if "with_passages" in contents.facts:
        lost = by_row.keys() - {found.row for found in whole}
        reason = "its passages cannot be trusted; the file itself is still in the index"
        made = {found.row for found in slices} if whole else lost
        dropped += [FileIssue(str(by_row[row].path), reason) for row in sorted(lost & made)]
    return whole


def _whole_passages(folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """The passages that are there, all or fewer; `facts` is changed to what they allow."""
    path, width = folder / facts.get("passages", ""), passage_type(facts).itemsize
    there = path.stat().st_size // width if "passages" in facts and path.is_file() else 0
    facts["passage_rows"] = min(facts.get("passage_rows", 0), there)
    if not facts["passage_rows"]:
        facts.pop("passages", None)
    return map_passages(folder, facts)


def _whole_rows(folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """The rows (n, hidden) of the features that are there, all or fewer; `facts` is changed to what they allow."""
    path, width = folder / facts.get("features", ""), 4 * facts.get("hidden", 0)
    there = path.stat().st_size // width if width and path.is_file() else 0
    facts["rows"] = min(facts.get("rows", 0), there)
    if facts.get("nearest_rows", 0) > facts["rows"]:  # to be made anew
        facts["nearest_rows"] = facts["nearest_sum"] = 0
    if not facts["rows"]:
        facts.pop("nearest", None)
    return map_features(folder, facts)


def _salvaged(folder: Path, scratch: Path) -> Salvaged:
    """What can be read of the database in `folder`, which stays as it is; `scratch` is an empty folder."""
    copy = scratch / DATABASE
    shutil.copyfile(folder / DATABASE, copy)
    found = _read(copy)
    if found.facts is None:  # the first page is the same in all indexes, but for counts that SQLite finds out
        (scratch / "new").mkdir()
        write_database(scratch / "new", {}, (), ())
        page = bytearray((scratch / "new" / DATABASE).read_bytes()[:PAGE])
        page[28:32] = bytes(4)  # how many pages there are
        with open(copy, "r+b") as file:
            file.write(page)
        again = _read(copy)
        found = again if again.facts is not None or len(again.records) > len(found.records) else found
    return found


def _read(path: Path) -> Salvaged:
    with contextlib.closing(connect(path)) as database:
        columns = COLUMNS
        try:
            database.execute(f"SELECT {COLUMNS} FROM entries LIMIT 0")
        except sqlite3.Error:
            columns = COLUMNS_1
        facts = _facts(database)
        records = _records(database, columns, facts.get("rows", 0) if facts else 0)
        if columns == COLUMNS and facts is not None and "sum" not in facts:  # of format 1, behind the other first page
            facts = facts if all(record[-2:] == (None, None) for record in records) else None
            records = [record[:-2] for record in records] if facts else records
        gone: set[int] = set()
        with contextlib.suppress(sqlite3.Error):
            gone.update(row for (row,) in database.execute("SELECT row FROM gone"))
        slices: list[Slice] = []
        with contextlib.suppress(sqlite3.Error):
            slices = read_slices(database)
    return Salvaged(facts, records, gone, slices)


def _facts(database: sqlite3.Connection) -> dict[str, Any] | None:
    """The facts, or their spare copy, whichever can be trusted."""
    found = []
    for table in ("facts", "spare_facts"):
        with contextlib.suppress(sqlite3.Error):
            found.append(read_facts(database, table))
    for facts in found:
        if not facts_problem(facts, FORMAT):
            return facts
    return found[0] if found and "sum" not in found[0] and not facts_problem(found[0], 1) else None


def _records(database: sqlite3.Connection, columns: str, rows: int) -> list[tuple]:
    """The records that can be read, if need be one by one."""
    found: dict[int, tuple] = {}
    select = f"SELECT {columns} FROM entries"
    try:
        found.update((record[0], record) for record in database.execute(f"{select} ORDER BY row"))
    except sqlite3.Error:
        for row in range(rows):
            with contextlib.suppress(sqlite3.Error):
                if record := database.execute(f"{select} WHERE row = ?", (row,)).fetchone():
                    found[row] = record
    return list(found.values())
