"""An index on disk: the features of many files, with what they belong to, in one folder.

In INDEX, index.sqlite says which file each row belongs to, features-N.f32 holds the rows, each of length one, and
nearest-N.faiss, in large indexes, finds the closest of them quickly. The first is changed in transactions, rows are
only added to the second, and both others are replaced under new names: who reads meanwhile, or is killed at writing,
leaves or finds the index as it was before or as it is after. Whatever is read is checked (`integrity`).
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write, remove_orphans
from clamp3.io.folders import JUNK_FILES
from clamp3.search.integrity import (
    COLUMNS,
    DATABASE,
    FORMAT,
    Damaged,
    Entry,
    accessible,
    check_entry,
    check_pages,
    entry_of,
    explained,
    insert_records,
    is_verified,
    nearest_problem,
    new_name,
    note_verified,
    read_facts,
    record_of,
    sync_folder,
    write_database,
    write_facts,
)
from clamp3.search.nearest import Nearest
from clamp3.search.ranking import normalized, spans, top_k_of_unit
from clamp3.search.store import Store, is_index, missing_index

__all__ = ["Entry", "Index", "is_index"]

LOG = logging.getLogger("clamp3")
LOCK = "write.lock"
BLOCK = 65_536  # rows that are copied at once
MOST_VALUES = 500  # in one SQL statement
SPARSE = 0.3  # share of deleted rows above which they are cleared away
OUTDATED = 0.2  # share of rows unknown to `Nearest` above which it is rebuilt
LARGE = 100_000  # rows from which `Nearest` is built, and approximate search is the default
NOTED = 10_000  # rows from which it is noted that the files are whole; fewer are verified at each opening


class Index(Store):
    """An index in a folder, open for reading and, inside `writing`, for changes.

    All methods raise UserError where the folder cannot be read or written, and Damaged (which is one) where a file is
    missing or is not what was written.
    """

    def __init__(self, folder: Path):
        self.nearest: tuple[str, Nearest | None] = ("", None)  # of this name; None: cannot be used
        super().__init__(folder)

    @classmethod
    def create(cls, folder: Path) -> "Index":
        """A new, empty one, or the one that is there. Raises UserError where the folder holds other files."""
        refuse_other_files(folder)
        with accessible(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), accessible(folder):
            remove_orphans(folder)
            if not is_index(folder):  # none that another process has made meanwhile
                refuse_other_files(folder)
                write_database(folder, {}, (), ())
        return cls(folder)

    # ---------- reading ----------

    def entries(self, where: str = "", values: Sequence = ()) -> Iterator[Entry]:
        """Those for which an SQL condition holds, in the order of their rows."""
        self.refresh()
        for record in self._records(where, values):
            try:
                yield entry_of(record)
            except ValueError as error:
                raise Damaged(self.folder / DATABASE, f"is damaged: what it has on row {record[0]} {error}") from None

    def _records(self, where: str, values: Sequence) -> Iterator[tuple]:
        clause = f"WHERE {where}" if where else ""
        with explained(self.folder):
            yield from self.database.execute(
                f"SELECT {self.contents.columns} FROM entries {clause} ORDER BY row", values
            )

    def counts(self) -> dict[str, int]:
        """How many files there are of each modality."""
        with self.snapshot():
            return dict(
                self.database.execute("SELECT modality, COUNT(*) FROM entries GROUP BY modality ORDER BY modality")
            )

    def search(
        self, feature: np.ndarray, k: int = 10, approximate: bool | None = None, modality: str | None = None
    ) -> list[tuple[float, Entry]]:
        """The k entries closest to `feature` (hidden,), of a modality or of all, best first, with their cosines.

        `approximate`: look at a part of a large index only; by default where it has LARGE rows. Where what that takes
        is damaged, a warning is logged and all rows are looked at. Raises UserError where the index was never prepared
        for it, and for a feature of another width or with values that are not finite.
        """
        with self.snapshot():
            if feature.shape != self.features.shape[1:]:
                raise UserError(
                    f"the query's feature has {feature.size} numbers, each of {self.folder} has "
                    f"{self.features.shape[1]}: features of different models cannot be compared"
                )
            if not np.isfinite(feature).all():
                raise UserError("the query's feature holds NaN or infinite values")
            nearest = self._nearest(approximate)
            rows, cosines = self._closest(normalized(feature[None])[0], k, nearest, self._allowed(modality))
            entries: dict[int, Entry] = {}
            for part in spans(len(rows), MOST_VALUES):
                marks = ",".join("?" * len(rows[part]))
                for record in self._records(f"row IN ({marks})", rows[part].tolist()):
                    check_entry(self.contents, record)
                    entries[record[0]] = entry_of(record)
            if missing := set(rows.tolist()) - entries.keys():
                raise Damaged(self.folder / DATABASE, f"is damaged: no file has row {min(missing)}")
        return [(cosine, entries[row]) for cosine, row in zip(cosines.tolist(), rows.tolist(), strict=True)]

    def _allowed(self, modality: str | None) -> np.ndarray | None:
        """Which rows (rows,) may be found; None: all."""
        if modality is None and not len(self.deleted_rows):
            return None
        allowed = np.full(self.rows, modality is None)
        if modality is None:
            allowed[self.deleted_rows] = False
        else:
            rows = self.database.execute("SELECT row FROM entries WHERE modality = ?", (modality,))
            allowed[[row for (row,) in rows if 0 <= row < self.rows]] = True
        return allowed

    def _closest(
        self, query: np.ndarray, k: int, nearest: Nearest | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices and cosines of the k rows closest to `query` (hidden,), of length one; exact without `nearest`."""
        if nearest is None:
            indices, cosines = top_k_of_unit(query[None], self.features, k, allowed)
            return indices[0], cosines[0]
        late = slice(nearest.count, self.rows)  # rows that have come since
        allowed_late = None if allowed is None else allowed[late]
        latest, _ = top_k_of_unit(query[None], self.features[late], k, allowed_late)
        return nearest.search(query, self.features, k, allowed, latest[0] + nearest.count)

    def _nearest(self, approximate: bool | None) -> Nearest | None:
        """What searches a part of the rows, if that is asked for and can be done."""
        if approximate is False or (approximate is None and self.rows < LARGE):
            return None
        name = self.meta.get("nearest")
        if name is None:
            if approximate:
                raise UserError(f"{self.folder} is not prepared for approximate search: add to it with --approximate")
            return None
        if self.nearest[0] != name:
            nearest = None
            if problem := nearest_problem(self.folder, self.meta):
                LOG.warning(
                    "%s %s: looking at all features instead; clamp3_index.py repair %s makes it anew",
                    *(self.folder / name, problem, self.folder),
                )
            else:
                try:
                    nearest = Nearest.load(self.folder / name)
                except UserError:  # no faiss
                    if approximate:
                        raise
            self.nearest = name, nearest
        return self.nearest[1]

    # ---------- writing ----------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The block in which this process alone changes the index; others wait for its end.

        An index that an earlier version has made becomes one of this version.
        """
        with locked(self.folder), explained(self.folder):
            remove_orphans(self.folder)
            self.refresh()
            if not is_verified(self.folder, [DATABASE]):
                for damage in check_pages(self.folder, self.database):
                    raise damage
            if self.contents.version < FORMAT:
                self._upgrade()
            yield
            self._read()
            if self.rows >= NOTED:
                nearest = [self.meta["nearest"]] if self.nearest_is_sound() else []
                note_verified(self.folder, [*self._files(), *nearest])

    def _upgrade(self) -> None:
        """Give each entry the checksum of its row, which has been looked at."""
        entries = (replace(entry, feature_sum=zlib.crc32(self.features[entry.row])) for entry in self.entries())
        with accessible(self.folder):
            write_database(self.folder, self.meta, entries, self.deleted_rows.tolist())
        self.refresh()

    def add(self, entries: Sequence[Entry], features: np.ndarray) -> None:
        """Add files with their features (n, hidden), in place of what the index has of them."""
        if not len(entries):
            return
        rows = normalized(features).astype("<f4")
        if rows.ndim != 2 or len(rows) != len(entries) or (self.rows and rows.shape[1] != self.features.shape[1]):
            raise UserError(f"{self.folder} takes a feature of {self.features.shape[1]} numbers for each file")
        name = self.meta.get("features") or new_name(self.folder, "features")
        with accessible(self.folder), open(self.folder / name, "r+b" if self.rows else "wb") as file:
            file.seek(self.rows * rows[0].nbytes)  # over what a killed process may have left
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if not self.rows:
            sync_folder(self.folder)
        new = [
            replace(entry, row=number, feature_sum=zlib.crc32(row))
            for number, (entry, row) in enumerate(zip(entries, rows, strict=True), self.rows)
        ]
        with explained(self.folder), self.database:
            self._forget(os.fsencode(entry.path) for entry in new)
            insert_records(self.database, new)
            self.set_meta(features=name, rows=self.rows + len(rows), hidden=rows.shape[1])
        self._read()

    def update(self, entries: Iterable[Entry]) -> None:
        """Change what the index says of files that it has, their features aside: that of the same row."""
        changes = [(*record_of(entry)[1:], entry.row) for entry in entries]
        if not changes:
            return
        assignments = ", ".join(f"{column} = ?" for column in COLUMNS.split(", ")[1:])
        with explained(self.folder), self.database:
            self.database.executemany(f"UPDATE entries SET {assignments} WHERE row = ?", changes)
        self._read()

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove these files from the index."""
        with explained(self.folder), self.database:
            self._forget(map(os.fsencode, paths))
        self._read()

    def _forget(self, paths: Iterable[bytes]) -> None:
        """Remove these files and mark their rows as deleted, in the caller's transaction."""
        for path in paths:
            self.database.execute("INSERT INTO gone SELECT row FROM entries WHERE path = ?", (path,))
            self.database.execute("DELETE FROM entries WHERE path = ?", (path,))

    def set_meta(self, **values: object) -> None:
        """Record `values` by name, and forget those that are None, in the caller's transaction."""
        write_facts(self.database, read_facts(self.database) | values)

    def record(self, **values: object) -> None:
        """`set_meta` in a transaction of its own."""
        with explained(self.folder), self.database:
            self.set_meta(**values)
        self._read()

    def compact(self, approximate: bool = False) -> None:
        """After changes: clear deleted rows away if there are many, and keep a large index quick to search.

        `approximate` prepares for that whatever the size. Raises UserError where that needs faiss and it is missing.
        """
        wanted = approximate or self.rows >= LARGE or "nearest" in self.meta
        if len(self.deleted_rows) > SPARSE * self.rows:
            self._clear()
        known = self.meta["nearest_rows"] if self.nearest_is_sound() else 0
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

    def nearest_is_sound(self) -> bool:
        """Whether there is a file for approximate search, and it is what was written."""
        return "nearest" in self.meta and nearest_problem(self.folder, self.meta) is None

    def _clear(self) -> None:
        """Copy the rows that belong to files to a new file, in their order."""
        name = new_name(self.folder, "features")
        kept = np.setdiff1d(np.arange(self.rows), self.deleted_rows)
        with accessible(self.folder), atomic_write(self.folder / name) as file:
            for part in spans(len(kept), BLOCK):
                file.write(self.features[kept[part]].tobytes())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)
        with explained(self.folder), self.database:
            # In this order, each moves to a row that is free by then.
            moves = enumerate(kept.tolist())
            self.database.executemany("UPDATE entries SET row = ? WHERE row = ?", moves)
            self.database.execute("DELETE FROM gone")
            self.set_meta(features=name, rows=len(kept), nearest=None, nearest_rows=None, nearest_sum=None)
        self._read()

    def _prepare_nearest(self) -> None:
        LOG.info("preparing %d features for approximate search", self.rows)
        nearest, name = Nearest.build(self.features), new_name(self.folder, "nearest")
        with accessible(self.folder):
            checksum = nearest.save(self.folder / name)
        sync_folder(self.folder)
        self.record(nearest=name, nearest_rows=nearest.count, nearest_sum=checksum)


def refuse_other_files(folder: Path) -> None:
    """Raise UserError where `folder` is none, or holds anything but an index or what is left of making one."""
    if is_index(folder) or not os.path.lexists(folder):
        return
    with accessible(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if isinstance(lost := missing_index(folder), Damaged):
        raise lost
    if any(name != LOCK and not name.startswith(".") and name.lower() not in JUNK_FILES for name in names):
        raise UserError(f"{folder} is there and is no index: give the index a folder of its own")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The block in which this process alone writes to an index's folder; others wait for its end."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    with accessible(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            LOG.info("another process is writing to %s; waiting for it", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
