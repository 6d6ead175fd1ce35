"""An index on disk: the features of many files, with what they belong to, in one folder.

In INDEX, index.sqlite says which file each row belongs to, features-N.f32 holds the rows, each of length one, and
nearest-N.faiss, in large indexes, finds the closest of them quickly. The first is changed in transactions, rows are
only added to the second, and both others are replaced under new names: who reads meanwhile, or is killed at writing,
leaves or finds the index as it was before or as it is after.
"""

import contextlib
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write, remove_orphans
from clamp3.search.nearest import Nearest, best_of
from clamp3.search.ranking import normalized, spans, top_k_of_unit

LOG = logging.getLogger("clamp3")
DATABASE = "index.sqlite"
FORMAT = 1  # to be raised where older code cannot read what is written
DATABASE_TIMEOUT = 60  # seconds to wait for another process's transaction
BLOCK = 65_536  # rows that are copied at once
MOST_VALUES = 500  # in one SQL statement
SPARSE = 0.3  # share of deleted rows above which they are cleared away
OUTDATED = 0.2  # share of rows unknown to `Nearest` above which it is rebuilt
LARGE = 100_000  # rows from which `Nearest` is built, and approximate search is the default
SCHEMA = f"""
    PRAGMA user_version = {FORMAT};
    CREATE TABLE facts (name TEXT PRIMARY KEY, value);
    CREATE TABLE entries (
        row INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL, modality TEXT NOT NULL,
        hash TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL, metadata TEXT NOT NULL
    );
    CREATE INDEX by_hash ON entries (hash);
    CREATE TABLE gone (row INTEGER PRIMARY KEY);
"""
COLUMNS = "row, path, modality, hash, size, modified, metadata"


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


class Index:
    """An index in a folder, open for reading and, inside `writing`, for changes."""

    def __init__(self, folder: Path):
        """Raises UserError where there is no index, or one that a later version of this code has made."""
        self.folder = folder
        if not is_index(folder):
            raise UserError(f"there is no index in {folder}; clamp3_index.py build makes one")
        self.database = sqlite3.connect(folder / DATABASE, timeout=DATABASE_TIMEOUT)
        try:
            (found,) = self.database.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise UserError(f"{folder} was made by a later version of this program (format {found})")
            self.refresh()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{folder / DATABASE} cannot be read: {error}") from None

    @classmethod
    def create(cls, folder: Path) -> "Index":
        """A new, empty one. Raises UserError where the folder holds anything."""
        remove_orphans(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there and is no index: give the index a folder of its own")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            with contextlib.closing(sqlite3.connect(Path(scratch, DATABASE))) as database:
                database.executescript(SCHEMA)
            empty = Path(scratch, DATABASE).read_bytes()
        with atomic_write(folder / DATABASE) as file:
            file.write(empty)
        return cls(folder)

    def close(self) -> None:
        self.database.close()

    def refresh(self) -> None:
        """Read the index as it is now."""
        (self.version,) = self.database.execute("PRAGMA data_version").fetchone()
        self.meta: dict[str, Any] = dict(self.database.execute("SELECT name, value FROM facts"))
        self.rows: int = self.meta.get("rows", 0)  # of the features, deleted ones too
        self.deleted_rows = np.array([row for (row,) in self.database.execute("SELECT row FROM gone")], np.int64)
        self.nearest: Nearest | None = None  # loaded when it is first used
        self.features: np.ndarray = np.zeros(
            (0, self.meta.get("hidden", 0)), np.float32
        )  # (rows, hidden), each of length one
        if self.rows:
            shape = (self.rows, self.meta["hidden"])
            self.features = np.memmap(self.folder / self.meta["features"], "<f4", "r", shape=shape)

    def __len__(self) -> int:
        return self.rows - len(self.deleted_rows)

    # ---------- reading ----------

    def entries(self, where: str = "", values: Sequence = ()) -> Iterator[Entry]:
        """Those for which an SQL condition holds, in the order of their rows."""
        clause = f"WHERE {where}" if where else ""
        for row, path, modality, digest, size, modified, metadata in self.database.execute(
            f"SELECT {COLUMNS} FROM entries {clause} ORDER BY row", values
        ):
            yield Entry(Path(os.fsdecode(path)), modality, digest, size, modified, json.loads(metadata), row)

    def counts(self) -> dict[str, int]:
        """How many files there are of each modality."""
        return dict(
            self.database.execute("SELECT modality, COUNT(*) FROM entries GROUP BY modality ORDER BY modality")
        )

    def search(
        self, feature: np.ndarray, k: int = 10, approximate: bool | None = None, modality: str | None = None
    ) -> list[tuple[float, Entry]]:
        """The k entries closest to `feature` (hidden,), of a modality or of all, best first, with their cosines.

        `approximate`: look at a part of a large index only; by default where it has LARGE rows. Raises UserError where
        that needs what is not there, and for a feature of another width.
        """
        if feature.shape != self.features.shape[1:]:
            raise UserError(
                f"the query's feature has {feature.size} numbers, each of {self.folder} has {self.features.shape[1]}: "
                "features of different models cannot be compared"
            )
        with self._unchanging():
            allowed = self._allowed(modality)
            indices, cosines = self._closest(normalized(feature[None])[0], k, approximate, allowed)
            entries: dict[int, Entry] = {}
            for part in spans(len(indices), MOST_VALUES):
                marks = ",".join("?" * len(indices[part]))
                entries |= {entry.row: entry for entry in self.entries(f"row IN ({marks})", indices[part].tolist())}
        return [(cosine, entries[row]) for cosine, row in zip(cosines.tolist(), indices.tolist(), strict=True)]

    @contextlib.contextmanager
    def _unchanging(self) -> Iterator[None]:
        """A read transaction: in this block the index stays as it is now, whatever other processes do."""
        self.database.execute("BEGIN")
        try:
            (version,) = self.database.execute("PRAGMA data_version").fetchone()
            if version != self.version:  # another process has changed it
                self.refresh()
            yield
        finally:
            self.database.rollback()

    def _allowed(self, modality: str | None) -> np.ndarray | None:
        """Which rows (rows,) may be found; None: all."""
        if modality is None and not len(self.deleted_rows):
            return None
        allowed = np.full(self.rows, modality is None)
        if modality is None:
            allowed[self.deleted_rows] = False
        else:
            rows = self.database.execute("SELECT row FROM entries WHERE modality = ?", (modality,))
            allowed[[row for (row,) in rows]] = True
        return allowed

    def _closest(
        self, query: np.ndarray, k: int, approximate: bool | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices and cosines of the k rows closest to `query` (hidden,), of length one."""
        large, found = self.rows >= LARGE, None
        nearest = self._nearest(needed=bool(approximate)) if large or approximate else None
        if nearest:
            partly = large if approximate is None else approximate
            search = nearest.approximate if partly else nearest.exact
            found = search(query, self.features, k, allowed)
        if nearest is None or found is None:
            indices, cosines = top_k_of_unit(query[None], self.features, k, allowed)
            return indices[0], cosines[0]
        late = slice(nearest.count, self.rows)  # rows that have come since
        allowed_late = None if allowed is None else allowed[late]
        indices, _ = top_k_of_unit(query[None], self.features[late], k, allowed_late)
        return best_of(np.concatenate([found[0], indices[0] + nearest.count]), query, self.features, k)

    def _nearest(self, needed: bool) -> Nearest | None:
        """What searches quickly; None where there is none, or no faiss. UserError, if it is needed."""
        if "nearest" not in self.meta:
            if needed:
                raise UserError(f"{self.folder} is not prepared for approximate search: add to it with --approximate")
            return None
        if self.nearest is None:
            try:
                self.nearest = Nearest.load(self.folder / self.meta["nearest"], self.meta["error"])
            except UserError:
                if needed:
                    raise
        return self.nearest

    # ---------- writing ----------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The block in which this process alone changes the index; others wait for its end."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "write.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            LOG.info("another process is writing to %s; waiting for it", self.folder)
            lock.acquire()
        try:
            remove_orphans(self.folder)
            self.refresh()
            yield
        finally:
            lock.release()

    def add(self, entries: Sequence[Entry], features: np.ndarray) -> None:
        """Add files with their features (n, hidden), in place of what the index has of them."""
        if not len(entries):
            return
        rows = normalized(features).astype("<f4")
        name = self.meta.get("features", "features-1.f32")
        with open(self.folder / name, "r+b" if self.rows else "wb") as file:
            file.seek(self.rows * rows[0].nbytes)  # over what a killed process may have left
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        records = [
            (row, os.fsencode(e.path), e.modality, e.hash, e.size, e.modified, json.dumps(e.metadata))
            for row, e in enumerate(entries, self.rows)
        ]
        with self.database:
            self._forget(path for _, path, *_ in records)
            self.database.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", records)
            self.set_meta(features=name, rows=self.rows + len(rows), hidden=rows.shape[1])
        self.refresh()

    def update(self, entries: Iterable[Entry]) -> None:
        """Change what the index says of files that it has, their features aside."""
        with self.database:
            self.database.executemany(
                "UPDATE entries SET size = ?, modified = ?, metadata = ? WHERE row = ?",
                ((entry.size, entry.modified, json.dumps(entry.metadata), entry.row) for entry in entries),
            )

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove these files from the index."""
        with self.database:
            self._forget(map(os.fsencode, paths))
        self.refresh()

    def _forget(self, paths: Iterable[bytes]) -> None:
        """Remove these files and mark their rows as deleted, in the caller's transaction."""
        for path in paths:
            self.database.execute("INSERT INTO gone SELECT row FROM entries WHERE path = ?", (path,))
            self.database.execute("DELETE FROM entries WHERE path = ?", (path,))

    def set_meta(self, **values: object) -> None:
        """Record `values` by name, in the caller's transaction."""
        self.database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", values.items())

    def compact(self, approximate: bool = False) -> None:
        """After changes: clear deleted rows away if there are many, and keep a large index quick to search.

        `approximate` prepares for that whatever the size. Raises UserError where that needs faiss and it is missing.
        """
        wanted = approximate or self.rows >= LARGE or "nearest" in self.meta
        if len(self.deleted_rows) > SPARSE * self.rows:
            self._clear()
        known = self.meta.get("nearest_rows", 0)
        if wanted and len(self) and self.rows - known > OUTDATED * self.rows:
            try:
                self._prepare_nearest()
            except UserError as error:
                if approximate:
                    raise
                LOG.info("note: %s; until then each search reads all features", error)
        current = {self.meta.get("features"), self.meta.get("nearest")}
        for path in (*self.folder.glob("features-*.f32"), *self.folder.glob("nearest-*.faiss")):
            if path.name not in current:
                with contextlib.suppress(OSError):  # on some systems while others read it
                    path.unlink()

    def _clear(self) -> None:
        """Copy the rows that belong to files to a new file, in their order."""
        name = next_name(self.meta["features"])
        kept = np.setdiff1d(np.arange(self.rows), self.deleted_rows)
        with atomic_write(self.folder / name) as file:
            for part in spans(len(kept), BLOCK):
                file.write(self.features[kept[part]].tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self.database:
            # In this order, each moves to a row that is free by then.
            moves = enumerate(kept.tolist())
            self.database.executemany("UPDATE entries SET row = ? WHERE row = ?", moves)
            self.database.execute("DELETE FROM gone")
            self.database.execute("DELETE FROM facts WHERE name IN ('nearest', 'nearest_rows', 'error')")
            self.set_meta(features=name, rows=len(kept))
        self.refresh()

    def _prepare_nearest(self) -> None:
        LOG.info("preparing %d features for approximate search", self.rows)
        nearest = Nearest.build(self.features)
        name = next_name(self.meta.get("nearest", "nearest-0.faiss"))
        nearest.save(self.folder / name)
        with self.database:
            self.set_meta(nearest=name, nearest_rows=nearest.count, error=nearest.error)
        self.refresh()


def is_index(folder: Path) -> bool:
    """Whether there is an index in `folder`."""
    return (folder / DATABASE).is_file()


def next_name(name: str) -> str:
    """features-1.f32 -> features-2.f32."""
    kind, _, number = name.partition("-")
    number, _, extension = number.partition(".")
    return f"{kind}-{int(number) + 1}.{extension}"
