"""Folders of files of any kind -> an index, and what it answers: the work of clamp3_index.py and clamp3_search.py."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache, embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.features.reading import is_sound
from clamp3.formats.registry import format_of
from clamp3.io.files import content_hash
from clamp3.io.folders import Plan, walk
from clamp3.io.reports import FileIssue, describe_error, show
from clamp3.io.tables import csv_rows
from clamp3.search.collection import load_query, ready_feature
from clamp3.search.index import Entry, Index

# Files that are features already, of which nothing more is known: their modality, and the identity of their makers.
READY, READY_MADE = "feature", "ready-made"
TRANSACTION = 1000  # files that are added at once: what a killed run loses at most


@dataclass
class Changes:
    """What an update of an index has done."""

    added: int = 0  # new files and changed ones
    copied: int = 0  # of them, those whose content the index had already under another name
    unchanged: int = 0
    missing: int = 0  # files of the folder that the index has and that are gone
    ignored: int = 0  # files of other kinds
    failures: list[FileIssue] = field(default_factory=list)
    repairs: list[FileIssue] = field(default_factory=list)

    def report(self) -> None:
        """Print it."""
        others = f", {self.ignored} of other kinds" if self.ignored else ""
        known = f" ({self.copied} of them known by content)" if self.copied else ""
        print(f"{self.added} files added{known}, {self.unchanged} unchanged, {len(self.failures)} failed{others}")
        if self.missing:
            print(f"{self.missing} files of the index are no longer there; clamp3_index.py remove --missing")
        show("damaged, but read", self.repairs)
        show("failed", self.failures)


def update_index(
    index: Index,
    folder: Path,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
    metadata: dict[Path, dict] | None = None,
    approximate: bool = False,
) -> Changes:
    """Bring the index up to date with the files under `folder`: only those that are new or changed are embedded.

    `metadata`, by absolute path, takes the place of what the index has of a file. `approximate`: prepare the index for
    that whatever its size. A file that has changed and cannot be read any more leaves the index. Raises UserError
    where features of different weights would come together, or ready-made ones with others.
    """
    if not folder.exists():
        raise UserError(f"there is no file or folder {folder}")
    folder, noted = folder.resolve(), Plan()
    paths = list(walk(folder, noted, index.folder)) if folder.is_dir() else [folder]
    taken = [path for path in paths if format_of(path)]
    changes = Changes(ignored=len(paths) - len(taken), failures=noted.failures)
    with index.writing():
        known = {entry.path: entry for entry in index.entries()}
        new = _new_entries(index, taken, known, metadata or {}, changes)
        raw = []
        _add(index, _ready(index, new, raw, changes), changes)
        if raw:
            _add(index, _embedded(index, raw, load_embedder(), cache, changes), changes)
        index.remove(Path(remark.file) for remark in changes.failures)
        there = set(paths)
        changes.missing = sum(path.is_relative_to(folder) and path not in there for path in known)
        index.tidy(approximate)
    return changes


def _new_entries(
    index: Index, paths: list[Path], known: dict[Path, Entry], metadata: dict[Path, dict], changes: Changes
) -> list[Entry]:
    """The entries of files that are new or have changed; what is new about the others goes into the index."""
    new, same = [], []
    for path in tqdm(paths, desc="looking", unit="file", delay=1):
        entry = known.get(path)
        described = metadata.get(path, entry.metadata if entry else {})
        try:
            status = path.stat()
            as_it_was = entry and (entry.size, entry.modified) == (status.st_size, status.st_mtime_ns)
            digest = entry.hash if as_it_was else content_hash(path)
        except OSError as error:
            changes.failures.append(FileIssue(str(path), describe_error(error)))
            continue
        now = {"hash": digest, "size": status.st_size, "modified": status.st_mtime_ns, "metadata": described}
        if entry is None or entry.hash != digest:
            new.append(Entry(path, format_of(path).modality, **now))
            continue
        changes.unchanged += 1
        if replace(entry, **now) != entry:
            same.append(replace(entry, **now))
    index.update(same)
    return new


def _ready(
    index: Index, entries: list[Entry], others: list[Entry], changes: Changes
) -> Iterator[tuple[Entry, np.ndarray]]:
    """Those of `entries` whose features need no network, with them: ready-made, or in the index under another name."""
    for entry in entries:
        try:
            feature = ready_feature(entry.path)
        except (ValueError, OSError) as error:
            changes.failures.append(FileIssue(str(entry.path), describe_error(error)))
            continue
        twins = index.entries("hash = ? AND modality = ?", (entry.hash, entry.modality))
        twin = next((twin for twin in twins if twin.path.suffix.lower() == entry.path.suffix.lower()), None)
        if feature is not None:
            claim(index, f"{READY_MADE}, {feature.size} numbers", f"ready-made features such as {entry.path}")
            yield replace(entry, modality=READY), feature
        elif twin is not None:
            changes.copied += 1
            yield entry, np.array(index.features[twin.row])
        else:
            others.append(entry)


def _embedded(
    index: Index, entries: list[Entry], embedder: Embedder, cache: FeatureCache | None, changes: Changes
) -> Iterator[tuple[Entry, np.ndarray]]:
    """Those of `entries` that can be embedded, with their features."""
    claim(index, embedder.identity, embedder.weights)
    if any(is_sound(entry.path) for entry in entries):
        claim(index, embedder.mert_identity, embedder.mert_name, fact="mert")
    paths, hashes = [entry.path for entry in entries], [entry.hash for entry in entries]
    features = embed_files_once(embedder, paths, cache, hashes)
    for item, feature in tqdm(features, total=len(paths), unit="file", delay=1):
        entry = entries[item.index]
        changes.repairs += [FileIssue(str(entry.path), repair) for repair in item.repairs]
        if problem := item.problem(feature, embedder.precision):
            changes.failures.append(FileIssue(str(entry.path), problem))
        else:
            yield entry, feature


def _add(index: Index, features: Iterable[tuple[Entry, np.ndarray]], changes: Changes) -> None:
    """Add entries with their features, so many at a time."""
    features = iter(features)
    while some := list(islice(features, TRANSACTION)):
        index.add([entry for entry, _ in some], np.stack([feature for _, feature in some]))
        changes.added += len(some)


def claim(index: Index, identity: str, weights: object, fact: str = "identity") -> None:
    """Note what makes the index's features. Raises UserError where it is noted already, and something else."""
    noted = index.facts.get(fact)
    if noted is None:
        with index.database:
            index.set_facts(**{fact: identity, "mert_name" if fact == "mert" else "weights": str(weights)})
        index.refresh()
    elif noted != identity:
        was = index.facts["mert_name" if fact == "mert" else "weights"]
        raise UserError(
            f"{index.folder} holds features made by {was}, not by {weights} as they are now: these do not compare; "
            "choose the same weights (--variant, --mert, config.py), or build another index"
        )


def search_index(
    index: Index,
    query: str,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
    k: int = 10,
    approximate: bool | None = None,
    modality: str | None = None,
) -> list[dict]:
    """The k files closest to `query`, a file or else a text, as records of rank, cosine, file and metadata.

    `approximate` and `modality` as in Index.search. Raises UserError where the query's weights are not the index's.
    """
    if not len(index):
        raise UserError(f"{index.folder} is empty: clamp3_index.py add {index.folder} FOLDER")
    asked = load_query(query, load_embedder, cache)
    if asked.weights and not index.facts["identity"].startswith(READY_MADE):
        claim(index, load_embedder().identity, asked.weights)
    found = index.search(asked.features[0], k, approximate, modality)
    return [
        {
            "rank": rank,
            "cosine": cosine,
            "file": str(entry.path),
            "modality": entry.modality,
            "metadata": entry.metadata,
            "weights": index.facts["weights"],
        }
        for rank, (cosine, entry) in enumerate(found, 1)
    ]


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
