"""Search in what `exporting` writes into other engines: a Qdrant collection, by address or folder, a LanceDB table.

These need qdrant-client and lancedb, which are imported when they are first used.
"""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.rows import MissingPackage, package
from clamp3.modalities import SYMBOLIC
from clamp3.search.combining import diverse, pool_size
from clamp3.search.filters import EVERYTHING, MIDI_KIND, SCORE, File, Filter
from clamp3.search.index import LARGE
from clamp3.search.ranking import normalized

API_KEY = "QDRANT_API_KEY"  # the environment variable that commands take the key for a Qdrant server from
NAME = "clamp3"  # of a collection or table, unless another is given
SERVERS = ("http://", "https://")  # how the address of a Qdrant server begins
STORAGE = ("s3://", "gs://", "az://")  # and that of a LanceDB database outside of any folder
TIMEOUT = 60  # seconds for an answer of a server
DEEPER = 10  # times as many rows are asked for where too few of them pass a filter
REFINE = 10  # times as many rows get their true cosines in LanceDB's approximate search, whose indexes keep others


@dataclass(frozen=True)
class Hit:
    """A row that was found."""

    cosine: float
    path: Path
    modality: str
    metadata: Mapping[str, Any]
    fingerprint: str | None  # of the weights
    feature: np.ndarray | None = None  # (hidden,), where it was asked for


class Engine(ABC):
    """A collection or table of exported rows. All methods raise UserError where it cannot be reached or read."""

    what: str  # it is, for people
    hidden: int  # numbers of a feature
    weights: str | None = None  # that made the features, where that is known
    fingerprint: str | None = None  # of these weights

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def closest(
        self, unit: np.ndarray, k: int, modality: str | None, approximate: bool, with_features: bool
    ) -> list[Hit]:
        """The k rows closest to `unit` (hidden,), of length one, best first; of a modality, or of all."""

    def check_approximate(self) -> None:  # noqa: B027 (Qdrant decides by itself)
        """Raise UserError where the engine has nothing for approximate search."""

    @abstractmethod
    def close(self) -> None: ...

    def search(
        self,
        feature: np.ndarray,
        k: int = 10,
        approximate: bool | None = None,
        only: Filter = EVERYTHING,
        diversity: float = 0.0,
        hash_of: Callable[[Path], str] = lambda _: "",
    ) -> list[Hit]:
        """The k rows closest to `feature` (hidden,), best first, as of `Index.search`.

        The engine selects by modality. Other conditions are looked at here, over more and more of the closest rows
        until enough pass, or all were seen. `approximate` is left to the engine, by default where it has LARGE rows
        and there are no such conditions. `hash_of` gives the content hashes of files that are at hand. Raises
        UserError for a feature of another width or with values that are not finite.
        """
        if feature.shape != (self.hidden,):
            raise UserError(
                f"the query's feature has {feature.size} numbers, each of {self.what} has {self.hidden}: features of "
                "different models cannot be compared"
            )
        if not np.isfinite(feature).all():
            raise UserError("the query's feature holds NaN or infinite values")
        modality = only.modality or (SYMBOLIC.name if only.kind in (SCORE, MIDI_KIND) else only.kind)
        if approximate:
            self.check_approximate()
        if approximate is None:
            approximate = len(self) >= LARGE and only == Filter(only.modality)
        unit, wanted = normalized(feature[None])[0], pool_size(k) if diversity else k
        depth = wanted + len(only.but)
        while True:
            found = self.closest(unit, depth, modality, approximate, bool(diversity))
            passed = _passed(found, only, hash_of, are_all=len(found) < depth)
            if len(passed) >= wanted or len(found) < depth:
                break
            depth *= DEEPER
        if diversity and passed:
            cosines, features = zip(*((hit.cosine, hit.feature) for hit in passed[:wanted]), strict=True)
            return [passed[place] for place in diverse(np.array(cosines), np.stack(features), k, diversity)]
        return passed[:k]


def _passed(found: list[Hit], only: Filter, hash_of: Callable[[Path], str], are_all: bool) -> list[Hit]:
    """Those that may be found; UserErrors of conditions on columns that no row has wait until the rows `are_all`."""
    files = [File(hit.path, hit.modality, hash_of(hit.path) if only.but else "", hit.metadata) for hit in found]
    try:
        return [hit for hit, passes in zip(found, only.passed(files), strict=True) if passes]
    except UserError:
        if are_all:
            raise
        return []


class Qdrant(Engine):
    """A collection on a server, or in a folder of the client's local mode, which always looks at all rows."""

    def __init__(self, place: str, name: str = NAME, api_key: str | None = None):
        self.place, self.name, self.what = place, name, f"collection {name} in {place}"
        self._models = package("qdrant_client", "qdrant-client").models
        with contextlib.ExitStack() as on_error, reached(place):
            self._client = on_error.enter_context(contextlib.closing(qdrant_client(place, api_key)))
            if not self._client.collection_exists(name):
                there = [one.name for one in self._client.get_collections().collections]
                raise missing(place, f"collection {name}", there)
            self._look()
            on_error.pop_all()

    def _look(self) -> None:
        config = self._client.get_collection(self.name).config
        vectors, (points, _) = config.params.vectors, self._client.scroll(self.name, limit=1)
        payload = (points[0].payload or {}) if points else {}
        if getattr(vectors, "distance", None) != self._models.Distance.COSINE or (points and "file" not in payload):
            raise not_exported(self.what)
        self.hidden, self.fingerprint = vectors.size, payload.get("fingerprint")
        self.weights = (getattr(config, "metadata", None) or {}).get("weights")

    def __len__(self) -> int:
        with reached(self.place):
            return self._client.count(self.name).count

    def closest(
        self, unit: np.ndarray, k: int, modality: str | None, approximate: bool, with_features: bool
    ) -> list[Hit]:
        condition = None
        if modality:
            match = self._models.MatchValue(value=modality)
            condition = self._models.Filter(must=[self._models.FieldCondition(key="modality", match=match)])
        exact = not approximate and self.place.startswith(SERVERS)
        with reached(self.place):
            points = self._client.query_points(
                self.name,
                unit.tolist(),
                query_filter=condition,
                search_params=self._models.SearchParams(exact=True) if exact else None,
                limit=k,
                with_vectors=with_features,
            ).points
        return [
            _hit(self.what, point.score, point.payload, point.vector if with_features else None) for point in points
        ]

    def close(self) -> None:
        self._client.close()


class Lance(Engine):
    """A table of a LanceDB database."""

    def __init__(self, place: str, name: str = NAME, api_key: str | None = None):
        self.place, self.name, self.what = place, name, f"table {name} in {place}"
        lancedb = package("lancedb", "lancedb")
        with reached(place):
            database = lancedb.connect(place)
            try:
                self._table = database.open_table(name)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                there = [path.stem for path in Path(place).glob("*.lance")]  # in a folder
                raise missing(place, f"table {name}", sorted(there)) from None
            schema = self._table.schema
            columns = {"file", "modality", "metadata", "fingerprint", "feature"}
            if not columns.issubset(schema.names) or not hasattr(schema.field("feature").type, "list_size"):
                raise not_exported(self.what)
            self.hidden = schema.field("feature").type.list_size
            weights = (schema.metadata or {}).get(b"weights", b"None").decode()
            self.weights = None if weights == "None" else weights
            for row in self._table.search().select(["fingerprint"]).limit(1).to_list():
                self.fingerprint = row["fingerprint"]

    def __len__(self) -> int:
        with reached(self.place):
            return self._table.count_rows()

    def check_approximate(self) -> None:
        with reached(self.place):
            if not any("feature" in index.columns for index in self._table.list_indices()):
                raise UserError(f"{self.what} has no index for approximate search; LanceDB's create_index makes one")

    def closest(
        self, unit: np.ndarray, k: int, modality: str | None, approximate: bool, with_features: bool
    ) -> list[Hit]:
        columns = ["file", "modality", "metadata", "fingerprint", "_distance", *["feature"] * with_features]
        with reached(self.place):
            query = self._table.search(unit, vector_column_name="feature").distance_type("cosine").select(columns)
            if modality:
                query = query.where("modality = '{}'".format(modality.replace("'", "''")), prefilter=True)
            query = query.refine_factor(REFINE) if approximate else query.bypass_vector_index()
            rows = query.limit(k).to_list()
        return [
            _hit(self.what, 1 - row["_distance"], {**row, "metadata": json.loads(row["metadata"])}, row.get("feature"))
            for row in rows
        ]

    def close(self) -> None:
        pass


def _hit(what: str, cosine: float, row: Mapping[str, Any] | None, feature: Any) -> Hit:
    """That of a row as `exporting` writes it. Raises UserError where it is another's."""
    try:
        found = {name: (row or {})[name] for name in ("modality", "metadata", "fingerprint")}
        path = Path((row or {})["file"])
    except KeyError:
        raise not_exported(what) from None
    return Hit(cosine, path, **found, feature=None if feature is None else np.array(feature, np.float32))


# ---------- by address ----------

ENGINES: dict[str, type[Qdrant] | type[Lance]] = {"qdrant": Qdrant, "lance": Lance}


def engine_at(place: str) -> str | None:
    """Which of ENGINES is at `place`, an address or a folder, as far as these tell."""
    if place.startswith(SERVERS + STORAGE) and not any(map(str.isspace, place)):
        return "qdrant" if place.startswith(SERVERS) else "lance"
    try:
        if next(Path(place).glob("*.lance"), None):
            return "lance"
        is_local_qdrant = Path(place, "meta.json").is_file() and Path(place, "collection").is_dir()
    except (OSError, ValueError):  # a long text, say
        return None
    return "qdrant" if is_local_qdrant else None


def open_engine(place: str, name: str = NAME, api_key: str | None = None) -> Engine:
    """The collection or table `name` at `place`, the address or folder that the index was exported to.

    `api_key` is for a server of Qdrant that wants one. Raises UserError where there is none.
    """
    kind = engine_at(place)
    if kind is None:
        raise UserError(f"{place} is no address of a Qdrant server, and no folder of one or of a LanceDB database")
    try:
        return ENGINES[kind](place, name, api_key)
    except MissingPackage as error:
        raise UserError(f"{place}: {error}") from None


def qdrant_client(place: str, api_key: str | None = None) -> Any:
    """The client of a server, by its address, or of a folder."""
    client = package("qdrant_client", "qdrant-client").QdrantClient
    if not place.startswith(SERVERS):
        return client(path=place)
    # Whether server and client are of like versions would be asked in each run, and warned of.
    return client(url=place, api_key=api_key, timeout=TIMEOUT, check_compatibility=False)


@contextlib.contextmanager
def reached(place: str, done: str = "read") -> Iterator[None]:
    """A block in which something is `done` at `place`; what goes wrong there becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # those of clients, of their transports and of Rust are of many kinds
        way_out = ""
        if getattr(error, "status_code", None) in (401, 403):
            way_out = f"; the environment variable {API_KEY} has to hold a key for that"
        elif isinstance(getattr(error, "source", None), Exception) and place.startswith(SERVERS):
            way_out = "; is a Qdrant server running there?"
        raise UserError(f"{place} cannot be {done}: {' '.join(str(error).split())}{way_out}") from error


def missing(place: str, what: str, there: list[str]) -> UserError:
    others = f", there {'are' if there[1:] else 'is'} {', '.join(there)}" if there else ""
    return UserError(f"{place} has no {what}{others}: give the name that it was exported under by --name")


def not_exported(what: str) -> UserError:
    return UserError(f"{what} does not hold what clamp3_index.py export writes: export an index under another --name")
