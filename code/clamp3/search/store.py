"""An index's files as they are at one moment, while other processes change them: what `Index` reads from.

A transaction of the database keeps others from committing, and a file that it names is removed only after a commit
that names another. So inside of one, the files that it names are there and belong together.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.reports import quoted
from clamp3.search.integrity import (
    DATABASE,
    FILES,
    FORMAT,
    Contents,
    Damaged,
    accessible,
    connect,
    damages,
    explained,
    is_verified,
    read_contents,
    stamp,
)
from clamp3.search.passages import row_type

LOG = logging.getLogger("clamp3")
MANY = 100_000  # rows from which it is announced that they are verified


class Store:
    """The files of an index in `folder`. What is read of them is verified when it is new."""

    def __init__(self, folder: Path):
        """Raises UserError where there is no index, or one that a later version of this code has made."""
        self.folder = folder
        nothing = np.zeros(0, np.int64), np.zeros((0, 0), np.float32), np.zeros(0, row_type(0))
        self.contents = Contents(folder, FORMAT, {}, *nothing)
        self._connect()
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.database.close()

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the whole index, by name."""
        return self.contents.facts

    @property
    def features(self) -> np.ndarray:
        """(rows, hidden) float32, each row of length one; a map of the file. Those of deleted files are there too."""
        return self.contents.features

    @property
    def rows(self) -> int:
        return len(self.features)

    @property
    def deleted_rows(self) -> np.ndarray:
        return self.contents.gone

    def __len__(self) -> int:
        return self.rows - len(self.deleted_rows)

    def refresh(self) -> None:
        """Read the index as it is now."""
        with self.snapshot():
            pass

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """A block in which the index stays as it is at its start, whatever other processes do."""
        if self.database.in_transaction:
            yield
            return
        with explained(self.folder), accessible(self.folder):
            self._begin()
            try:
                yield
            finally:
                self.database.rollback()

    def _connect(self) -> None:
        """Open the database that has the name now."""
        path = self.folder / DATABASE
        while True:
            if not is_index(self.folder):
                raise missing_index(self.folder)
            with explained(self.folder), accessible(self.folder):
                self._opened = stamp(path)
                self.database = connect(path)
                try:
                    self.database.execute("PRAGMA schema_version").fetchone()  # not until now is the file opened
                except BaseException:
                    self.close()
                    raise
            self._seen: tuple | None = None  # what a later look is compared with
            if not self._is_replaced():
                return
            self.close()

    def _is_replaced(self) -> bool:
        """Whether there is another database now, by the name of the one that was opened."""
        found = stamp(self.folder / DATABASE)
        return found is None or self._opened is None or found[-1] != self._opened[-1]

    def _begin(self) -> None:
        """Begin a transaction, and read again what has changed since the last one."""
        while True:
            if self._is_replaced():
                self.close()
                self._connect()
            self.database.execute("BEGIN")
            try:
                self._follow()
                return
            except BaseException as error:
                self.database.rollback()
                if not isinstance(error, Damaged) or not self._is_replaced():
                    raise

    def _follow(self) -> None:
        (version,) = self.database.execute("PRAGMA data_version").fetchone()
        if self._seen is None:
            self._read(verify_from=0)
            return
        seen_version, *seen = self._seen
        # Whatever writes to these files makes them longer, or commits, which the version tells.
        database, *others = (
            new != old and (new is None or old is None or new[0] <= old[0])
            for new, old in zip(self._stamps(), seen, strict=True)
        )
        if any(others) or (database and version == seen_version):
            self._read(verify_from=0)
        elif version != seen_version:
            self._read(verify_from=self.rows, verify_passages_from=len(self.contents.passages))

    def _read(self, verify_from: int | None = None, verify_passages_from: int = 0) -> None:
        """Read the index; verify entries, rows and passages from some on, unless they are known to be whole."""
        self._seen = None
        contents = read_contents(self.folder, self.database)
        if contents.facts.get("features") != self.meta.get("features"):
            verify_from = verify_from and 0
        if contents.facts.get("passages") != self.meta.get("passages"):
            verify_passages_from = 0
        self.contents = contents
        if verify_from is not None and (verify_from or not is_verified(self.folder, self._files())):
            if self.rows - verify_from >= MANY:
                LOG.info("verifying the %d features of %s", self.rows, self.folder)
            for damage in damages(contents, self.database, verify_from, verify_passages_from):
                raise damage
        (version,) = self.database.execute("PRAGMA data_version").fetchone()
        self._seen = (version, *self._stamps())

    def _files(self) -> list[str]:
        """Those that hold the index itself."""
        return [DATABASE, *(self.meta[kind] for kind in ("features", "passages") if kind in self.meta)]

    def _stamps(self) -> list[list[int] | None]:
        names = DATABASE, self.meta.get("features"), self.meta.get("passages")
        return [stamp(self.folder / name) if name else None for name in names]


def is_index(folder: Path) -> bool:
    """Whether there is an index in `folder`."""
    return os.path.isfile(folder / DATABASE)


def missing_index(folder: Path) -> UserError:
    """What to raise where there is no index in `folder`."""
    if any(folder.glob(FILES["features"].format("*"))):
        what = "is missing, and with it what the features belong to"
        return Damaged(folder / DATABASE, what, f"remove {folder} and build the index again")
    return UserError(f"there is no index in {folder}; clamp3_index.py build {quoted(folder)} FOLDER makes one")
