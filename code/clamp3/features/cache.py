"""Features of raw files, kept in the user's cache by content, weights and what else they depend on.

A renamed file is not embedded again, a changed one is. One SQLite file serves all commands and processes; whatever
goes wrong with it costs time, never a run.
"""

import contextlib
import functools
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.distributed import own_cores
from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, is_sound
from clamp3.formats.registry import format_of
from clamp3.io.files import content_hash, user_cache

CACHE_FILE = "features.sqlite"
PATIENCE = 60  # seconds for other processes to finish writing
BATCH = 500  # keys in one question; features in one transaction
SCHEMA = """
    CREATE TABLE IF NOT EXISTS features (
        key BLOB PRIMARY KEY, feature BLOB NOT NULL, repairs TEXT NOT NULL, used REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_use ON features (used);
"""


@dataclass(frozen=True)
class CachedFeature:
    """What the cache has of a file: its feature (hidden,) float32, and what had to be mended to read it."""

    feature: np.ndarray
    repairs: list[str]


def harmless(method: Callable) -> Callable:
    """Let a method of the cache return None where its file cannot be used; one that is damaged is removed."""

    @functools.wraps(method)
    def wrapped(cache: "FeatureCache", *arguments):
        try:
            return method(cache, *arguments)
        except (sqlite3.OperationalError, OSError):  # locked for long, a full disk, no permission
            return None
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                cache.path.unlink()
            return None

    return wrapped


class FeatureCache:
    """Features by key in the user's cache, about `limit` MB of them at most: then the least recently used ones go."""

    def __init__(self, limit: int):
        self.path, self.limit = user_cache() / CACHE_FILE, limit

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database:
            database.executescript(SCHEMA)
            with database:
                yield database

    @harmless
    def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedFeature]:
        """What is kept under `keys`."""
        found = {}
        with self._transaction() as database:
            for start in range(0, len(keys), BATCH):
                asked = keys[start : start + BATCH]
                chosen = f"WHERE key IN ({','.join('?' * len(asked))})"
                rows = database.execute(f"SELECT key, feature, repairs FROM features {chosen}", asked)
                found |= {
                    key: CachedFeature(np.frombuffer(data, "<f4"), json.loads(repairs)) for key, data, repairs in rows
                }
                database.execute(f"UPDATE features SET used = ? {chosen}", (time.time(), *asked))
        return found

    @harmless
    def put(self, kept: dict[bytes, CachedFeature]) -> None:
        """Keep features by their keys."""
        now = time.time()
        rows = [(key, one.feature.astype("<f4").tobytes(), json.dumps(one.repairs), now) for key, one in kept.items()]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
            pages, free, size = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            if (pages - free) * size > self.limit * 1e6:  # the file stays so large, and is used again
                least = "SELECT key FROM features ORDER BY used LIMIT (SELECT COUNT(*) / 5 FROM features)"
                database.execute(f"DELETE FROM features WHERE key IN ({least})")


def embed_files_once(
    embedder: Embedder, paths: Sequence[Path], cache: FeatureCache | None, hashes: Sequence[str] | None = None
) -> Iterator[tuple[Item, np.ndarray | None]]:
    """Each of `paths` as an Item, in any order, with its feature (hidden,), or None if it has an error.

    What the cache has is not read again, and the rest is kept in it. `hashes` are the files' `content_hash`es, where
    they are known. Raises UserError where weights that reading takes cannot be had.
    """
    keys = _keys(embedder, paths, hashes) if cache and embedder.identity else {}
    kept = cache.get(list(keys.values())) if keys else None
    missing = []
    for index, path in enumerate(paths):
        one = kept and kept.get(keys.get(index))
        if one:
            yield Item(index, format_of(path).modality, repairs=one.repairs), one.feature
        else:
            missing.append(index)
    if not missing:
        return
    files = [paths[index] for index in missing]
    embedder.prepare_for(files)
    fresh: dict[bytes, CachedFeature] = {}
    try:
        for item, feature in embedder.embed_items(embedder.read_raw(files, own_cores())):
            item.index = missing[item.index]
            if item.index in keys and feature is not None and np.isfinite(feature).all():
                fresh[keys[item.index]] = CachedFeature(feature, item.repairs)
            if len(fresh) >= BATCH:
                cache.put(fresh)
                fresh = {}
            yield item, feature
    finally:  # also of a run that is interrupted
        if fresh:
            cache.put(fresh)


def _keys(embedder: Embedder, paths: Sequence[Path], hashes: Sequence[str] | None) -> dict[int, bytes]:
    """For each file that can be read, what its feature depends on: content, kind, weights and precision."""
    keys = {}
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):  # which will be named when it is tried
            facts = [
                hashes[index] if hashes else content_hash(path),
                path.suffix.lower(),
                embedder.identity,
                embedder.precision,
            ]
            facts += [embedder.mert_identity] if is_sound(path) else []
            keys[index] = hashlib.sha256(" ".join(facts).encode()).digest()
    return keys
