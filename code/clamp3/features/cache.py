"""Features of raw files, kept in the user's cache by content, weights and what else they depend on.

A renamed file is not embedded again; a changed one is. One SQLite file serves all commands, processes and threads.
Nothing that happens to it stops a run or changes a feature: each row has a checksum, and whatever is odd is a miss.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, is_sound
from clamp3.formats.registry import PICTURE, format_of
from clamp3.inputs.tokenizer import tokenizer_identity
from clamp3.io.files import NO_HOME, content_hash, user_cache
from clamp3.modalities import TEXT

LOG = logging.getLogger("clamp3")
CACHE_FILE = "features.sqlite"
LOCK_TIMEOUT = 10  # seconds to wait for another process's transaction, all of which are short
RETRY_AFTER = 60  # seconds without a cache once it could not be used
BATCH = 500  # keys in one query; features in one transaction
APPLICATION_ID = 0x434C4133  # "CLA3": in the header of the database, it tells whose it is
SCHEMA = {
    "features": "CREATE TABLE features (key BLOB PRIMARY KEY, width INTEGER NOT NULL, feature BLOB NOT NULL,"
    " repairs BLOB NOT NULL, checksum BLOB NOT NULL, used REAL NOT NULL)",
    "by_use": "CREATE INDEX by_use ON features (used)",
}
FORMER_COLUMNS = ["key", "feature", "repairs", "used"]  # of earlier versions, whose rows have no checksums
# What using a database can raise; UnicodeError, where damage gets into SQLite's own messages.
FAILURES = (sqlite3.Error, OSError, MemoryError, UnicodeError)

T = TypeVar("T")


@dataclass(frozen=True)
class CachedFeature:
    """What the cache has of a file: its feature (hidden,) float32, and what had to be repaired to read it."""

    feature: np.ndarray
    repairs: list[str]


class ForeignDatabaseError(Exception):
    """The file in the cache's place is another application's."""


class DamagedDatabaseError(Exception):
    """The cache's database lacks what the cache has put into it."""


class FeatureCache:
    """Features by key in the user's cache, about `limit` MB of them: beyond that the least recently used ones go.

    Where its file cannot be used (locked, read-only, a full disk, another application's), there is a remark in the
    log, and nothing is found or kept. A damaged file is renamed to `...damaged`, and the cache starts empty.
    """

    def __init__(self, limit: int):
        self.path, self.limit = user_cache() / CACHE_FILE, limit
        self._resting_until = 0.0  # on the clock of time.monotonic
        self._has_told = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedFeature]:
        """What is kept under `keys`."""

        def read(database: sqlite3.Connection) -> dict[bytes, CachedFeature]:
            found: dict[bytes, CachedFeature] = {}
            for batch in _batches(keys):
                columns = "key, width, feature, repairs, checksum"
                rows = database.execute(f"SELECT {columns} FROM features WHERE {_chosen(batch)}", batch)
                found |= {row[0]: cached for row in rows if (cached := _checked(*row))}
            with contextlib.suppress(sqlite3.OperationalError):  # it may be read-only, and this is no great loss
                for batch in _batches(list(found)):
                    database.execute(f"UPDATE features SET used = ? WHERE {_chosen(batch)}", (time.time(), *batch))
            return found

        return self._attempt(read) or {}

    def put(self, features: dict[bytes, CachedFeature]) -> None:
        """Keep features by their keys."""
        rows = [_row(key, cached) for key, cached in features.items()]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?, ?)", rows)
            pages, free, size = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            if (pages - free) * size > self.limit * 1e6:  # the file keeps its size, and its pages are reused
                least = "SELECT key FROM features ORDER BY used LIMIT (SELECT COUNT(*) / 5 FROM features)"
                database.execute(f"DELETE FROM features WHERE key IN ({least})")

        self._attempt(write)

    def _attempt(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `use` returns of a transaction; None where the database cannot be used."""
        if time.monotonic() < self._resting_until:
            return None
        for is_last in (False, True):
            try:
                return self._transaction(use)
            except (*FAILURES, DamagedDatabaseError, ForeignDatabaseError) as error:
                if is_last or not (_may_mean_damage(error) and self._set_aside_if_damaged()):
                    has_home = self.path.parent != NO_HOME
                    reason = (
                        f"{self.path} cannot be used ({error})" if has_home else "no home folder; set CLAMP3_CACHE"
                    )
                    self._tell(f"features are not kept: {reason}")
                    self._resting_until = time.monotonic() + RETRY_AFTER
                    return None
        return None

    def _transaction(self, use: Callable[[sqlite3.Connection], T]) -> T:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT)) as database:
            database.text_factory = bytes
            database.execute("PRAGMA trusted_schema = OFF")
            if _schema(database) != SCHEMA:
                _create(database)
            with database:
                return use(database)

    def _set_aside_if_damaged(self) -> bool:
        """Rename the database if a second look confirms that it is damaged, which no moment's error does."""
        try:
            if not _is_damaged(self.path):
                return False
            aside = f"{self.path}.damaged"
            for ending in ("-journal", "-wal", "-shm", ""):  # journals first: no new database must be undone by them
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{ending}", f"{aside}{ending}")
        except OSError:
            return False
        self._tell(f"{self.path} was damaged: it is now called {Path(aside).name}, and the cache starts empty")
        return True

    def _tell(self, remark: str) -> None:
        if not self._has_told:
            LOG.warning("%s", remark)
        self._has_told = True


# ---------- rows ----------


def _row(key: bytes, cached: CachedFeature) -> tuple[Any, ...]:
    data, repairs = cached.feature.astype("<f4").tobytes(), json.dumps(cached.repairs).encode()
    return key, cached.feature.size, data, repairs, _checksum(key, data, repairs), time.time()


def _checked(key: Any, width: Any, data: Any, repairs: Any, checksum: Any) -> CachedFeature | None:
    """What a row holds; None where anything about it is odd."""
    if not all(isinstance(part, bytes) for part in (key, data, repairs)):
        return None
    if checksum != _checksum(key, data, repairs) or len(data) / 4 != width:
        return None
    feature = np.frombuffer(data, "<f4")
    return CachedFeature(feature, json.loads(repairs)) if np.isfinite(feature).all() else None


def _checksum(*parts: bytes) -> bytes:
    lengths = np.array([len(part) for part in parts], "<u8").tobytes()
    return hashlib.blake2b(b"".join((lengths, *parts)), digest_size=16).digest()


def _batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + BATCH] for start in range(0, len(keys), BATCH))


def _chosen(batch: Sequence[bytes]) -> str:
    return f"key IN ({','.join('?' * len(batch))})"


# ---------- the database ----------


def _schema(database: sqlite3.Connection) -> dict[str, str]:
    """What is in the database, by name: the statements that made it."""
    rows = database.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return {str(name, "utf-8", "replace"): str(sql or b"", "utf-8", "replace") for name, sql in rows}


def _create(database: sqlite3.Connection) -> None:
    """Make the tables in a new database, or in place of an earlier version's, whose features are made again."""
    database.execute("BEGIN IMMEDIATE")
    with database:
        found = _schema(database)
        if found == SCHEMA:  # another process was faster
            return
        if found and _columns(database) == FORMER_COLUMNS and found.keys() == SCHEMA.keys():
            database.execute("DROP TABLE features")
        elif database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,):
            raise DamagedDatabaseError("its tables are damaged")
        elif found:
            raise ForeignDatabaseError("it is another application's")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in SCHEMA.values():
            database.execute(statement)


def _columns(database: sqlite3.Connection) -> list[str]:
    return [str(row[1], "utf-8", "replace") for row in database.execute("PRAGMA table_info(features)")]


def _may_mean_damage(error: Exception) -> bool:
    """Whether an error can come from damage; locks, full disks and failing reads are OperationalErrors."""
    means = isinstance(error, sqlite3.DatabaseError | DamagedDatabaseError | UnicodeError)
    return means and not isinstance(error, sqlite3.OperationalError)


def _is_damaged(path: Path) -> bool:
    """Whether the file at `path` is a damaged database, or none; False where that cannot be told now."""
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT)) as database:
            database.text_factory = bytes
            sound = database.execute("PRAGMA integrity_check(1)").fetchone() == (b"ok",)
            return not sound or _schema(database) != SCHEMA
    except (sqlite3.OperationalError, MemoryError):
        return False
    except (sqlite3.DatabaseError, UnicodeError):
        return True


# ---------- files ----------


def embed_files_once(
    embedder: Embedder, paths: Sequence[Path], cache: FeatureCache | None, hashes: Sequence[str] | None = None
) -> Iterator[tuple[Item, np.ndarray | None]]:
    """Each of `paths` as an Item, in any order, with its feature (hidden,), or None if it has an error.

    What the cache has is not read again; the rest is added to it. `hashes` are the files' `content_hash`es, where they
    are known. Raises UserError where weights that reading needs are missing.
    """
    keys = CacheKeys(embedder, paths, hashes) if cache else None
    found = cache.get(list(keys.of.values())) if cache and keys and keys.of else {}
    missing = []
    for index, path in enumerate(paths):
        cached = found.get(keys.of.get(index, b"")) if keys else None
        known = format_of(path)
        if cached and known and cached.feature.shape == (embedder.sizes.clamp3_hidden_size,):
            yield Item(index, known.modality, repairs=cached.repairs), cached.feature
        else:
            missing.append(index)
    if not missing:
        return
    files = [paths[index] for index in missing]
    embedder.prepare_for(files)
    fresh: dict[bytes, CachedFeature] = {}
    try:
        for item, feature in embedder.embed_items(embedder.read_raw(files)):
            item.index = missing[item.index]
            if keys and feature is not None and np.isfinite(feature).all() and (key := keys.still_of(item.index)):
                fresh[key] = CachedFeature(feature, item.repairs)
            if cache and len(fresh) >= BATCH:
                cache.put(fresh)
                fresh = {}
            yield item, feature
    finally:  # also of a run that is interrupted
        if cache and fresh:
            cache.put(fresh)


class CacheKeys:
    """Under which keys the features of files are kept: what they depend on.

    These are content, kind, weights and precision, the tokenizer of texts and the audio encoder of sound. Files have
    no key where one of these is not known.
    """

    def __init__(self, embedder: Embedder, paths: Sequence[Path], hashes: Sequence[str] | None):
        self.embedder, self.paths = embedder, paths
        self.of: dict[int, bytes] = {}  # by the file's place in `paths`
        for index, path in enumerate(paths if embedder.identity else ()):
            with contextlib.suppress(OSError):  # which will be named when it is tried
                if (parts := self._parts(path)) is not None:
                    self.of[index] = _key(hashes[index] if hashes else content_hash(path), parts)

    def still_of(self, index: int) -> bytes | None:
        """The key under which the feature of a file that has been read may be kept.

        None if it would be a wrong one by now, because the file or the audio encoder was replaced meanwhile.
        """
        path = self.paths[index]
        if index not in self.of:
            return None
        if is_sound(path) and self.embedder.audio_encoder.identity != self.embedder.audio_encoder_identity:
            return None
        with contextlib.suppress(OSError):
            key = _key(content_hash(path), self._parts(path) or [])
            return key if key == self.of[index] else None
        return None

    @cached_property
    def _tokenizer_identity(self) -> str:
        return tokenizer_identity(self.embedder.sizes.text_model_name, self.embedder.tokenizer_folder)

    def _parts(self, path: Path) -> list[str] | None:
        embedder, known = self.embedder, format_of(path)
        if known and known.name == PICTURE:  # what it is in words depends on a network that may change
            return None
        parts = [path.suffix.lower(), embedder.identity, embedder.precision]
        if known and known.modality == TEXT.name:
            parts.append(self._tokenizer_identity)
        if is_sound(path):
            parts.append(embedder.audio_encoder_identity)
        return None if None in parts else [part for part in parts if part is not None]


def _key(content: str, parts: Iterable[str]) -> bytes:
    return hashlib.sha256(" ".join([content, *parts]).encode()).digest()
