"""The files of an index: what they hold, how it is read, and whether it is what was written.

index.sqlite has two tables of facts (the second is a spare copy of the first), a record for each entry, the rows that
no entry has any more, and which rows of passages-N.i8 are an entry's passages. Checksums (CRC-32) protect the facts,
each record, each entry's row in features-N.f32, each entry's passages, and the whole of nearest-N.faiss. Indexes of
format 1 have none: there, types, lengths and norms must be plausible. Those of format 2 have no passages, and those of
format 3 have no melodies in them: an index is of format 4 from the first passages on that it gets.

To read all of a large index at each start would take longer than a search, so verified.json keeps the size, times and
inode that its files had when they were last known to be whole: while they have these, they are trusted.
"""

import contextlib
import json
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.inputs.melodies import NO_MELODY
from clamp3.inputs.passages import BARS, LINES, SECONDS
from clamp3.io.files import atomic_write, parse_json
from clamp3.io.reports import printable, quoted
from clamp3.search.passages import Slice, row_type, slice_sum

DATABASE = "index.sqlite"
VERIFIED = "verified.json"
FORMAT = 4  # to be raised where older code cannot read what is written
WITH_PASSAGES = 3  # the format from which the tables are these
DATABASE_TIMEOUT = 60  # seconds to wait for another process's transaction
# By the facts that name them.
FILES = {"features": "features-{}.f32", "nearest": "nearest-{}.faiss", "passages": "passages-{}.i8"}
MOST_ROWS = 2**40
UNIT = 1e-3  # by which the norm of a row of format 1 may differ from one
SETTLED = 0.05  # seconds: file systems do not tell apart the times of two writes in a much shorter time
CHECKED_INDEXES = 20  # messages of SQLite's own check

RECORD = """
    row INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL, modality TEXT NOT NULL, hash TEXT NOT NULL,
    size INTEGER NOT NULL, modified INTEGER NOT NULL, metadata TEXT NOT NULL
"""
TABLES = {
    "facts": "CREATE TABLE facts (name TEXT PRIMARY KEY, value)",
    "entries": f"CREATE TABLE entries ({RECORD}, feature_sum INTEGER NOT NULL, record_sum INTEGER NOT NULL)",
    "by_hash": "CREATE INDEX by_hash ON entries (hash)",
    "gone": "CREATE TABLE gone (row INTEGER PRIMARY KEY)",
    "spare_facts": "CREATE TABLE spare_facts (name TEXT PRIMARY KEY, value)",
    "passages": "CREATE TABLE passages (row INTEGER PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL,"
    " unit TEXT NOT NULL, sum INTEGER NOT NULL)",
}
TABLES_2 = {name: sql for name, sql in TABLES.items() if name != "passages"}
TABLES_1 = {name: sql for name, sql in TABLES_2.items() if name != "spare_facts"} | {
    "entries": f"CREATE TABLE entries ({RECORD})"
}
COLUMNS_1 = "row, path, modality, hash, size, modified, metadata"
COLUMNS = f"{COLUMNS_1}, feature_sum, record_sum"


class Damaged(UserError):
    """A file of an index is missing or not what was written: `file` and `what`. The message says what to do."""

    def __init__(self, file: Path, what: str, remedy: str | None = None):
        what = printable(what)  # which may hold a name out of a damaged record
        usual = f"clamp3_index.py repair {quoted(file.parent)} mends the index"
        super().__init__(f"{file} {what}; {remedy or usual}")
        self.file, self.what = file, what


@dataclass(frozen=True)
class Entry:
    """A file of an index, as it was when it was embedded."""

    path: Path
    modality: str  # "text", "symbolic", "audio"; "feature" of one that came ready-made
    hash: str
    size: int  # bytes
    modified: int  # nanoseconds, by the file system's clock
    metadata: dict = field(default_factory=dict)
    row: int = -1
    feature_sum: int = 0  # checksum of its row


@dataclass
class Contents:
    """What the files of an index hold at a moment."""

    folder: Path
    version: int  # of the format
    facts: dict[str, Any]
    gone: np.ndarray  # (n,) int64: rows that no entry has
    features: np.ndarray  # (rows, hidden) float32, a map of the file; each of length one, or zero
    passages: np.ndarray  # (rows,) of `row_type`, a map of the file

    @property
    def columns(self) -> str:
        return COLUMNS if self.version > 1 else COLUMNS_1


# ---------- the database ----------


def connect(path: Path) -> sqlite3.Connection:
    """The database at `path`, which is not made if it is missing. Text that is not UTF-8 is read all the same."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=DATABASE_TIMEOUT)
    database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return database


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """A block in which errors of the database of an index become UserErrors that say what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        path, text = folder / DATABASE, str(error)
        if "locked" in text:
            raise UserError(f"{path} is in use by another process, which holds it for long; try again") from None
        if any(words in text for words in ("readonly", "unable to open", "full", "disk I/O")):
            raise UserError(f"{path} cannot be read or written: {text}") from None
        raise Damaged(path, f"cannot be read: {text}") from None


@contextlib.contextmanager
def accessible(folder: Path) -> Iterator[None]:
    """A block in which errors of the file system become UserErrors."""
    try:
        yield
    except BrokenPipeError:  # of the output
        raise
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read or written: {error.strerror or error}") from None


def write_database(
    folder: Path, facts: dict[str, Any], entries: Iterable[Entry], gone: Iterable[int], slices: Iterable[Slice] = ()
) -> None:
    """Put a new database, whole or not at all, in the place of any that the index has."""
    with atomic_write(folder / DATABASE) as file:
        with contextlib.closing(sqlite3.connect(file.name)) as database:
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + ";".join(TABLES.values()))
            write_facts(database, facts)
            insert_records(database, entries)
            database.executemany("INSERT INTO gone VALUES (?)", ((row,) for row in gone))
            insert_slices(database, slices)
            database.execute(f"PRAGMA user_version = {FORMAT if facts.get('melody') else WITH_PASSAGES}")
            database.commit()
        os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # of the former database: it must not be applied to this one
            os.unlink(folder / f"{DATABASE}-journal")
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on disk, where the system has a call for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_tables(folder: Path, database: sqlite3.Connection) -> int:
    """The format's version. Raises Damaged where the tables are not those of an index, UserError for later formats."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (journal,) = database.execute("PRAGMA journal_mode").fetchone()
    found = {
        name: squeezed(f"{sql}")
        for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        if not f"{name}".startswith("sqlite_")
    }
    expected = {name: squeezed(sql) for name, sql in {1: TABLES_1, 2: TABLES_2}.get(version, TABLES).items()}
    if version > FORMAT and found != expected:
        raise UserError(f"{folder} was made by a later version of this program (format {version}), which reads it")
    if version > FORMAT:
        what = f"says that a later version of this program made it (format {version}), but has the tables of this one"
        raise Damaged(folder / DATABASE, what)
    if version < 1 or journal != "delete" or found != expected:
        raise Damaged(folder / DATABASE, "is damaged: its tables are not those of an index")
    return version


def squeezed(sql: str) -> str:
    return re.sub(r"\s", "", sql)


def check_pages(folder: Path, database: sqlite3.Connection) -> Iterator[Damaged]:
    """What SQLite finds wrong with the structure of the database and with its indexes of paths and hashes."""
    for (message,) in database.execute(f"PRAGMA integrity_check({CHECKED_INDEXES})"):
        if message != "ok":
            yield Damaged(folder / DATABASE, f"is damaged: {' '.join(message.split())}")


# ---------- facts ----------


def read_facts(database: sqlite3.Connection, table: str = "facts") -> dict[str, Any]:
    return dict(database.execute(f"SELECT name, value FROM {table}"))


def write_facts(database: sqlite3.Connection, facts: dict[str, Any]) -> None:
    """Record `facts` in place of those that are there, in the caller's transaction."""
    facts = {name: value for name, value in facts.items() if value is not None}
    facts["sum"] = facts_sum(facts)
    for table in ("facts", "spare_facts"):
        database.execute(f"DELETE FROM {table}")
        database.executemany(f"INSERT INTO {table} VALUES (?, ?)", facts.items())


def facts_sum(facts: dict[str, Any]) -> int:
    return zlib.crc32(ascii(sorted(ascii(item) for item in facts.items() if item[0] != "sum")).encode())


def facts_problem(facts: dict[str, Any], version: int) -> str | None:
    """What is wrong with the facts, if anything: other files than the index's own are never named by sound ones."""
    if version > 1 and facts.get("sum") != facts_sum(facts):
        return "its facts are not those that were written"
    names = "rows", "hidden", "nearest_rows", "passage_rows", "melody"
    rows, hidden, known, passages, melody = numbers = [facts.get(name, 0) for name in names]
    if not all(isinstance(number, int) and 0 <= number <= MOST_ROWS for number in numbers):
        return "its facts are not numbers"
    if known > rows or (rows and not (hidden and "features" in facts)) or (passages and "passages" not in facts):
        return "its facts contradict each other"
    if melody not in (0, len(NO_MELODY)):
        return "its fingerprints of melodies have no length of such"
    for name, form in FILES.items():
        pattern = form.replace(".", r"\.").format(r"\d{1,18}")
        if name in facts and not (isinstance(facts[name], str) and re.fullmatch(pattern, facts[name], re.ASCII)):
            return f"its file of {name} has no name of such a file"
    made_by = (facts.get(name) for name in ("identity", "weights", "mert", "mert_name"))
    return None if all(isinstance(text, str | None) for text in made_by) else "it does not say what made it"


# ---------- entries and rows ----------


def record_of(entry: Entry) -> tuple:
    """What the table has of an entry: COLUMNS."""
    fields = os.fsencode(entry.path), entry.modality, entry.hash, entry.size, entry.modified
    record = (*fields, json.dumps(entry.metadata), entry.feature_sum)
    return (entry.row, *record, record_sum(record))


def insert_records(database: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    marks = ", ".join("?" * len(COLUMNS.split(",")))
    database.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})", map(record_of, entries))


def record_sum(record: Sequence) -> int:
    """The checksum of a record: of its path to its `feature_sum`. The row may change, for which that sum vouches."""
    path, *others = record
    text = "\n".join(map(str, others)).encode("utf-8", "surrogatepass")
    return zlib.crc32(text, zlib.crc32(path if isinstance(path, bytes) else b""))


def entry_of(record: Sequence) -> Entry:
    """The entry of a record, COLUMNS or COLUMNS_1. Raises ValueError where it is not what was written."""
    check_record_sum(record)
    row, path, modality, digest, size, modified, metadata, *sums = record
    types = (path, bytes), (modality, str), (digest, str), (size, int), (modified, int), (metadata, str)
    if not all(isinstance(*pair) for pair in types) or not path or b"\0" in path:
        raise ValueError("is of the wrong type")
    try:
        described = parse_json(metadata)
    except ValueError:
        described = None
    if not isinstance(described, dict):
        raise ValueError("has metadata that cannot be read")
    return Entry(Path(os.fsdecode(path)), modality, digest, size, modified, described, row, *sums[:1])


def check_record_sum(record: Sequence) -> None:
    """Raise ValueError where a record has a checksum, and that of another content."""
    if len(record) == len(COLUMNS.split(",")) and record[-1] != record_sum(record[1:-1]):
        raise ValueError("is not what was written")


def stored_path(path: Any) -> str:
    """The path in a record, for people: it may be damaged."""
    return os.fsdecode(path) if path and isinstance(path, bytes) else "a file"


def check_entry(contents: Contents, record: Sequence) -> None:
    """Raise Damaged where a record, or its row of features, is not what was written."""
    try:
        entry_of(record) if contents.version == 1 else check_record_sum(record)
        if not 0 <= record[0] < len(contents.features):
            raise ValueError("has a row that is not there")
    except ValueError as error:
        what = f"is damaged: what it has on {stored_path(record[1])} (row {record[0]}) {error}"
        raise Damaged(contents.folder / DATABASE, what) from None
    row = contents.features[record[0]]
    if contents.version == 1:
        sound = not row.any() or abs(float(np.linalg.norm(row)) - 1) < UNIT
    else:
        sound = record[-2] == zlib.crc32(row)
    if not sound:
        what = f"is damaged: the feature of {stored_path(record[1])} (row {record[0]}) is not what was written"
        raise Damaged(contents.folder / contents.facts["features"], what)


# ---------- passages ----------


def insert_slices(database: sqlite3.Connection, slices: Iterable[Slice]) -> None:
    database.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?, ?)", map(astuple, slices))


def read_slices(database: sqlite3.Connection, where: str = "", values: Sequence = ()) -> list[Slice]:
    """The records of passages for which an SQL condition holds, in the order of their rows. They may be damaged."""
    select = f"SELECT row, first, count, unit, sum FROM passages {where and f'WHERE {where}'} ORDER BY first, row"
    return [Slice(*record) for record in database.execute(select, values)]


def slice_problem(contents: Contents, found: Slice, digest: str | None) -> str | None:
    """What is wrong with the passages of the file whose content has this hash, if anything; None: there is no file."""
    numbers = found.first, found.count, found.sum
    if not all(isinstance(number, int) for number in numbers) or found.unit not in (BARS, SECONDS, LINES, ""):
        return "are of the wrong type"
    if digest is None:
        return "are of no file"
    if min(found.first, found.count) < 0 or found.first + found.count > len(contents.passages):
        return "have rows that are not there"
    sound = slice_sum(contents.passages[found.rows], found.unit, digest) == found.sum
    return None if sound else "are not what was written"


def check_slice(contents: Contents, found: Slice, digest: str | None, path: str) -> None:
    """Raise Damaged where the passages of the file `path`, or their record, are not what was written."""
    if problem := slice_problem(contents, found, digest):
        what = f"is damaged: the passages of {path} (row {found.row}) {problem}"
        raise Damaged(contents.folder / contents.facts.get("passages", DATABASE), what)


def slice_damages(contents: Contents, database: sqlite3.Connection, first: int = 0) -> Iterator[Damaged]:
    """What is wrong with the passages from row `first` of their file on, and with their records."""
    if contents.version < WITH_PASSAGES:
        return
    select = "SELECT p.row, p.first, p.count, p.unit, p.sum, e.hash, e.path FROM passages p LEFT JOIN entries e"
    records = database.execute(f"{select} ON e.row = p.row WHERE p.first >= ? ORDER BY p.first, p.count", (first,))
    end = first
    for *record, digest, path in records:
        found = Slice(*record)
        try:
            check_slice(contents, found, digest if isinstance(digest, str) else None, stored_path(path))
            if found.first < end:
                raise Damaged(contents.folder / DATABASE, "is damaged: two files have the same passages")
            end = found.first + found.count
        except Damaged as damage:
            yield damage


def passage_type(facts: dict[str, Any]) -> np.dtype:
    """The type of the rows of passages in an index with these facts."""
    return row_type(facts.get("hidden", 0), facts.get("melody", 0))


def map_passages(folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """A map (rows,) of the passages. Raises Damaged where the file is missing or too short."""
    kind, count = passage_type(facts), facts.get("passage_rows", 0)
    if not count:
        return np.zeros(0, kind)
    path = folder / facts["passages"]
    if not path.is_file():
        raise Damaged(path, "is missing")
    if path.stat().st_size < count * kind.itemsize:
        raise Damaged(path, f"is damaged: it is too short for {count} passages")
    return np.memmap(path, kind, "r", shape=(count,))


def read_contents(folder: Path, database: sqlite3.Connection) -> Contents:
    """What the index holds in the present transaction. Raises Damaged where facts or lengths are wrong."""
    version, path = check_tables(folder, database), folder / DATABASE
    facts = read_facts(database)
    if problem := facts_problem(facts, version):
        raise Damaged(path, f"is damaged: {problem}")
    rows = facts.get("rows", 0)
    gone = np.array([row for (row,) in database.execute("SELECT row FROM gone")], np.int64)
    if len(gone) and not (0 <= gone.min() and gone.max() < rows):
        raise Damaged(path, "is damaged: it has deleted rows that were never there")
    return Contents(folder, version, facts, gone, map_features(folder, facts), map_passages(folder, facts))


def map_features(folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """A map (rows, hidden) of the features. Raises Damaged where the file is missing or too short."""
    shape = facts.get("rows", 0), facts.get("hidden", 0)
    if not shape[0]:
        return np.zeros(shape, np.float32)
    path = folder / facts["features"]
    if not path.is_file():
        raise Damaged(path, "is missing")
    if path.stat().st_size < shape[0] * shape[1] * 4:
        raise Damaged(path, f"is damaged: it is too short for {shape[0]} rows of {shape[1]} numbers")
    return np.memmap(path, "<f4", "r", shape=shape)


def damages(
    contents: Contents, database: sqlite3.Connection, first: int = 0, first_passage: int = 0
) -> Iterator[Damaged]:
    """What is wrong with the entries, and the rows, from row `first` on, and with passages from `first_passage` on."""
    rows = []
    for record in database.execute(f"SELECT {contents.columns} FROM entries WHERE row >= ? ORDER BY row", (first,)):
        rows.append(record[0])
        try:
            check_entry(contents, record)
        except Damaged as damage:
            yield damage
    there = np.sort(np.concatenate([np.array(rows, np.int64), contents.gone[contents.gone >= first]]))
    if not np.array_equal(there, np.arange(first, len(contents.features))):
        path = contents.folder / DATABASE
        yield Damaged(path, "is damaged: its entries and deleted rows are not the rows that there are")
    yield from slice_damages(contents, database, first_passage)


# ---------- whole files ----------


def nearest_problem(folder: Path, facts: dict[str, Any], look: bool = False) -> str | None:
    """What is wrong with the file for approximate search, if anything; `look` even where it was known to be whole."""
    path = folder / facts["nearest"]
    if not path.is_file():
        return "is missing"
    if "nearest_sum" not in facts:
        return "was made by an earlier version of this program, and cannot be checked"
    try:
        sound = (not look and is_verified(folder, [path.name])) or file_sum(path) == facts["nearest_sum"]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if sound else "is damaged: it is not what was written"


def file_sum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def new_name(folder: Path, kind: str) -> str:
    """A name for a new file of features or for approximate search, with a higher number than any in the folder."""
    start, end = FILES[kind].split("{}")
    numbers = [path.name[len(start) : -len(end)] for path in folder.glob(FILES[kind].format("*"))]
    return FILES[kind].format(1 + max((int(number) for number in numbers if number.isdecimal()), default=0))


def stamp(path: Path) -> list[int] | None:
    """What changes with the content of a file; None where it is missing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_verified(folder: Path, names: Iterable[str]) -> bool:
    """Whether these files are as they were when they were last known to be whole."""
    try:
        known = parse_json((folder / VERIFIED).read_text(encoding="utf-8"))
        return all(known[name] == stamp(folder / name) for name in names)
    except (OSError, ValueError, TypeError, LookupError):
        return False


def note_verified(folder: Path, names: Iterable[str]) -> None:
    """Note that these files are whole as they are now."""
    stamps = {name: stamp(folder / name) for name in names}
    newest = max(found[1] for found in stamps.values() if found) / 1e9
    time.sleep(min(max(newest + SETTLED - time.time(), 0), SETTLED))  # a write after this has another time
    with contextlib.suppress(OSError), atomic_write(folder / VERIFIED) as file:
        file.write(json.dumps(stamps).encode())
