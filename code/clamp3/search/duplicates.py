"""Files of an index that are the same, by levels: of bytes, of notes, of music, and for the model."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clamp3.errors import Note
from clamp3.features.reading import Item, read_in_processes, read_item
from clamp3.io.files import content_hash
from clamp3.io.reports import FileIssue, describe_error
from clamp3.io.workers import Processes
from clamp3.modalities import SYMBOLIC
from clamp3.search.hearing import Heard, hear
from clamp3.search.index import Entry, Index
from clamp3.search.indexing import is_gone
from clamp3.search.ranking import QUERIES, REFERENCES, spans
from clamp3.search.versions import same_music

BYTES, NOTES, MUSIC, ALIKE = LEVELS = "same bytes", "same notes", "same music", "alike"  # each holds those before it
COSINE = 0.995  # from which two files are alike


@dataclass(frozen=True)
class Member:
    """A file of a group, compared with the group's first file."""

    path: Path
    semitones: int | None  # by which it is higher; None of files that are only alike
    cosine: float


@dataclass(frozen=True)
class Group:
    """Files that are the same at a level, directly or by way of others, in the order of their paths."""

    level: str
    members: list[Member]


@dataclass
class Duplicates:
    """The groups of all levels, the closest level first, and the files that are no longer as indexed, or not read."""

    groups: list[Group]
    issues: list[FileIssue] = field(default_factory=list)


def find_duplicates(
    index: Index,
    level: str = ALIKE,
    cosine: float = COSINE,
    processes: Processes | None = None,
    progress: bool = False,
) -> Duplicates:
    """The groups of files of an index that are the same, at all of LEVELS up to `level`.

    A group at a level is given where it holds more than one of the level before. Notes are read from the files anew,
    by `processes` if these are given, as `read_in_processes` says; a file that is gone, has changed since or cannot
    be read is compared without. `cosine` is the least one of files that are alike.
    """
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no level; there are {', '.join(LEVELS)}")
    with index.snapshot():
        entries = sorted(index.entries(), key=lambda entry: entry.path)
        features = np.array(index.features[[entry.row for entry in entries]]) if entries else np.zeros((0, 0))
    found, steps = Duplicates([]), LEVELS.index(level)
    present = _present(entries, found)
    links = Links(len(entries))
    links.join_equal(enumerate(entry.hash for entry in entries))
    found.groups += links.groups(BYTES, entries, features)
    if steps:
        heard = _hear(entries, present, found, processes, progress)
        links.join_equal((place, key) for place, one in heard.items() for key in one.exact)
        found.groups += links.groups(NOTES, entries, features)
    if steps > 1:
        links.join_moved((place, key, pitch) for place, one in heard.items() for key, pitch in one.moved)
        places = list(heard)
        for one, other, interval in same_music([heard[place].melody for place in places]).tolist():
            links.join(places[one], places[other], interval)
        found.groups += links.groups(MUSIC, entries, features)
    if steps > 2:
        links.join_close(features, cosine)
        found.groups += links.groups(ALIKE, entries, features)
    return found


# ---------- groups ----------


class Links:
    """Which of `count` places belong together, and by how many semitones they differ."""

    def __init__(self, count: int):
        self.labels = np.arange(count)  # (count,): the same for those that belong together
        self._listed = self.labels.copy()  # as they were at the last level
        self._members = {place: [place] for place in range(count)}
        self._edges: dict[int, list[tuple[int, int | None]]] = defaultdict(list)  # place -> others, semitones up

    def join(self, one: int, other: int, semitones: int | None) -> None:
        """Note that two belong together, unless that is known; `semitones` is None where they are only alike."""
        first, second = int(self.labels[one]), int(self.labels[other])
        if first == second:
            return
        self._edges[one].append((other, semitones))
        self._edges[other].append((one, None if semitones is None else -semitones))
        kept, lost = (first, second) if len(self._members[first]) >= len(self._members[second]) else (second, first)
        self.labels[self._members[lost]] = kept
        self._members[kept] += self._members.pop(lost)

    def join_equal(self, keys: Iterable[tuple[int, object]]) -> None:
        """Join the places that have a key in common."""
        self.join_moved((place, key, 0) for place, key in keys)

    def join_moved(self, keys: Iterable[tuple[int, object, int]]) -> None:
        """Join the places that have a key in common; the third is a pitch, of which they differ."""
        first: dict[object, tuple[int, int]] = {}
        for place, key, pitch in keys:
            other, its_pitch = first.setdefault(key, (place, pitch))
            self.join(other, place, pitch - its_pitch)

    def join_close(self, features: np.ndarray, cosine: float) -> None:
        """Join the places whose features (count, hidden), of length one, have at least this cosine."""
        for rows in spans(len(features), QUERIES):
            for columns in spans(len(features), REFERENCES):
                if columns.stop <= rows.start:
                    continue
                hits = features[rows] @ features[columns].T >= cosine
                hits &= self.labels[rows][:, None] != self.labels[columns]
                one, other = np.nonzero(hits)
                pairs = np.stack([self.labels[rows][one], self.labels[columns][other]], axis=1)
                _, chosen = np.unique(pairs, axis=0, return_index=True)
                for place in chosen.tolist():
                    self.join(rows.start + int(one[place]), columns.start + int(other[place]), None)

    def groups(self, level: str, entries: Sequence[Entry], features: np.ndarray) -> list[Group]:
        """The groups that have grown since the last call, in the order of their first files."""
        grown = []
        for label, members in self._members.items():
            if len(members) > 1 and (self._listed[members] != self._listed[members[0]]).any():
                grown.append((min(members), label))
        self._listed = self.labels.copy()
        return [self._group(level, sorted(self._members[label]), entries, features) for _, label in sorted(grown)]

    def _group(self, level: str, places: list[int], entries: Sequence[Entry], features: np.ndarray) -> Group:
        first, semitones = places[0], self._intervals(places[0])
        cosines = features[places] @ features[first]
        members = [
            Member(entries[place].path, semitones.get(place), float(cosine))
            for place, cosine in zip(places, cosines, strict=True)
        ]
        return Group(level, members)

    def _intervals(self, first: int) -> dict[int, int]:
        """By how many semitones the others are higher than `first`, as far as notes connect them."""
        known, waiting = {first: 0}, deque([first])
        while waiting:
            place = waiting.popleft()
            for other, semitones in self._edges[place]:
                if semitones is not None and other not in known:
                    known[other] = known[place] + semitones
                    waiting.append(other)
        return known


# ---------- notes ----------


def _present(entries: Sequence[Entry], found: Duplicates) -> list[int]:
    """The places of the files that are as the index knows them; `found` takes the others as issues."""
    places = []
    for place, entry in enumerate(entries):
        if problem := _absence(entry):
            found.issues.append(FileIssue(str(entry.path), problem))
        else:
            places.append(place)
    return places


def _hear(
    entries: Sequence[Entry], present: Sequence[int], found: Duplicates, processes: Processes | None, progress: bool
) -> dict[int, Heard]:
    """What is known of the notes of files, by their places; one of each content is read. `found` takes the issues."""
    contents: dict[tuple[str, str], list[int]] = defaultdict(list)  # hash and extension -> places
    for place in present:
        if entries[place].modality == SYMBOLIC.name:
            contents[entries[place].hash, entries[place].path.suffix.lower()].append(place)
    places = [same[0] for same in contents.values()]
    paths, heard = [entries[place].path for place in places], {}
    items = tqdm(_read(paths, processes), "reading notes", len(paths), unit="file", delay=1, disable=not progress)
    for item in items:
        place = places[item.index]
        if item.error is not None:
            found.issues.append(FileIssue(str(entries[place].path), describe_error(item.error)))
        else:
            heard[place] = item.content
    return dict(sorted(heard.items()))


def _absence(entry: Entry) -> str | None:
    """Why a file is no longer the one that the index knows, if so."""
    try:
        status = entry.path.stat()
        is_old = (status.st_size, status.st_mtime_ns) == (entry.size, entry.modified)
        if is_old or content_hash(entry.path) == entry.hash:
            return None
    except OSError as error:
        return "is no longer there" if is_gone(entry.path) else describe_error(error)
    return "has changed since it was indexed"


def _read(paths: Sequence[Path], processes: Processes | None) -> Iterator[Item]:
    if processes is not None:
        yield from read_in_processes(hear, paths, range(len(paths)), processes)
        return
    for index, path in enumerate(paths):

        def read(note: Note, path: Path = path) -> Heard:
            return hear(path, note)

        yield read_item(Item(index, SYMBOLIC.name), read)
