"""Training data looked through before the first step, and what cannot be read counted from then on.

What has been looked through and not been changed since is not read again.
"""

import contextlib
import logging
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.formats.registry import extensions, model_inputs
from clamp3.io.files import load_array
from clamp3.io.folders import Plan, refuse_special, special_inputs, walk
from clamp3.io.remembered import Remembered
from clamp3.io.reports import FileIssue, describe_error, save_issues
from clamp3.io.stats import sizes_and_times
from clamp3.io.workers import cores
from clamp3.modalities import AUDIO, SYMBOLIC
from clamp3.training.data import Examples
from clamp3.training.texts import JsonLines, checked_item

SHOWN_ISSUES = 20
CHECKS = 2  # counts up when the checks change, so that what older ones have passed is checked again

logger = logging.getLogger("clamp3")

# How a loop over many items is shown: called with the items and what is done with them, returns the items.
Track = Callable[[Sequence[int] | np.ndarray, str], Iterable[int]]


def untracked(items: Sequence[int] | np.ndarray, _title: str) -> Iterable[int]:
    """A `Track` that shows nothing."""
    return items


# ---------- pairs of text and music ----------


def check_pairs(lines: JsonLines, modality: str, audio_hidden_size: int, track: Track = untracked) -> list[FileIssue]:
    """What is wrong with the items of `lines`, by file and line, as far as that shows without reading all of them.

    Items that have passed are remembered in the user's cache folder, with the size and the modification time of each
    file: while the JSONL file's content stays as it is, only the others, and those whose files have changed, are
    checked again.
    Raises UserError where there is no item at all.
    """
    if not len(lines):
        raise UserError(f"{lines.path}: there is no item in it")
    folder, record = lines.path.parent, Record(lines.path, modality, audio_hidden_size, lines.sha256)
    passed = record.load()
    indices = passed.refresh(folder, len(lines))
    issues, known = [], len(passed.names)
    for index in track(indices, f"checking {lines.path}"):
        try:
            passed.add(index, check_pair(lines[index], folder, modality, audio_hidden_size))
        except Exception as error:  # a line can hold anything
            issues.append(FileIssue(lines.place(index), describe_error(error)))
    if len(passed.names) > known:
        record.save(passed)
    return issues


def check_pair(item: Any, folder: Path, modality: str, audio_hidden_size: int) -> dict[str, os.stat_result]:
    """The files of an item, by name. Raises an error of whatever kind for an item that cannot be trained on."""
    stats = {}
    for name in checked_item(item, modality)["filepaths"]:
        path = folder / name
        stats[name] = _file_stat(path)
        if not stats[name].st_size:
            raise ValueError(f"{path} is empty")
        if modality == AUDIO.name:
            check_frames(path, audio_hidden_size)
    return stats


def _file_stat(path: Path) -> os.stat_result:
    """What the system says of a file. Raises an error for anything else; once for each file of millions."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        refuse_special(path)
        raise ValueError(f"there is no file {path}")
    return found


def check_frames(path: Path, hidden_size: int) -> None:
    """Raise ValueError where `path` does not hold audio features of that width; its numbers are not read."""
    try:
        frames = load_array(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if frames.ndim < 2 or frames.shape[-1] != hidden_size or not frames.size or frames.dtype.kind != "f":
        raise ValueError(
            f"{path}: {frames.dtype} of shape {frames.shape}, not floats of shape (…, frames, {hidden_size})"
        )


# ---------- what has passed ----------


class PassedFiles:
    """The files of items that have passed: the item's index, and the file's name, size and modification time."""

    def __init__(self, rows: np.ndarray | None = None, names: list[str] | None = None):
        """`rows` (files, 3) holds index, size and time in nanoseconds."""
        self.rows = array("q", [] if rows is None else rows.tobytes())
        self.names = names or []

    def add(self, index: int, stats: dict[str, os.stat_result]) -> None:
        """Add an item with the files of `check_pair`."""
        for name, found in stats.items():
            self.rows.extend((index, found.st_size, found.st_mtime_ns))
            self.names.append(name)

    def refresh(self, folder: Path, count: int) -> np.ndarray:
        """Forget the items whose files have changed; returns those of the `count` items that are not known now."""
        rows = np.frombuffer(self.rows, np.int64).reshape(-1, 3)
        if ((rows[:, 0] < 0) | (rows[:, 0] >= count)).any():  # of a damaged record
            self.rows, self.names = array("q"), []
            return np.arange(count)
        # The other processes of a run are waiting meanwhile, so all cores are this one's.
        now = np.frombuffer(sizes_and_times(str(folder), self.names, cores()), np.int64).reshape(-1, 2)
        is_known, is_changed = np.zeros(count, bool), np.zeros(count, bool)
        is_known[rows[:, 0]] = True
        is_changed[rows[(rows[:, 1:] != now).any(axis=1), 0]] = True
        if is_changed.any():
            is_kept = ~is_changed[rows[:, 0]]
            self.rows, self.names = array("q", rows[is_kept].tobytes()), list(compress(self.names, is_kept))
        return np.flatnonzero(~is_known | is_changed)


class Record:
    """Where the files that have passed are remembered, in the user's cache folder."""

    def __init__(self, jsonl: Path, modality: str, audio_hidden_size: int, sha256: str = ""):
        """`sha256` is that of the JSONL file: what has passed holds for this content, whatever the file's times."""
        which = [str(jsonl.resolve()), modality, audio_hidden_size]
        self.remembered = Remembered("checked", which, [CHECKS, sha256])
        self.path = self.remembered.path

    def load(self) -> PassedFiles:
        """What has passed; nothing where nothing is known of the JSONL file as it is."""
        if found := self.remembered.load("rows", "names"):
            with contextlib.suppress(UnicodeDecodeError):  # of a damaged record
                rows, names = found[0], found[1].tobytes().decode("utf-8", "surrogatepass").split("\0")
                if rows.dtype == np.int64 and rows.shape == (len(names), 3):
                    return PassedFiles(rows, names)
        return PassedFiles()

    def save(self, passed: PassedFiles) -> None:
        """Remember what has passed; where that is not possible, it is checked again the next time."""
        names = np.frombuffer("\0".join(passed.names).encode("utf-8", "surrogatepass"), np.uint8)
        self.remembered.save(rows=np.frombuffer(passed.rows, np.int64).reshape(-1, 3), names=names)


# ---------- pieces, and what the files hold ----------


def find_pieces(folders: list[Path]) -> tuple[list[Path], list[FileIssue]]:
    """The .abc and .mtf files under `folders`, in a fixed order, and what is wrong with them or with the folders.

    Raises UserError where there is no such file.
    """
    taken, found = extensions(model_inputs(SYMBOLIC.name)), Plan()
    paths = sorted(path for folder in folders for path in walk(folder, found) if path.suffix.lower() in taken)
    if folders and not paths:
        raise UserError(f"there is no {' '.join(taken)} file under {', '.join(map(str, folders))}")
    empty = [FileIssue(str(path), "empty file") for path in paths if path.is_file() and not path.stat().st_size]
    return paths, found.failures + special_inputs(found, taken) + empty


def check_examples(examples: Examples, track: Track = untracked) -> tuple[list[FileIssue], Counter[str]]:
    """Read and encode all that training could read of the items: what is wrong with them, and counts of remarks."""
    issues, remarks = [], Counter[str]()
    for index in track(range(len(examples)), "reading"):
        try:
            remarks.update(examples.check(index))
        except Exception as error:  # a file can make what reads it fail in any way
            issues.append(examples.issue(index, error))
    return issues, remarks


def refuse(issues: Sequence[FileIssue], remark: str = "", shown: int = SHOWN_ISSUES) -> None:
    """Raise a UserError that lists `issues`, the first of them at least, if there are any."""
    if issues:
        more = [f"… and {len(issues) - shown} more"] * (len(issues) > shown)
        listed = "\n  ".join([*(line_of(issue) for issue in issues[:shown]), *more])
        raise UserError(f"{len(issues)} items cannot be trained on{remark}:\n  {listed}")


def line_of(issue: FileIssue) -> str:
    return f"{issue.file}: {issue.reason}"


class SkippedItems:
    """The items that a run skips: counted, logged, and listed in a file. All processes hold the same."""

    def __init__(self, path: Path, total: int, most: float):
        """`path` names the list, `total` is the number of all items, and at most a share of `most` may be skipped."""
        self.path, self.total, self.most = path, total, most
        self.issues: dict[str, FileIssue] = {}  # by place

    def add(self, issues: Iterable[FileIssue]) -> list[FileIssue]:
        """Add `issues`; returns those of items that were not among them."""
        new = {issue.file: issue for issue in issues if issue.file not in self.issues}
        self.issues |= new
        return list(new.values())

    def check(self) -> None:
        """Raise UserError where there are too many of them."""
        if len(self.issues) > self.most * self.total:
            refuse(list(self.issues.values()), f", more than the share {self.most:g} that may be (MAX_SKIPPED_SHARE)")

    def save(self) -> None:
        """Write the list; none where no item is skipped."""
        try:
            save_issues(self.path, list(self.issues.values()))
        except OSError as error:
            logger.info("%s cannot be written: %s", self.path, error)
