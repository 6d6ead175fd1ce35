"""Sets of files with one feature each, read or made on the fly: what the answering commands compare."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache, embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.features.manifest import GLOBAL, Maker, load_manifest
from clamp3.features.parts import is_part, read_parts
from clamp3.formats.registry import extensions, format_of
from clamp3.inputs.tokenizer import unknown_letters
from clamp3.io.files import load_array
from clamp3.io.folders import Plan, refuse_special, special_inputs, walk
from clamp3.io.reports import FileIssue, describe_error
from clamp3.modalities import AUDIO, SYMBOLIC, TEXT
from clamp3.search.store import Store, is_index

UNKNOWN = "weights that are not known"


@dataclass
class Collection:
    """Files, by their paths relative to `folder`, and a feature of each."""

    folder: Path
    files: list[str]
    features: np.ndarray  # (n, hidden) float32
    ready: int = 0  # of the features, those that were read
    failures: list[FileIssue] = field(default_factory=list)
    repairs: list[FileIssue] = field(default_factory=list)
    ignored: int = 0  # files of other kinds
    weights: Path | None = None  # of the features that were made
    fingerprint: str | None = None  # of these weights
    recorded: Maker | None = None  # what made the features that were read, where their folder says so
    skipped: list[FileIssue] = field(default_factory=list)  # FIFOs, devices and sockets that are named like inputs
    made: frozenset[str] = frozenset()  # those of `files` that are inputs themselves, not features that were read

    @property
    def modalities(self) -> list[str]:
        """Of each file: that of MERT features is audio's, and ready-made features are one of their own."""
        own = {file: modality_of(Path(file)) for file in self.files}
        return [AUDIO.name if kind == "feature" and file in self.made else kind for file, kind in own.items()]


class NoFeatures(UserError):
    """Nothing in a folder has a feature; `collection` says why."""

    def __init__(self, message: str, collection: Collection):
        super().__init__(message)
        self.collection = collection


def load_collection(
    path: Path, load_embedder: Callable[[], Embedder], cache: FeatureCache | None = None, progress: bool = False
) -> Collection:
    """A file, or all files under a folder, with their features: those that have one, in the order of their paths.

    A .npy of one row, (1, hidden) or (hidden,), is a feature; any other is MERT features, (…, T, hidden), and is
    embedded like raw files, unless the cache has its feature. The embedder is loaded if there are such files;
    `progress` shows a bar. Rows of Parquet files (`features.parts`) are features too, by the names of the inputs that
    they were made of. Raises UserError where nothing has a feature, or where features of different widths, which
    different models gave, would be compared.
    """
    noted = Plan()
    if path.is_dir():
        folder, paths = path, list(walk(path, noted))
    elif path.exists():
        refuse_special(path)
        folder, paths = path.parent, [path]
    else:
        raise UserError(f"there is no file or folder {path}")
    taken = [path for path in paths if format_of(path)]
    result = Collection(folder, [], np.zeros((0, 0)), failures=noted.failures)
    parts = read_parts([path for path in paths if is_part(path)])
    result.ignored = sum(not path.name.startswith(".") for path in paths if not format_of(path) and not is_part(path))
    result.skipped = special_inputs(noted, extensions())
    features: dict[Path, np.ndarray] = dict(zip(parts.files, parts.features, strict=True))
    raw = []
    for file in taken:
        try:
            feature = ready_feature(file)
        except (ValueError, OSError) as error:
            result.failures.append(FileIssue(str(file), describe_error(error)))
            continue
        if feature is None:
            raw.append(file)
        else:
            features[file] = feature
    result.ready = len(features)
    result.recorded = recorded_maker(folder) if features else None
    if parts.fingerprint:
        result.recorded = {"file": UNKNOWN, **(result.recorded or {}), "fingerprint": parts.fingerprint}
    if raw:
        features.update(_embedded(load_embedder(), raw, cache, result, progress))
    if not features:
        raise NoFeatures(f"nothing in {path} has a feature; what can be read: {' '.join(extensions())}", result)
    check_widths(features)
    ordered = [*parts.files, *(file for file in taken if file in features)]
    result.files = [file.relative_to(folder).as_posix() for file in ordered]
    result.features = np.stack([features[file] for file in ordered])
    inputs = {*parts.files, *raw}
    result.made = frozenset(name for file, name in zip(ordered, result.files, strict=True) if file in inputs)
    return result


def load_query(
    query: str, load_embedder: Callable[[], Embedder], cache: FeatureCache | None = None, as_text: bool = False
) -> Collection:
    """What `query` is, a file or else a text, and its feature; `as_text` takes it for a text in any case.

    Raises UserError for neither and for a folder.
    """
    if not as_text and (path := existing_path(query)):
        if path.is_dir():
            raise UserError(
                f"{query} is a folder; to compare folders, use clamp3_score.py or clamp3_eval.py; a search "
                "takes a text of this name by --text"
            )
        return load_collection(path, load_embedder, cache)
    if not as_text and format_of(Path(query)):
        raise UserError(f"there is no file {query}; a search takes a text of this name by --text")
    if not query.strip():
        raise UserError("the query is empty: give a text in quotes, or a file")
    embedder = load_embedder()
    remark = unknown_letters(embedder.tokenizer, query)
    return Collection(
        *(Path(), [query], embedder.embed_text([query])),
        repairs=[FileIssue(query, remark)] if remark else [],
        weights=embedder.weights,
        fingerprint=embedder.fingerprint,
    )


def existing_path(query: str) -> Path | None:
    """The file or folder that `query` names, if there is one; else it is a text."""
    try:
        return Path(query) if Path(query).exists() else None
    except (OSError, ValueError):  # a long text, say
        return None


def query_modality(query: str, as_text: bool = False) -> str:
    """The modality of what `load_query` takes `query` for."""
    path = None if as_text else existing_path(query)
    return modality_of(path) if path else TEXT.name


def modality_of(path: Path) -> str:
    """The modality of a file of any kind; ready-made features, whose own is not known, are one of their own."""
    if path.suffix.lower() == ".npy":
        return "feature"
    known = format_of(path)
    return known.modality if known else SYMBOLIC.name


def made_by(*collections: Collection) -> str:
    """What made the features that were compared, for people."""
    weights = {str(collection.weights) for collection in collections if collection.weights}
    weights |= {file for collection in collections if (file := (collection.recorded or {}).get("file"))}
    return " and ".join(sorted(weights)) or "others: all came ready-made"


def provenance(*collections: Collection) -> dict[str, str | None]:
    """What made the features that were compared, for the records of an answer: weights, and their fingerprint."""
    known = sorted({fingerprint for collection in collections for fingerprint in fingerprints(collection)})
    return {"weights": made_by(*collections), "fingerprint": " and ".join(known) or None}


def fingerprints(collection: Collection) -> dict[str, str]:
    """The names of the weights that made a collection's features, as far as they are known, by fingerprint."""
    recorded = collection.recorded or {}
    found = {collection.fingerprint: collection.weights, recorded.get("fingerprint"): recorded.get("file")}
    return {fingerprint: str(name) for fingerprint, name in found.items() if fingerprint}


def recorded_maker(folder: Path) -> Maker | None:
    """What made the features in `folder`, where it says so."""
    try:
        return load_manifest(folder)
    except UserError:  # which concerns those who write into it
        return None


def maker_of_features(folder: Path) -> Maker | None:
    """What made the features in `folder`, where it or a folder around it says that there are any."""
    for place in (folder, *folder.parents):
        if maker := recorded_maker(place):
            return maker if maker.get("kind") == GLOBAL else None
    return None


def recorded_weights(folders: Iterable[Path | str]) -> Path | None:
    """The weights, a file or a folder, that made what is in the first of `folders` that says so, if they are there.

    Such a folder is an index or has ready-made features. A str is the name itself, of weights that made other rows.
    """
    name: str | None
    for folder in folders:
        if isinstance(folder, str):
            name = folder
        elif is_index(folder):
            with closing(Store(folder)) as index:
                name = index.meta.get("weights")
        else:
            maker = recorded_maker(folder) or {}
            name = maker.get("file") if maker.get("kind") == GLOBAL else None
        if name and os.path.exists(name):
            return Path(name)
    return None


def ready_feature(path: Path) -> np.ndarray | None:
    """The feature (hidden,) in a .npy of one row; None for other files. Raises ValueError and OSError as `load_array`.

    NaN and infinite values, and other types than floating-point, are ValueErrors too.
    """
    if path.suffix.lower() != ".npy":
        return None
    array = load_array(path, mmap_mode="r")
    if array.ndim not in (1, 2) or array.size != array.shape[-1] or not array.size:
        return None
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"features must be floating-point numbers, not {array.dtype}")
    feature = np.array(array, np.float32).reshape(-1)
    if not np.isfinite(feature).all():
        raise ValueError("the feature holds NaN or infinite values")
    return feature


def _embedded(
    embedder: Embedder, files: list[Path], cache: FeatureCache | None, result: Collection, progress: bool
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each of `files` that can be embedded, with its feature; `result` takes the issues of the others."""
    result.weights, result.fingerprint = embedder.weights, embedder.fingerprint
    items = embed_files_once(embedder, files, cache)
    for item, feature in tqdm(items, total=len(files), unit="file", delay=1, disable=not progress):
        file = files[item.index]
        result.repairs += [FileIssue(str(file), repair) for repair in item.repairs]
        if problem := item.problem(feature, embedder.precision):
            result.failures.append(FileIssue(str(file), problem))
        elif feature is not None:
            yield file, feature


def check_widths(features: dict[Path, np.ndarray]) -> None:
    """Raise UserError, with the names of two files, where features (hidden,) differ in width."""
    (first, feature), *others = features.items()
    for file, other in others:
        if other.shape != feature.shape:
            raise UserError(
                f"{file} has a feature of {other.size} numbers, {first} one of {feature.size}: "
                "features of different models cannot be compared"
            )


def check_comparable(first: Collection, second: Collection) -> None:
    """Raise UserError where the features of two collections differ in width, or other weights are known to have made
    them."""
    check_widths({other.folder / other.files[0]: other.features[0] for other in (first, second)})
    made = fingerprints(first) | fingerprints(second)
    if len(made) > 1:
        known = " and ".join(f"{name} ({fingerprint})" for fingerprint, name in made.items())
        raise UserError(
            f"features of different models cannot be compared, and these were made by {known}: choose the weights "
            "that made the ready-made ones (--variant, --weights, config.py), or make those anew"
        )
