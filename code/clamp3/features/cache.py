"""Features of raw files, kept in the user's cache by content, weights and what else they depend on.

A renamed file is not embedded again; a changed one is. One SQLite file serves all commands and processes; whatever
goes wrong with it costs time, but never stops a run.
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
from typing import Any

import numpy as np

from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, is_sound
from clamp3.formats.registry import format_of
from clamp3.io.files import content_hash, user_cache

CACHE_FILE = "features.sqlite"
DATABASE_TIMEOUT = 60  # seconds to wait for another process's transaction
BATCH = 500  # keys in one query; features in one transaction
SCHEMA = """
    CREATE TABLE IF NOT EXISTS features (
        key BLOB PRIMARY KEY, feature BLOB NOT NULL, repairs TEXT NOT NULL, used REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_use ON features (used);
"""


@dataclass(frozen=True)
class CachedFeature:
    """What the cache has of a file: its feature (hidden,) float32, and what had to be repaired to read it."""

    feature: np.ndarray
    repairs: list[str]


def harmless(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of the cache return None where its file cannot be used; a damaged file is removed."""

    @functools.wraps(method)
    def wrapped(cache: "FeatureCache", *arguments: Any) -> Any:
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
    """Features by key in the user's cache, about `limit` MB of them: beyond that the least recently used ones go."""

    def __init__(self, limit: int):
        self.path, self.limit = user_cache() / CACHE_FILE, limit

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=DATABASE_TIMEOUT)) as database:
            database.executescript(SCHEMA)
            with database:
                yield database

    @harmless
    def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedFeature]:
        """What is kept under `keys`."""
        found: dict[bytes, CachedFeature] = {}
        with self._transaction() as database:
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                chosen = f"WHERE key IN ({','.join('?' * len(batch))})"
                rows = database.execute(f"SELECT key, feature, repairs FROM features {chosen}", batch)
                found |= {
                    key: CachedFeature(np.frombuffer(data, "<f4"), json.loads(repairs)) for key, data, repairs in rows
                }
                database.execute(f"UPDATE features SET used = ? {chosen}", (time.time(), *batch))
        return found

    @harmless
    def put(self, features: dict[bytes, CachedFeature]) -> None:
        """Keep features by their keys."""
        now = time.time()
        rows = [
            (key, cached.feature.astype("<f4").tobytes(), json.dumps(cached.repairs), now)
            for key, cached in features.items()
        ]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
            pages, free, size = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            if (pages - free) * size > self.limit * 1e6:  # the file keeps its size, and its pages are reused
                least = "SELECT key FROM features ORDER BY used LIMIT (SELECT COUNT(*) / 5 FROM features)"
                database.execute(f"DELETE FROM features WHERE key IN ({least})")


def embed_files_once(
    embedder: Embedder, paths: Sequence[Path], cache: FeatureCache | None, hashes: Sequence[str] | None = None
) -> Iterator[tuple[Item, np.ndarray | None]]:
    """Each of `paths` as an Item, in any order, with its feature (hidden,), or None if it has an error.

    What the cache has is not read again; the rest is added to it. `hashes` are the files' `content_hash`es, where they
    are known. Raises UserError where weights that reading needs are missing.
    """
    keys = _keys(embedder, paths, hashes) if cache else {}
    found: dict[bytes, CachedFeature] = (cache.get(list(keys.values())) if cache and keys else None) or {}
    missing = []
    for index, path in enumerate(paths):
        cached, known = found.get(keys.get(index, b"")), format_of(path)
        if cached and known:
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
            if item.index in keys and feature is not None and np.isfinite(feature).all():
                fresh[keys[item.index]] = CachedFeature(feature, item.repairs)
            if cache and len(fresh) >= BATCH:
                cache.put(fresh)
                fresh = {}
            yield item, feature
    finally:  # also of a run that is interrupted
        if cache and fresh:
            cache.put(fresh)


def _keys(embedder: Embedder, paths: Sequence[Path], hashes: Sequence[str] | None) -> dict[int, bytes]:
    """For each file that can be read, what its feature depends on: content, kind, weights and precision.

    Empty where the weights are not known.
    """
    if embedder.identity is None:
        return {}
    keys = {}
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):  # which will be named when it is tried
            content = hashes[index] if hashes else content_hash(path)
            parts = [content, path.suffix.lower(), embedder.identity, embedder.precision]
            if is_sound(path):
                if embedder.audio_encoder_identity is None:
                    continue
                parts.append(embedder.audio_encoder_identity)
            keys[index] = hashlib.sha256(" ".join(parts).encode()).digest()
    return keys
