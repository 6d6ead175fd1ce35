"""The collection that the server searches: an index, or a folder for which a temporary one is made at the start."""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache
from clamp3.features.embedder import Embedder
from clamp3.inputs.passages import Span
from clamp3.io.reports import FileIssue
from clamp3.models.onnx_files import is_onnx
from clamp3.search.collection import UNKNOWN
from clamp3.search.combining import WITHOUT, combined_query
from clamp3.search.filters import EVERYTHING, Condition, Filter, kind_of
from clamp3.search.index import Entry, Index, is_index, sampled
from clamp3.search.indexing import READY_MADE, check_or_record_model, update_index
from clamp3.search.ranking import normalized

LOG = logging.getLogger("clamp3")
DEMO = Path(__file__).parent / "demo"  # a collection to try it on
MOST_FOUND = 200  # files that a search may ask for
MOST_VALUES = 100  # of a column of metadata, that are offered to be chosen from
Modality = Literal["text", "symbolic", "audio", "feature"]  # of files, as the index has it
Kind = Literal["score", "midi", "audio", "text"]  # of files, as filters have it


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
    passages: str = "none"  # or "making", as many files as the next two say, or "ready"
    passages_done: int = 0
    passages_total: int = 0


@dataclass(frozen=True)
class Terms:
    """What is asked beside a query: files of the collection by their ids, and which files may be found."""

    also: tuple[str, ...] = ()  # whose features are added to the query's
    without: tuple[str, ...] = ()  # and subtracted (`combining.combined_query`)
    only: Filter = EVERYTHING
    by_passage: bool = False  # files are ranked by the closest of their passages
    k: int = 10


@dataclass(frozen=True)
class Part:
    """One of the queries that are asked together."""

    weight: float
    unit: np.ndarray  # its feature (hidden,), of length one
    source: str | Path  # a text, or a file
    name: str | None = None  # of the file, for people
    entry: Entry | None = None  # where it is one of the collection


def id_of(path: Path) -> str:
    """What a file of the collection is called in addresses: the same as long as its path is."""
    return hashlib.blake2b(os.fsencode(path), digest_size=9).hexdigest()


def readable(name: Path | str) -> str:
    """The name of a file as it can be told in JSON: bytes that are not UTF-8 become escapes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Collection:
    """A folder of files, or an index of one; searched by features (hidden,).

    The index has a thread of its own, in which all of its work is done, and another makes the passages of a folder's
    files, with an `Index` of its own. `close` ends both.
    """

    def __init__(
        self,
        path: Path,
        load_embedder: Callable[[], Embedder],
        cache: FeatureCache | None = None,
        passages: bool = False,
    ):
        """With `passages`, a folder gets them too, once it can be searched; an index has them or not.

        Raises UserError where there is nothing at `path`.
        """
        if not path.exists():
            raise UserError(f"there is no folder or index {path}")
        self.path = path.resolve()
        self.progress = Progress()
        self._load_embedder, self._cache = load_embedder, cache
        self._with_passages = passages
        self._thread, self._passage_thread = ThreadPoolExecutor(1, "index"), ThreadPoolExecutor(1, "passages")
        self._folder: tempfile.TemporaryDirectory | None = None
        self._paths: dict[str, Path] = {}  # of the files, by their ids
        self.kinds: dict[str, int] = {}  # how many files there are of each kind
        self.columns: dict[str, set[str]] = {}  # of metadata, with their values
        self.common = ""  # how the names of all files begin, to the end of a folder
        self._sample: tuple[Any, np.ndarray] = (None, np.zeros((0, 0), np.float32))  # of which state of the index
        self.explains = True  # whether the model can say why something was found; once it is loaded
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
        self._passage_thread.shutdown(wait=False, cancel_futures=True)
        self._thread.shutdown(wait=self._ended.is_set(), cancel_futures=True)
        if self._folder:
            self._folder.cleanup()

    def _prepare(self) -> None:
        try:
            embedder = self._load_embedder()
            self.explains = not (embedder.weights and is_onnx(embedder.weights))
            embedder.embed_text(["ready"])  # so that the first search does not wait for the text tower
            self.progress.state = "indexing"
            self._index = Index(self.path) if is_index(self.path) else self._indexed()
            recorded = self._index.meta.get("identity")
            if recorded and not recorded.startswith(READY_MADE):
                check_or_record_model(self._index, embedder.identity, embedder.weights)
            if not len(self._index):
                raise UserError(f"nothing in {self.path} has a feature")
            self._look_through()
            if not self._folder:
                folder = os.path.commonpath({path.parent for path in self._paths.values()})
                self.common = readable(os.path.join(folder, ""))
            if "with_passages" in self._index.meta:
                self.progress.passages = "ready"
            elif self._folder and self._with_passages:
                self.progress.passages = "making"
                self._passage_thread.submit(self._make_passages, self._index.folder)
            self.progress.state = "ready"
        except Exception as error:  # the page and the log tell it; nobody waits for this thread
            self.progress.state, self.progress.reason = "failed", str(error) or type(error).__name__
            if not self._is_closing:
                is_expected = isinstance(error, UserError)
                LOG.error("error: %s", self.progress.reason, exc_info=None if is_expected else error)
        finally:
            self._ended.set()

    def _look_through(self) -> None:
        """Note what there is to ask for."""
        kinds: dict[str, int] = {}
        columns: dict[str, set[str]] = {}
        for entry in self._index.entries():
            self._paths[id_of(entry.path)] = entry.path
            kind = kind_of(entry.path, entry.modality) or entry.modality
            kinds[kind] = kinds.get(kind, 0) + 1
            for column, value in entry.metadata.items():
                columns.setdefault(column, set()).add(str(value))
        self.kinds, self.columns = kinds, columns

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

    def _make_passages(self, folder: Path) -> None:
        """Give the temporary index in `folder` the passages of its files, while it is searched."""

        def count(done: int, total: int) -> None:
            self.progress.passages_done, self.progress.passages_total = done, total
            if self._is_closing:
                raise NotReady("the server ends")

        try:
            with contextlib.closing(Index(folder)) as index:
                update_index(index, self.path, self._load_embedder, self._cache, progress=count, passages=True)
            self.progress.passages = "ready"
        except Exception as error:  # the search goes on without them
            self.progress.passages = "none"
            if not self._is_closing:
                LOG.warning("there will be no passages: %s", str(error) or type(error).__name__)

    # ---------- search ----------

    def search(self, query: np.ndarray | str, terms: Terms, melody: np.ndarray | None = None) -> list[dict]:
        """The files closest to a feature (hidden,), or to a file of the collection, by its id: records.

        `melody` is the fingerprint of the query's melody, by which passages are found too.

        They are those of `search_index`, with an id, and of whole files a percentile; "passage" is there where the
        collection has passages. Files that are asked with, and copies of them, are not found. Raises NotReady,
        Unknown, ValueError for terms that cannot be met, and UserError as `Index.search` does.
        """
        self.check_ready()
        return self._thread.submit(self._search, query, terms, melody).result()

    def parts(self, query: np.ndarray | str, terms: Terms, source: str | Path = "") -> list[Part]:
        """What is asked, part by part; `source` is what `query` is the feature of.

        Raises NotReady, and Unknown where a file is none of the collection's or may not be shown.
        """
        self.check_ready()
        for identity in (query, *terms.also, *terms.without):
            if isinstance(identity, str):
                self.served(identity)
        return self._thread.submit(self._parts, query, terms, source).result()

    def _parts(self, query: np.ndarray | str, terms: Terms, source: str | Path = "") -> list[Part]:
        first = self._part(query, 1.0) if isinstance(query, str) else Part(1.0, normalized(query[None])[0], source)
        others = [self._part(one, 1.0) for one in terms.also] + [self._part(one, -WITHOUT) for one in terms.without]
        return [first, *others]

    def _part(self, identity: str, weight: float) -> Part:
        """A file of the collection, whose feature is in the index."""
        path = self.path_of(identity)
        with self._index.snapshot():
            entries = list(self._index.entries("path = ?", (os.fsencode(path),)))
            if not entries:
                raise Unknown("this file has left the collection")
            return Part(weight, np.array(self._index.features[entries[0].row]), path, self.name_of(path), entries[0])

    def _search(self, query: np.ndarray | str, terms: Terms, melody: np.ndarray | None) -> list[dict]:
        self._check(terms)
        parts = self._parts(query, terms)
        if parts[0].entry:
            melody = self._index.melody_of(parts[0].entry)
        if len(parts) > 1:
            melody = None
        first, *others = (part.unit for part in parts)
        try:
            feature = combined_query(first, others[: len(terms.also)], others[len(terms.also) :])
        except UserError as error:
            raise ValueError(str(error)) from None
        hashes = {part.entry.hash for part in parts if part.entry}
        same = {entry.path for one in hashes for entry in self._index.entries("hash = ?", (one,))}
        try:
            found = self._found(feature, replace(terms, k=terms.k + len(same)), melody)
        except UserError:
            self._look_through()  # a column that is asked for may have left the index
            self._check(terms)
            raise
        found = [one for one in found if one[1].path not in same][: terms.k]
        weights = self._index.meta.get("weights", UNKNOWN)
        everyone = None if terms.by_passage else np.sort(self._sampled() @ feature)
        names = {
            name: [part.name for part in parts[1:] if (part.weight > 0) == (name == "also")]
            for name in ("also", "without")
            if getattr(terms, name)
        }
        asked = {"query": parts[0].name, **names} if parts[0].name else names
        return [
            {"rank": rank, **asked, **self._record(entry, cosine, span, melodic, weights, everyone)}
            for rank, (cosine, entry, span, melodic) in enumerate(found, 1)
        ]

    def _check(self, terms: Terms) -> None:
        """Raise ValueError for terms that this collection, as it is now, cannot meet."""
        if terms.by_passage and self.progress.passages != "ready":
            self._index.refresh()
            if self.progress.passages == "making":
                raise ValueError("the passages are still being made")
            if "with_passages" not in self._index.meta:
                raise ValueError(
                    "there are no passages: clamp3_index.py build INDEX FOLDER --passages makes an index with them"
                )
            self.progress.passages = "ready"
        for condition in terms.only.where:
            try:
                Condition.parse(condition, self.columns)
            except UserError:
                self._look_through()  # the index may have been added to
                try:
                    Condition.parse(condition, self.columns)
                except UserError as error:
                    raise ValueError(str(error)) from None

    def _found(
        self, feature: np.ndarray, terms: Terms, melody: np.ndarray | None
    ) -> list[tuple[float, Entry, Span | None, float | None]]:
        """The closest files, with their closest passages where there are any."""
        index = self._index
        if terms.by_passage:
            found = index.search(feature, terms.k, passages=True, per_file=1, only=terms.only, melody=melody)
            return [(*one[:3], one[3] if one[3:] else None) for one in found]
        found = index.search(feature, terms.k, only=terms.only)
        spans = index.closest_passages_of(feature, [entry for _, entry in found], melody)
        return [(cosine, entry, spans.get(entry.path), None) for cosine, entry in found]

    def _record(
        self,
        entry: Entry,
        cosine: float,
        span: Span | None,
        melodic: float | None,
        weights: str,
        others: np.ndarray | None,
    ) -> dict[str, Any]:
        """`others`: cosines of the collection with the query, in order; None where they do not compare."""
        self._paths[id_of(entry.path)] = entry.path
        rank = {}
        if others is not None:
            below = np.searchsorted(others, cosine - 1e-6)  # what is as close is not below; the file itself is
            rank = {"percentile": round(100 * float(below) / max(len(others) - 1, 1), 1)}
        return {
            "cosine": cosine,
            **({} if melodic is None else {"melody": melodic}),
            **rank,
            "file": self.name_of(entry.path),
            **({"passage": span.as_json()} if span else {}),
            "modality": entry.modality,
            "kind": kind_of(entry.path, entry.modality),
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
            return readable(path.relative_to(self.path).as_posix())
        return readable(path)

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
