"""The collection that the server searches: an index, or a folder for which a temporary one is made at the start."""

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache
from clamp3.features.embedder import Embedder
from clamp3.io.reports import FileIssue
from clamp3.search.index import Entry, Index, is_index, sampled
from clamp3.search.indexing import READY_MADE, check_or_record_model, update_index
from clamp3.search.ranking import normalized

LOG = logging.getLogger("clamp3")
# What explains why a file matches a text: (text, path) -> an object of JSON.
Explain = Callable[[str, Path], dict[str, Any]]
DEMO = Path(__file__).parent / "demo"  # a collection to try it on
MOST_FOUND = 200  # files that a search may ask for
Kind = Literal["text", "symbolic", "audio", "feature"]  # of files, as the index has it


class NotReady(Exception):
    """The collection cannot be searched yet, or never: the message says why."""


class Unknown(Exception):
    """There is no such file in the collection, or it is not what was indexed; the message says which."""


@dataclass
class Progress:
    """How far the collection is."""

    state: str = "loading"  # "loading", "indexing", "ready" or "failed"
    done: int = 0  # files
    total: int = 0
    reason: str = ""  # of "failed"
    failures: list[FileIssue] = field(default_factory=list)


def id_of(path: Path) -> str:
    """What a file of the collection is called in addresses: the same as long as its path is."""
    return hashlib.blake2b(os.fsencode(path), digest_size=9).hexdigest()


class Collection:
    """A folder of files, or an index of one; searched by features (hidden,).

    The index has a thread of its own, in which all of its work is done. `close` ends it.
    """

    def __init__(self, path: Path, load_embedder: Callable[[], Embedder], cache: FeatureCache | None = None):
        """Raises UserError where there is nothing at `path`."""
        if not path.exists():
            raise UserError(f"there is no folder or index {path}")
        self.path = path.resolve()
        self.progress = Progress()
        self._load_embedder, self._cache = load_embedder, cache
        self._thread = ThreadPoolExecutor(1, "index")
        self._folder: tempfile.TemporaryDirectory | None = None
        self._paths: dict[str, Path] = {}  # of the files, by their ids
        self._sample: tuple[Any, np.ndarray] = (None, np.zeros((0, 0), np.float32))  # of which state of the index
        self._is_closing = False
        self._ended = threading.Event()  # when it is ready or has failed

    @property
    def embedder(self) -> Embedder:
        """Raises NotReady before it is loaded."""
        self.check_ready()
        return self._load_embedder()

    def wait(self) -> None:
        """Return when the collection is ready. Raises NotReady where it never will be."""
        self._ended.wait()
        self.check_ready()

    def check_ready(self) -> None:
        """Raise NotReady with a sentence unless the collection can be searched."""
        now = self.progress
        if now.state == "failed":
            raise NotReady(now.reason)
        if now.state != "ready":
            counted = f": {now.done} of {now.total} files are embedded" if now.total else ""
            raise NotReady(f"the collection is still being read{counted}")

    # ---------- start and end ----------

    def start(self) -> None:
        """Begin to load the model and read the collection; `progress` tells how far it is."""
        self._thread.submit(self._prepare)

    def close(self) -> None:
        """End the thread; where it is still reading the collection, it ends with the files at hand."""
        self._is_closing = True
        self._thread.shutdown(wait=self._ended.is_set(), cancel_futures=True)
        if self._folder:
            self._folder.cleanup()

    def _prepare(self) -> None:
        try:
            embedder = self._load_embedder()
            embedder.embed_text(["ready"])  # so that the first search does not wait for the text tower
            self.progress.state = "indexing"
            self._index = Index(self.path) if is_index(self.path) else self._indexed()
            recorded = self._index.meta.get("identity")
            if recorded and not recorded.startswith(READY_MADE):
                check_or_record_model(self._index, embedder.identity, embedder.weights)
            if not len(self._index):
                raise UserError(f"nothing in {self.path} has a feature")
            for entry in self._index.entries():
                self._paths[id_of(entry.path)] = entry.path
            self.progress.state = "ready"
        except Exception as error:  # the page and the log tell it; nobody waits for this thread
            self.progress.state, self.progress.reason = "failed", str(error) or type(error).__name__
            if not self._is_closing:
                is_expected = isinstance(error, UserError)
                LOG.error("error: %s", self.progress.reason, exc_info=None if is_expected else error)
        finally:
            self._ended.set()

    def _indexed(self) -> Index:
        """A temporary index of the folder; features that the cache has are not made again."""
        self._folder = tempfile.TemporaryDirectory(prefix="clamp3-", ignore_cleanup_errors=True)
        index = Index.create(Path(self._folder.name, "index"))

        def count(done: int, total: int) -> None:
            self.progress.done, self.progress.total = done, total
            if self._is_closing:
                raise NotReady("the server ends")

        changes = update_index(index, self.path, self._load_embedder, self._cache, progress=count)
        self.progress.failures = changes.failures
        return index

    # ---------- search ----------

    def search(self, feature: np.ndarray, k: int, modality: str | None = None) -> list[dict]:
        """The k files closest to `feature` (hidden,), of a modality or of all: records as those of `search_index`.

        Each has an id and a percentile too. Raises NotReady, and UserError as `Index.search` does.
        """
        self.check_ready()
        return self._thread.submit(self._search, feature, k, modality).result()

    def search_like(self, identity: str, k: int, modality: str | None = None) -> list[dict]:
        """The k files closest to one of the collection, without itself. Raises Unknown where it is none of it."""
        self.check_ready()
        return self._thread.submit(self._search_like, identity, k, modality).result()

    def _search(self, feature: np.ndarray, k: int, modality: str | None, but: Path | None = None) -> list[dict]:
        found = self._index.search(feature, k + (but is not None), modality=modality)
        others = np.sort(self._sampled() @ normalized(feature[None])[0])
        weights = self._index.meta.get("weights", "weights that are not known")
        records = [self._record(entry, cosine, weights, others) for cosine, entry in found if entry.path != but][:k]
        return [{"rank": rank, **record} for rank, record in enumerate(records, 1)]

    def _search_like(self, identity: str, k: int, modality: str | None) -> list[dict]:
        path = self.path_of(identity)
        with self._index.snapshot():
            entries = list(self._index.entries("path = ?", (os.fsencode(path),)))
            if not entries:
                raise Unknown("this file has left the collection")
            feature = np.array(self._index.features[entries[0].row])
        return self._search(feature, k, modality, but=path)

    def _record(self, entry: Entry, cosine: float, weights: str, others: np.ndarray) -> dict:
        self._paths[id_of(entry.path)] = entry.path
        below = np.searchsorted(others, cosine - 1e-6)  # what is as close is not below; the file itself is
        return {
            "cosine": cosine,
            "percentile": round(100 * float(below) / max(len(others) - 1, 1), 1),
            "file": self.name_of(entry.path),
            "modality": entry.modality,
            "metadata": entry.metadata,
            "weights": weights,
            "id": id_of(entry.path),
        }

    def _sampled(self) -> np.ndarray:
        """Rows (n, hidden) of the index, all or a random sample of them, as it is now."""
        index = self._index
        state = (index.meta.get("features"), index.rows, len(index.deleted_rows))
        if self._sample[0] != state:
            rows = np.setdiff1d(np.arange(index.rows), index.deleted_rows)
            self._sample = state, np.array(index.features[rows[sampled(len(rows))]])
        return self._sample[1]

    # ---------- files ----------

    def name_of(self, path: Path) -> str:
        """A file as people are told of it: relative to the folder, or as the index has it."""
        if self._folder and path.is_relative_to(self.path):
            return path.relative_to(self.path).as_posix()
        return str(path)

    def path_of(self, identity: str) -> Path:
        """The path of a file of the collection by its id. Raises Unknown."""
        if (path := self._paths.get(identity)) is None:
            raise Unknown("there is no such file in this collection")
        return path

    def served(self, identity: str) -> Path:
        """The path of a file that may be shown. Raises Unknown where it leads out of the collection, or is gone.

        A link is followed to where it leads, and that must be a file of the collection itself.
        """
        path = self.path_of(identity)
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise Unknown("this file is no longer there") from None
        if real != path and id_of(real) not in self._paths or not real.is_file():
            raise Unknown("this is a link to a file outside of the collection, which is not shown")
        return real
