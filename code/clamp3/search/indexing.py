"""Folders of files of any kind -> an index: the work of clamp3_index.py build and add."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from tqdm import tqdm

from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache, embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.features.manifest import Maker
from clamp3.features.parts import Parts, is_part, read_parts
from clamp3.features.passages import Passage, embed_with_passages
from clamp3.features.reading import Item, is_sound
from clamp3.formats.registry import extensions, format_of
from clamp3.io.files import content_hash
from clamp3.io.folders import Plan, refuse_special, special_inputs, walk
from clamp3.io.reports import FileIssue, describe_error, printable
from clamp3.io.tables import csv_rows
from clamp3.search.collection import UNKNOWN, maker_of_features, ready_feature
from clamp3.search.index import Entry, Index

# Files that are features already, of which nothing more is known: their modality, and the identity of their makers.
READY, READY_MADE = "feature", "ready-made"
UNREADABLE = "cannot be read or written"  # how `describe_error` begins for OSErrors
TRANSACTION = 1000  # files that are added at once: what a killed run loses at most
T = TypeVar("T")
# Whether a bar shows how far a run is, or what is called with the files done and all of them.
Progress: TypeAlias = bool | Callable[[int, int], None]

# A file, its feature (hidden,), and its passages if they were made.
Embedded: TypeAlias = tuple[Entry, np.ndarray, list[Passage] | None]


@dataclass
class Changes:
    """What an update of an index has done."""

    added: int = 0  # new files and changed ones
    copied: int = 0  # of them, those whose content the index had already under another name
    moved: int = 0  # of these, those whose other name is gone
    unchanged: int = 0
    missing: int = 0  # files of the folder that the index has and that are gone
    forgotten: int = 0  # files of the folder that the index had and that are gone
    ignored: int = 0  # files of other kinds
    failures: list[FileIssue] = field(default_factory=list)
    repairs: list[FileIssue] = field(default_factory=list)
    skipped: list[FileIssue] = field(default_factory=list)  # FIFOs, devices and sockets that are named like inputs
    bad: list[Path] = field(default_factory=list)  # of the failures, files whose content is to blame

    def fail(self, path: Path, reason: str, error: Exception | None = None) -> None:
        """Note that a file has no feature, for `reason`: because of `error`, or of its content."""
        self.failures.append(FileIssue(str(path), reason))
        # Workers give no errors but reasons, those of OSErrors in the words of `describe_error`.
        if not isinstance(error, OSError | MemoryError) and not reason.startswith(UNREADABLE):
            self.bad.append(path)


def update_index(
    index: Index,
    folder: Path,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
    metadata: dict[Path, dict] | None = None,
    approximate: bool = False,
    progress: Progress = False,
    forget_missing: bool = False,
    passages: bool = False,
) -> Changes:
    """Bring the index up to date with the files under `folder`: only those that are new or changed are embedded.

    A file that has moved, by its content, keeps its entry. One that was read and is bad leaves the index; one that
    cannot be read now stays. Those that are gone stay too, and are counted, or leave it if `forget_missing`, unless
    nothing at all is left of what the index has of the folder: then a disk may be missing.
    `metadata`, by absolute path, replaces what the index has on a file. `approximate` prepares the index for that,
    whatever its size; `progress` shows bars, or is called. With `passages`, each file's are in the index too, then and
    with each update; ready-made features have none. Rows of Parquet files (`features.parts`) are ready-made features
    of the inputs that they name, as if these were beside them. Raises UserError where features of different weights
    would come together, or ready-made ones, whose folder does not say what made them, with others.
    """
    if not folder.exists():
        raise UserError(f"there is no file or folder {folder}")
    refuse_special(folder)
    folder, noted = folder.resolve(), Plan()
    paths = list(walk(folder, noted, index.folder)) if folder.is_dir() else [folder]
    taken = [path for path in paths if format_of(path)]
    parts = read_parts([path for path in paths if is_part(path)])
    ignored = sum(not path.name.startswith(".") for path in paths if not format_of(path) and not is_part(path))
    changes = Changes(ignored=ignored, failures=noted.failures, skipped=special_inputs(noted, extensions()))
    with index.writing():
        if passages and "with_passages" not in index.meta:
            index.record(with_passages=1)
        known = {entry.path: entry for entry in index.entries()}
        new = _new_entries(index, taken, known, metadata or {}, changes, progress)
        new = _moved(index, new, known, changes)
        _add(index, _from_parts(index, parts, known, metadata or {}, changes), changes)
        raw: list[Entry] = []
        _add(index, _ready(index, new, raw, changes), changes)
        if raw:
            _add(index, _embedded(index, raw, load_embedder(), cache, changes, progress), changes)
        if "with_passages" in index.meta:
            _fill_in_passages(index, folder, load_embedder, changes, progress)
        index.remove(changes.bad)
        _look_for_missing(index, folder, {*paths, *parts.files}, forget_missing, changes)
        index.compact(approximate)
    return changes


def check_indexable(folder: Path, index: Path) -> None:
    """Raise UserError where no file under `folder`, or it itself, is of a kind that an index takes."""
    if not folder.exists():
        raise UserError(f"there is no file or folder {folder}")
    count = 0
    for path in walk(folder, Plan(), index) if folder.is_dir() else [folder]:
        if format_of(path) or is_part(path):
            return
        count += 1
    others = f" (it holds {count} files of other kinds)" if folder.is_dir() and count else ""
    raise UserError(f"nothing in {folder} can be indexed{others}; what can be read: {' '.join(extensions())}")


def _new_entries(
    index: Index,
    paths: list[Path],
    known: dict[Path, Entry],
    metadata: dict[Path, dict],
    changes: Changes,
    progress: Progress,
) -> list[Entry]:
    """The entries of files that are new or have changed; what is new about the others goes into the index."""
    new, same = [], []
    for path in tqdm(paths, desc="looking", unit="file", delay=1, disable=progress is not True):
        entry = known.get(path)
        described = metadata.get(path, entry.metadata if entry else {})
        try:
            status = path.stat()
            unchanged = entry is not None and (entry.size, entry.modified) == (status.st_size, status.st_mtime_ns)
            digest = entry.hash if entry is not None and unchanged else content_hash(path)
        except OSError as error:
            changes.fail(path, describe_error(error), error)
            continue
        if entry is None or entry.hash != digest:
            found_format = format_of(path)
            modality = found_format.modality if found_format else READY
            new.append(Entry(path, modality, digest, status.st_size, status.st_mtime_ns, described))
            continue
        changes.unchanged += 1
        now = replace(entry, size=status.st_size, modified=status.st_mtime_ns, metadata=described)
        if now != entry:
            same.append(now)
    index.update(same)
    return new


def _moved(index: Index, entries: list[Entry], known: dict[Path, Entry], changes: Changes) -> list[Entry]:
    """Give those of `entries` that are moved files the entries of their former names; returns the others."""
    others, moved, taken = [], [], set()
    for entry in entries:
        twins = [] if entry.path in known else _twins(index, entry)
        twin = next((twin for twin in twins if twin.row not in taken and is_gone(twin.path)), None)
        if twin is None:
            others.append(entry)
            continue
        taken.add(twin.row)
        described = entry.metadata or twin.metadata
        moved.append(replace(twin, path=entry.path, size=entry.size, modified=entry.modified, metadata=described))
    index.update(moved)
    changes.moved = len(moved)
    changes.copied += len(moved)
    changes.added += len(moved)
    return others


def _twins(index: Index, entry: Entry) -> list[Entry]:
    """The index's entries of the same content, read in the same way."""
    twins = index.entries("hash = ?", (entry.hash,))
    return [twin for twin in twins if twin.path.suffix.lower() == entry.path.suffix.lower()]


def _ready(index: Index, entries: list[Entry], remaining: list[Entry], changes: Changes) -> Iterator[Embedded]:
    """Those of `entries` whose features need no network, with them: ready-made, or in the index under another name.

    The rest is added to `remaining`.
    """
    makers: dict[Path, Maker] = {}  # by folder
    for entry in entries:
        try:
            feature = ready_feature(entry.path)
        except (ValueError, OSError) as error:
            changes.fail(entry.path, describe_error(error), error)
            continue
        if feature is not None:
            if (parent := entry.path.parent) not in makers:
                makers[parent] = maker_of_features(parent) or {}
            _check_or_record_maker(index, makers[parent], entry.path, feature.size)
            yield replace(entry, modality=READY), feature, None
        elif twins := [twin for twin in _twins(index, entry) if twin.modality == entry.modality]:
            changes.copied += 1
            yield entry, np.array(index.features[twins[0].row]), None
        else:
            remaining.append(entry)


def _from_parts(
    index: Index, parts: Parts, known: dict[Path, Entry], metadata: dict[Path, dict], changes: Changes
) -> Iterator[Embedded]:
    """The rows of Parquet files that are new or have changed; what is new about the others goes into the index."""
    makers: dict[Path, Maker] = {}  # by folder
    same = []
    for path, modality, modified, feature in zip(
        parts.files, parts.modalities, parts.modified, parts.features, strict=True
    ):
        entry = known.get(path)
        described = metadata.get(path, entry.metadata if entry else {})
        if entry is not None and (entry.size, entry.modified) == (feature.nbytes, modified):
            changes.unchanged += 1
            same += [replace(entry, metadata=described)] if described != entry.metadata else []
            continue
        if (parent := path.parent) not in makers:
            makers[parent] = maker_of_features(parent) or {}
            _check_or_record_maker(index, makers[parent], path, feature.size)
        digest = hashlib.sha256(feature.tobytes()).hexdigest()
        yield Entry(path, modality or READY, digest, feature.nbytes, modified, described), feature, None
    if parts.files and parts.fingerprint and not index.meta.get("fingerprint"):
        index.record(fingerprint=parts.fingerprint)
    index.update(same)


def _check_or_record_maker(index: Index, maker: Maker, path: Path, size: int) -> None:
    """`check_or_record_model` for the ready-made feature at `path`, of which only its folder may know more."""
    recorded = index.meta.get("identity")
    identity = maker.get("weights")
    if identity is None or recorded and recorded.startswith(READY_MADE):
        check_or_record_model(index, f"{READY_MADE}, {size} numbers", f"ready-made features such as {path}")
        return
    check_or_record_model(index, identity, maker.get("file") or UNKNOWN)
    if not index.meta.get("fingerprint"):
        index.record(fingerprint=maker.get("fingerprint"))


def _embedded(
    index: Index,
    entries: list[Entry],
    embedder: Embedder,
    cache: FeatureCache | None,
    changes: Changes,
    progress: Progress,
) -> Iterator[Embedded]:
    """Those of `entries` that can be embedded, with their features and, where the index has such, their passages."""
    check_or_record_model(index, embedder.identity, embedder.weights)
    if embedder.fingerprint and not index.meta.get("fingerprint"):
        index.record(fingerprint=embedder.fingerprint)
    if any(is_sound(entry.path) for entry in entries):
        check_or_record_model(index, embedder.audio_encoder_identity, embedder.audio_encoder_name, key="mert")
    paths, hashes = [entry.path for entry in entries], [entry.hash for entry in entries]
    features: Iterable[tuple[Item, np.ndarray | None, list[Passage] | None]]
    if "with_passages" in index.meta:
        features = embed_with_passages(embedder, paths)
    else:
        features = ((*found, None) for found in embed_files_once(embedder, paths, cache, hashes))
    for item, feature, passages in _followed(features, len(paths), progress):
        entry = entries[item.index]
        changes.repairs += [FileIssue(str(entry.path), repair) for repair in item.repairs]
        if problem := item.problem(feature, embedder.precision) or _passage_problem(passages, embedder.precision):
            changes.fail(entry.path, problem, item.error)
        elif feature is not None:
            yield entry, feature, passages


def _followed(items: Iterable[T], total: int, progress: Progress) -> Iterator[T]:
    """`items`, and meanwhile how far they are."""
    if not callable(progress):
        yield from tqdm(items, total=total, unit="file", delay=1, disable=not progress)
        return
    progress(0, total)
    for done, item in enumerate(items, 1):
        yield item
        progress(done, total)


def _passage_problem(passages: list[Passage] | None, precision: str) -> str | None:
    sound = all(np.isfinite(passage.feature).all() for passage in passages or ())
    return None if sound else f"the feature of a passage is not finite in {precision}"


def _add(index: Index, features: Iterable[Embedded], changes: Changes) -> None:
    """Add entries with their features and passages, so many at a time."""
    features = iter(features)
    while some := list(islice(features, TRANSACTION)):
        passages = {entry.path: found for entry, _, found in some if found is not None}
        index.add([entry for entry, *_ in some], np.stack([feature for _, feature, _ in some]), passages)
        changes.added += len(some)


def _fill_in_passages(
    index: Index, folder: Path, load_embedder: Callable[[], Embedder], changes: Changes, progress: Progress
) -> None:
    """Make the passages of the index's files under `folder` that have none yet, if the files are there."""
    failed = {issue.file for issue in changes.failures}
    lacking = [
        entry
        for entry in index.without_passages()
        if entry.modality != READY and entry.path.is_relative_to(folder) and str(entry.path) not in failed
    ]
    lacking = [entry for entry in lacking if not is_gone(entry.path)]
    if not lacking:
        return
    embedder = load_embedder()
    made = _embedded(index, lacking, embedder, None, changes, progress)
    while some := list(islice(made, TRANSACTION)):
        index.add_passages({entry.path: found for entry, _, found in some if found is not None})


def _look_for_missing(index: Index, folder: Path, found: set[Path], forget: bool, changes: Changes) -> None:
    """Count the index's files under `folder` that are gone, or forget them, as `update_index` says.

    `found` are files that are there.
    """
    known = [entry.path for entry in index.entries() if entry.path.is_relative_to(folder)]
    gone = [path for path in known if path not in found and is_gone(path)]
    if forget and len(gone) < len(known):
        index.remove(gone)
        changes.forgotten = len(gone)
    else:
        changes.missing = len(gone)


def is_gone(path: Path) -> bool:
    """Whether there is certainly no file of this name: a moment's error of the disk says nothing."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def check_or_record_model(index: Index, identity: str | None, name: object, key: str = "identity") -> None:
    """Record what makes the index's features, or check it against the record. Raises UserError where it differs.

    `key` is "identity" for CLaMP 3's weights, "mert" for what listens to sound; `name` is for people.
    """
    name_key = "mert_name" if key == "mert" else "weights"
    recorded = index.meta.get(key)
    if recorded is None:
        index.record(**{key: identity, name_key: printable(str(name))})
    elif recorded != identity:
        raise UserError(
            f"{index.folder} holds features made by {index.meta[name_key]}, not by {name} as they are now: these do "
            "not compare; choose the same weights (--variant, --mert, config.py), or build another index"
        )


def read_metadata(path: Path, folder: Path) -> dict[Path, dict]:
    """What a CSV says of files, by their absolute paths: a header with a column "file", then a line for each.

    Files are relative to `folder`. Raises UserError where it cannot be read or has no such column.
    """
    names, *rows = csv_rows(path) or [[]]
    if "file" not in names:
        raise UserError(f'{path} needs a first line of column names, one of them "file"')
    metadata = {}
    for number, row in enumerate(rows, 2):
        if row and len(row) != len(names):
            raise UserError(f"{path}:{number}: a line must have as many fields as the first")
        if known := dict(zip(names, row, strict=False)):  # no blank line
            metadata[(folder / known.pop("file")).resolve()] = known
    return metadata
