"""An index on disk: the features of many files, with what they belong to, in one folder.

In INDEX, index.sqlite says which file each row belongs to, features-N.f32 holds the rows, each of length one,
passages-N.i8, if that is asked for, those of the files' passages, and nearest-N.faiss, in large indexes, finds the
closest features quickly. The first is changed in transactions, rows are only added to the next two, and all but the
first are replaced under new names: who reads meanwhile, or is killed at writing, leaves or finds the index as it was
before or as it is after. Whatever is read is checked (`integrity`).
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clamp3.errors import UserError
from clamp3.features.passages import Passage
from clamp3.inputs.melodies import NO_MELODY
from clamp3.inputs.passages import BARS, LINES, SECONDS, Span
from clamp3.io.files import atomic_write, remove_orphans
from clamp3.io.folders import JUNK_FILES
from clamp3.io.reports import quoted
from clamp3.modalities import AUDIO, SYMBOLIC, TEXT
from clamp3.search.calibration import Space
from clamp3.search.combining import diverse, pool_size
from clamp3.search.filters import EVERYTHING, File, Filter
from clamp3.search.integrity import (
    COLUMNS,
    DATABASE,
    FILES,
    FORMAT,
    WITH_PASSAGES,
    Contents,
    Damaged,
    Entry,
    accessible,
    check_entry,
    check_pages,
    check_slice,
    entry_of,
    explained,
    insert_records,
    insert_slices,
    is_verified,
    nearest_problem,
    new_name,
    note_verified,
    passage_type,
    read_facts,
    read_slices,
    record_of,
    sync_folder,
    write_database,
    write_facts,
)
from clamp3.search.nearest import Nearest
from clamp3.search.passages import POOL, Slice, closest, cosines, decoded, encoded, melodic_cosines, slice_sum, unit_of
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
ROWS_OF = "SELECT row FROM entries WHERE modality = ?"
SAMPLE = 20_000  # rows that stand for all of them, where those are more
# Of passages, by their unit; those of no unit are none.
MODALITY_OF = {BARS: SYMBOLIC.name, SECONDS: AUDIO.name, LINES: TEXT.name, "": ""}
NOTED = 10_000  # rows from which it is noted that the files are whole; fewer are verified at each opening


class Index(Store):
    """An index in a folder, open for reading and, inside `writing`, for changes.

    All methods raise UserError where the folder cannot be read or written, and Damaged (which is one) where a file is
    missing or is not what was written.
    """

    def __init__(self, folder: Path):
        self.nearest: tuple[str, Nearest | None] = ("", None)  # of this name; None: cannot be used
        self._slices: tuple[Contents | None, list[Slice]] = (None, [])  # all of them, at that state of the index
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
        self,
        feature: np.ndarray,
        k: int = 10,
        approximate: bool | None = None,
        modality: str | None = None,
        passages: bool = False,
        per_file: int | None = None,
        calibrate: str = "none",
        own: str = TEXT.name,
        only: Filter = EVERYTHING,
        diversity: float = 0.0,
        melody: np.ndarray | None = None,
    ) -> list:
        """The k entries closest to `feature` (hidden,), of a modality or of all, best first, with their cosines.

        `approximate`: look at a part of a large index only; by default where it has LARGE rows. Where what that takes
        is damaged, a warning is logged and all rows are looked at. Raises UserError where the index was never prepared
        for it, and for a feature of another width or with values that are not finite.

        With `passages`, the k closest passages, as triples of cosine, entry and Span, at most `per_file` of each file;
        all of them are looked at. Raises UserError where the index has none. With the fingerprint `melody` of the
        query's notes too, they are ranked by the sum of the feature's cosine and the melody's, which is the fourth of
        what is then quadruples; ignored with a warning where the passages have no melodies, as those that earlier
        versions of this code made.

        With `calibrate`, one of calibration.METHODS, the POOL closest are ranked anew by that correction, which knows
        SAMPLE entries or passages and the query's modality `own`: cosines are those of the corrected space.

        `only` says which files may be found, beside `modality`; where these are fewer than LARGE, all are looked at by
        default. `diversity` is the share of `combining.diverse`, by which entries are chosen that are unlike each
        other; ValueError with passages or a calibration.
        """
        if diversity and (passages or calibrate != "none"):
            raise ValueError("diverse answers are files, not passages, and are chosen without calibration")
        only = replace(only, modality=modality or only.modality)
        with self.snapshot():
            if feature.shape != self.features.shape[1:]:
                raise UserError(
                    f"the query's feature has {feature.size} numbers, each of {self.folder} has "
                    f"{self.features.shape[1]}: features of different models cannot be compared"
                )
            if not np.isfinite(feature).all():
                raise UserError("the query's feature holds NaN or infinite values")
            if passages:
                query = normalized(feature[None])[0]
                return self._closest_passages(query, k, only, per_file, calibrate, own, melody)
            unit, allowed = normalized(feature[None])[0], self._allowed(only)
            is_small = approximate is None and allowed is not None and np.count_nonzero(allowed) < LARGE
            nearest = None if is_small else self._nearest(approximate)
            depth = pool_size(k) if diversity else k if calibrate == "none" else max(k, POOL)
            rows, cosines = self._closest(unit, depth, nearest, allowed)
            if calibrate != "none":
                rows, cosines = self._calibrated(unit, rows, calibrate, own)
            if diversity:
                chosen = diverse(cosines, self.features[rows], k, diversity)
                rows, cosines = rows[chosen], cosines[chosen]
            rows, cosines = rows[:k], cosines[:k]
            entries = self._checked_entries(rows.tolist())
        return [(cosine, entries[row]) for cosine, row in zip(cosines.tolist(), rows.tolist(), strict=True)]

    def _checked_entries(self, rows: Sequence[int]) -> dict[int, Entry]:
        """The entries of these rows, by row. Raises Damaged where one is missing or is not what was written."""
        entries: dict[int, Entry] = {}
        for part in spans(len(rows), MOST_VALUES):
            marks = ",".join("?" * len(rows[part]))
            for record in self._records(f"row IN ({marks})", rows[part]):
                check_entry(self.contents, record)
                entries[record[0]] = entry_of(record)
        if missing := set(rows) - entries.keys():
            raise Damaged(self.folder / DATABASE, f"is damaged: no file has row {min(missing)}")
        return entries

    def _closest_passages(
        self,
        query: np.ndarray,
        k: int,
        only: Filter,
        per_file: int | None,
        calibrate: str,
        own: str,
        melody: np.ndarray | None,
    ) -> list[tuple]:
        """What `search` returns for passages; `query` (hidden,) is of length one."""
        if "with_passages" not in self.meta:
            folder = quoted(self.folder)
            raise UserError(f"{folder} has no passages: clamp3_index.py add {folder} FOLDER --passages makes them")
        if self._slices[0] is not self.contents:
            self._slices = self.contents, self.slices()
        slices = self._slices[1]
        if only != EVERYTHING:
            allowed = self._allowed(only)
            slices = [one for one in slices if allowed is None or (0 <= one.row < len(allowed) and allowed[one.row])]
        if melody is not None and "melody" not in self.meta:
            LOG.warning(
                "an earlier version of this code made the passages of %s, without their melodies, so that notes are "
                "looked for by features alone; an index that is built anew has them",
                self.folder,
            )
            melody = None
        rescored = self._passage_scores(query, slices, calibrate, own) if calibrate != "none" else None
        found = closest(query, self.contents.passages, slices, k, per_file, rescored, melody)
        entries = self._checked_entries(sorted({hit.file.row for hit in found}))
        for hit in found:
            entry = entries[hit.file.row]
            check_slice(self.contents, hit.file, entry.hash, str(entry.path))
        return [
            (hit.cosine, entries[hit.file.row], hit.span, *([] if melody is None else [hit.melodic])) for hit in found
        ]

    def melody_of(self, entry: Entry) -> np.ndarray | None:
        """The fingerprint of a file's whole melody, which its passages cover; None where they have none."""
        with self.snapshot():
            if "melody" not in self.meta:
                return None
            rows = [self.contents.passages[one.rows] for one in self.slices("row = ?", (entry.row,))]
            return next((np.bitwise_or.reduce(some["melody"]) for some in rows if some["melody"].any()), None)

    def closest_passages_of(
        self, feature: np.ndarray, entries: Sequence[Entry], melody: np.ndarray | None = None
    ) -> dict[Path, Span]:
        """The passage of each of these files, of those that have any, that is closest to `feature` (hidden,).

        `melody` as in `search`.
        """
        found: dict[Path, Span] = {}
        with self.snapshot():
            query, paths = normalized(feature[None])[0], [os.fsencode(entry.path) for entry in entries]
            for part in spans(len(paths), MOST_VALUES):
                marks = ",".join("?" * len(paths[part]))
                now = {entry.row: entry for entry in self.entries(f"path IN ({marks})", paths[part])}
                for one in self.slices(f"row IN ({','.join('?' * len(now))})", list(now)):
                    entry = now[one.row]
                    check_slice(self.contents, one, entry.hash, str(entry.path))
                    if one.count:
                        passages = self.contents.passages[one.rows]
                        best = int(np.argmax(cosines(query, passages) + melodic_cosines(melody, passages)))
                        found[entry.path] = Span(one.unit, *passages["place"][best].tolist())
        return found

    def _passage_scores(
        self, query: np.ndarray, slices: Sequence[Slice], calibrate: str, own: str
    ) -> Callable[[np.ndarray, list[str]], np.ndarray]:
        """What gives passages their cosines with `query` (hidden,) in the corrected space."""
        places = np.concatenate([np.arange(one.first, one.first + one.count) for one in slices] or [np.zeros(0, int)])
        kinds = np.repeat([MODALITY_OF[one.unit] for one in slices], [one.count for one in slices])
        chosen = sampled(len(places))
        space = Space.of(decoded(self.contents.passages[places[chosen]]), kinds[chosen].tolist(), calibrate)
        unit = normalized(space.queries(query[None], own))[0]

        def scores(features: np.ndarray, units: list[str]) -> np.ndarray:
            moved = space.references(features, [MODALITY_OF[unit] for unit in units], own)
            return normalized(moved) @ unit

        return scores

    def _calibrated(self, query: np.ndarray, rows: np.ndarray, calibrate: str, own: str) -> tuple:
        """`rows` by their cosines with `query` (hidden,) in the corrected space, best first, and these cosines."""
        modalities = dict(self.database.execute("SELECT row, modality FROM entries"))
        there = np.array(sorted(modalities), np.int64)
        chosen = there[sampled(len(there))]
        space = Space.of(self.features[chosen], [modalities[row] for row in chosen.tolist()], calibrate)
        kinds = [modalities.get(row, "") for row in rows.tolist()]
        moved = normalized(space.references(self.features[rows], kinds, own))
        cosines = moved @ normalized(space.queries(query[None], own))[0]
        order = np.argsort(-cosines, kind="stable")
        return rows[order], cosines[order]

    def slices(self, where: str = "", values: Sequence = ()) -> list[Slice]:
        """Which rows are whose passages, of the records for which an SQL condition holds."""
        with self.snapshot():
            return read_slices(self.database, where, values) if self.contents.version >= WITH_PASSAGES else []

    def without_passages(self) -> list[Entry]:
        """The entries whose passages have never been made."""
        return list(self.entries("row NOT IN (SELECT row FROM passages)"))

    def _allowed(self, only: Filter) -> np.ndarray | None:
        """Which rows (rows,) may be found; None: all."""
        if only == EVERYTHING and not len(self.deleted_rows):
            return None
        if only == EVERYTHING:
            allowed = np.full(self.rows, True)
            allowed[self.deleted_rows] = False
            return allowed
        if only == Filter(modality=only.modality):
            rows = [row for (row,) in self.database.execute(ROWS_OF, (only.modality,))]
        else:
            entries = list(self.entries())
            files = [File(entry.path, entry.modality, entry.hash, entry.metadata) for entry in entries]
            rows = [entry.row for entry, passes in zip(entries, only.passed(files), strict=True) if passes]
        allowed = np.full(self.rows, False)
        allowed[[row for row in rows if 0 <= row < self.rows]] = True
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
                    *(self.folder / name, problem, quoted(self.folder)),
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

        An index of format 1 or 2 becomes one of format 3.
        """
        with locked(self.folder), explained(self.folder):
            remove_orphans(self.folder)
            self.refresh()
            if not is_verified(self.folder, [DATABASE]):
                for damage in check_pages(self.folder, self.database):
                    raise damage
            if self.contents.version < WITH_PASSAGES:
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

    def add(
        self, entries: Sequence[Entry], features: np.ndarray, passages: Mapping[Path, Sequence[Passage]] | None = None
    ) -> None:
        """Add files with their features (n, hidden), in place of what the index has of them, and with `passages`."""
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
            self._write_passages(new, passages or {}, rows.shape[1])
        self._read()

    def add_passages(self, passages: Mapping[Path, Sequence[Passage]]) -> None:
        """Give files that are there their passages, in place of those that they have."""
        entries = [entry for path in passages for entry in self.entries("path = ?", (os.fsencode(path),))]
        with explained(self.folder), self.database:
            self._write_passages(entries, passages, self.features.shape[1])
        self._read()

    def _write_passages(
        self, entries: Sequence[Entry], passages: Mapping[Path, Sequence[Passage]], hidden: int
    ) -> None:
        """Write those of `entries` behind the others, and record them, in the caller's transaction."""
        parts, slices, end = [], [], len(self.contents.passages)
        new = {} if "passages" in self.meta else {"melody": len(NO_MELODY)}
        kind = passage_type(self.meta | new | {"hidden": hidden})
        for entry in entries:
            if (some := passages.get(entry.path)) is not None:
                rows, unit = encoded(some, kind), unit_of(some)
                slices.append(Slice(entry.row, end, len(rows), unit, slice_sum(rows, unit, entry.hash)))
                parts.append(rows)
                end += len(rows)
        if not parts:
            return
        name = self.meta.get("passages") or new_name(self.folder, "passages")
        rows = np.concatenate(parts)
        with accessible(self.folder), open(self.folder / name, "r+b" if "passages" in self.meta else "wb") as file:
            file.seek(len(self.contents.passages) * rows.itemsize)  # over what a killed process may have left
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if "passages" not in self.meta:
            sync_folder(self.folder)
        insert_slices(self.database, slices)
        if new:
            self.database.execute(f"PRAGMA user_version = {FORMAT}")
        self.set_meta(passages=name, passage_rows=end, with_passages=1, **new)

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
            self.database.execute(
                "DELETE FROM passages WHERE row IN (SELECT row FROM entries WHERE path = ?)", (path,)
            )
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
        slices = self.slices()
        if sum(one.count for one in slices) < (1 - SPARSE) * len(self.contents.passages):
            self._clear_passages(slices)
        known = self.meta["nearest_rows"] if self.nearest_is_sound() else 0
        if wanted and len(self) and self.rows - known > OUTDATED * self.rows:
            try:
                self._prepare_nearest()
            except UserError as error:
                if approximate:
                    raise
                LOG.info("note: %s; until then each search reads all features", error)
        current = {self.meta.get(kind) for kind in FILES}
        for path in (path for form in FILES.values() for path in self.folder.glob(form.format("*"))):
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
            for table in ("entries", "passages"):
                self.database.executemany(f"UPDATE {table} SET row = ? WHERE row = ?", enumerate(kept.tolist()))
            self.database.execute("DELETE FROM gone")
            self.set_meta(features=name, rows=len(kept), nearest=None, nearest_rows=None, nearest_sum=None)
        self._read()

    def _clear_passages(self, slices: Sequence[Slice]) -> None:
        """Copy the rows of `slices`, which are all of them in their order, to a new file."""
        name, moved, end = new_name(self.folder, "passages"), [], 0
        with accessible(self.folder), atomic_write(self.folder / name) as file:
            for one in slices:
                file.write(self.contents.passages[one.rows].tobytes())
                moved.append(replace(one, first=end))
                end += one.count
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)
        with explained(self.folder), self.database:
            insert_slices(self.database, moved)
            self.set_meta(passages=name, passage_rows=end)
        self._read()

    def _prepare_nearest(self) -> None:
        LOG.info("preparing %d features for approximate search", self.rows)
        nearest, name = Nearest.build(self.features), new_name(self.folder, "nearest")
        with accessible(self.folder):
            checksum = nearest.save(self.folder / name)
        sync_folder(self.folder)
        self.record(nearest=name, nearest_rows=nearest.count, nearest_sum=checksum)


def sampled(count: int) -> np.ndarray:
    """SAMPLE of `count` places, or all of them, always the same ones, in their order."""
    places = np.arange(count)
    return places if count <= SAMPLE else np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])


def refuse_other_files(folder: Path) -> None:
    """Raise UserError where `folder` is none, or holds anything but an index or what is left of making one."""
    if is_index(folder) or not os.path.lexists(folder):
        return
    with accessible(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if isinstance(lost := missing_index(folder), Damaged):
        raise lost
    others = [name for name in names if name != LOCK and not name.startswith(".") and name.lower() not in JUNK_FILES]
    if others and not is_index(folder):  # which another process may have made meanwhile
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
