"""Training data checked before the first step; what has been checked and not been changed since is not read again."""

import hashlib
import json
import logging
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import ItemError, UserError
from clamp3.formats.registry import extensions, model_inputs
from clamp3.io.files import atomic_write, load_array, user_cache
from clamp3.modalities import AUDIO, SYMBOLIC
from clamp3.training.data import Examples
from clamp3.training.texts import JsonLines, lines_of

SHOWN_ERRORS = 20
CHECKS = 1  # counts up when the checks change, so that what older ones have passed is checked again

logger = logging.getLogger("clamp3")

# How a loop over many items is shown: called with the items and what is done with them, returns the items.
Track = Callable[[Sequence[int] | np.ndarray, str], Iterable[int]]


def untracked(items: Sequence[int] | np.ndarray, _title: str) -> Iterable[int]:
    """A `Track` that shows nothing."""
    return items


# ---------- pairs of text and music ----------


def check_pairs(lines: JsonLines, modality: str, audio_hidden_size: int, track: Track = untracked) -> None:
    """Raise a UserError that lists what is wrong with the items of `lines`, with file and line, if anything is.

    Items that have passed are remembered in the user's cache folder, with the size and the modification time of each
    file: while the JSONL file stays as it is, only items whose files have changed are checked again.
    """
    if not len(lines):
        raise UserError(f"{lines.path}: there is no item in it")
    folder, record = lines.path.parent, Record(lines.path, modality, audio_hidden_size)
    passed = record.load()
    indices = range(len(lines)) if passed is None else passed.refresh(folder)
    found, errors = PassedFiles(), []
    for index in track(indices, f"checking {lines.path}"):
        try:
            found.add(index, check_pair(lines[index], folder, modality, audio_hidden_size))
        except (ValueError, OSError) as error:
            errors.append(f"{lines.place(index)}: {error}")
    refuse(errors)
    if len(indices):
        record.save(passed or found)


def check_pair(item: Any, folder: Path, modality: str, audio_hidden_size: int) -> dict[str, os.stat_result]:
    """The files of an item, by name. Raises ValueError or OSError for an item that cannot be trained on."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if not isinstance(item.get("translations") or {}, dict):
        raise ValueError('"translations" must be an object')
    if not lines_of(item, translated=False) and not lines_of(item, translated=True):
        raise ValueError("no text in any of its fields")
    filepaths = item.get("filepaths")
    if not isinstance(filepaths, list) or not filepaths or not all(isinstance(path, str) for path in filepaths):
        raise ValueError('"filepaths" must be a list of one path or more')
    stats = {}
    for name in filepaths:
        path = folder / name
        if path.suffix.lower() not in (taken := extensions(model_inputs(modality))):
            raise ValueError(f"{name}: {modality} training takes {' '.join(taken)} files")
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        stats[name] = path.stat()
        if not stats[name].st_size:
            raise ValueError(f"{path} is empty")
        if modality == AUDIO.name:
            check_frames(path, audio_hidden_size)
    return stats


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
        for name, stat in stats.items():
            self.rows.extend((index, stat.st_size, stat.st_mtime_ns))
            self.names.append(name)

    def refresh(self, folder: Path) -> np.ndarray:
        """Take the present sizes and times of all files; returns the items of those that differ."""
        rows = np.frombuffer(self.rows, np.int64).reshape(-1, 3)
        found = array("q")
        for name in self.names:
            found.extend(_size_and_time(os.path.join(folder, name)))
        now = np.frombuffer(found, np.int64).reshape(-1, 2)
        changed = np.unique(rows[(rows[:, 1:] != now).any(axis=1), 0])
        rows = np.concatenate([rows[:, :1], now], axis=1)
        self.rows = array("q", rows.tobytes())
        return changed


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


class Record:
    """Where the files that have passed are remembered, in the user's cache folder."""

    def __init__(self, jsonl: Path, modality: str, audio_hidden_size: int):
        stat = jsonl.stat()
        which = [str(jsonl.resolve()), modality, audio_hidden_size]
        self.about = json.dumps([CHECKS, *which, stat.st_size, stat.st_mtime_ns])
        self.path = user_cache() / "checked" / f"{hashlib.sha256(json.dumps(which).encode()).hexdigest()[:32]}.npz"

    def load(self) -> PassedFiles | None:
        """What has passed; None where nothing is known of the JSONL file as it is."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                if str(saved["about"]) != self.about:
                    return None
                names = saved["names"].tobytes().decode("utf-8", "surrogatepass").split("\0")
                return PassedFiles(saved["rows"], names) if len(names) == len(saved["rows"]) else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, passed: PassedFiles) -> None:
        """Remember what has passed; where that is not possible, it is checked again the next time."""
        names = np.frombuffer("\0".join(passed.names).encode("utf-8", "surrogatepass"), np.uint8)
        rows = np.frombuffer(passed.rows, np.int64).reshape(-1, 3)
        try:
            with atomic_write(self.path) as file:
                np.savez(file, about=np.array(self.about), names=names, rows=rows)
        except OSError as error:
            logger.info("the checked items are not remembered: %s", error)


# ---------- pieces, and what the files hold ----------


def find_pieces(folders: list[Path]) -> list[Path]:
    """The .abc and .mtf files under `folders`, in a fixed order.

    Raises UserError where there is none, or an empty one.
    """
    taken = extensions(model_inputs(SYMBOLIC.name))
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in taken)
    if folders and not paths:
        raise UserError(f"there is no {' '.join(taken)} file under {', '.join(map(str, folders))}")
    refuse([f"{path}: is empty" for path in paths if not path.stat().st_size])
    return paths


def check_examples(examples: Examples, track: Track = untracked) -> None:
    """Read and encode all that the items hold. Raises a UserError that lists those that cannot be."""
    errors = []
    for index in track(range(len(examples)), "reading"):
        try:
            examples.check(index)
        except ItemError as error:
            errors.append(str(error))
    refuse(errors)


def refuse(errors: list[str]) -> None:
    """Raise a UserError that lists `errors`, the first of them at least, if there are any."""
    if errors:
        more = [f"… and {len(errors) - SHOWN_ERRORS} more"] * (len(errors) > SHOWN_ERRORS)
        listed = "\n  ".join([*errors[:SHOWN_ERRORS], *more])
        raise UserError(f"{len(errors)} items cannot be trained on:\n  {listed}")
