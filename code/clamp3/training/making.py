"""Training files made from a folder of music and a table of texts."""

import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.formats.registry import extensions, format_of, model_inputs
from clamp3.io.files import atomic_write, content_hash, read_text
from clamp3.io.folders import Plan, special_inputs, walk
from clamp3.io.reports import FileIssue
from clamp3.io.tables import csv_rows
from clamp3.modalities import AUDIO, SYMBOLIC

FILE, TEXT, SPLIT, GROUP = "file", "text", "split", "group"  # columns that are not passed on under their own names
RESERVED, NO_TEXT = ("filepaths", "translations"), ("id", "language")
SPLITS = {
    **dict.fromkeys(("", "train", "training"), "train"),
    **dict.fromkeys(("eval", "evaluation", "val", "valid", "validation", "dev"), "eval"),
    "test": "test",
}
GRAM, SHARED = 10, 0.5  # steps in a row; pieces that share such a part of those of the shorter are near-duplicates
COMMON = 50  # pieces that share a figure, above which it is a commonplace
NOTE = re.compile(r"[_^=]*([A-Ga-g])([,']*)")
NOT_NOTES = re.compile(r'"[^"]*"|![^!]*!|\[[A-Za-z]:[^\]]*\]|^[A-Za-z]:.*$|^%.*$', re.MULTILINE)


@dataclass
class Item:
    """A line of the training file to be."""

    files: list[Path]
    fields: dict[str, str]
    split: str  # "train", "eval" or "test"
    group: str  # items of one group stay on one side; "" for none
    place: str  # of its row


@dataclass
class Made:
    """Items, and what is wrong with rows and files."""

    items: list[Item]
    issues: list[FileIssue]  # rows without a file, files without a row, …
    raw: Counter[str] = field(default_factory=Counter)  # files that training cannot read as they stand, by extension


# ---------- rows and files ----------


def read_items(folder: Path, texts: Path, modality: str | None = None) -> Made:
    """The items that the rows of `texts`, a CSV file, make of the files under `folder`.

    Its first line names the columns: `file` (a path in `folder`, with its extension or without, or a stem), `text`,
    and as one likes `split` (train, eval or test), `group`, `id`, `language` and further texts. Files of one stem and
    different extensions are forms of one piece. Raises UserError where folder or table cannot be used.
    """
    found = Plan()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    paths = list(walk(folder, found))
    modality = modality or _modality_of(folder, paths)
    taken = extensions(model_inputs(modality))
    files = [path for path in paths if path.suffix.lower() in taken]
    by_key, issues, items = _keys(folder, files), found.failures + special_inputs(found, taken), []
    for number, row in _rows(texts):
        try:
            items.append(_item(row, by_key, f"{texts}:{number}"))
        except ValueError as error:
            issues.append(FileIssue(f"{texts}:{number}", str(error)))
    used = {path for item in items for path in item.files}
    issues += [FileIssue(str(path), "no row has a text for it") for path in files if path not in used]
    return Made(items, issues, Counter(path.suffix.lower() for path in paths if _is_raw(path)))


def _modality_of(folder: Path, paths: Sequence[Path]) -> str:
    kinds = {
        name
        for name in (SYMBOLIC.name, AUDIO.name)
        if any(path.suffix.lower() in extensions(model_inputs(name)) for path in paths)
    }
    if len(kinds) != 1:
        taken = " ".join(ending for name in (SYMBOLIC.name, AUDIO.name) for ending in extensions(model_inputs(name)))
        what = "both symbolic music and audio features: say --modality" if kinds else f"no file of {taken}"
        raise UserError(f"{folder} holds {what}")
    return kinds.pop()


def _is_raw(path: Path) -> bool:
    known = format_of(path)
    return known is not None and known.modality != "text" and not known.is_model_input


def _keys(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by what a row may call them: their path, their path without its extension, and their stem."""
    keys: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        relative = path.relative_to(folder)
        for key in dict.fromkeys((relative.as_posix(), relative.with_suffix("").as_posix(), relative.stem)):
            keys[unicodedata.normalize("NFC", key)].append(path)
    return keys


def _rows(texts: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of the table by column, numbered from 1, but blank ones."""
    rows = csv_rows(texts)
    columns = [name.strip() for name in rows[0]] if rows else []
    texts_in = set(columns) - {FILE, SPLIT, GROUP, *NO_TEXT}
    if FILE not in columns or len(set(columns)) < len(columns) or not texts_in:
        raise UserError(f"{texts}: the first line must name the columns, once each: file,text, and others as you like")
    if reserved := [name for name in columns if name in RESERVED or not name]:
        raise UserError(f"{texts}: a column cannot be called {reserved[0] or 'nothing'}")
    for number, row in enumerate(rows[1:], 2):
        if any(value.strip() for value in row):
            yield number, {**dict(zip(columns, map(str.strip, row), strict=False)), "": str(len(row) - len(columns))}


def _item(row: dict[str, str], by_key: dict[str, list[Path]], place: str) -> Item:
    """Raises ValueError where nothing can be made of the row."""
    if row.pop("") != "0":
        raise ValueError("another number of values than columns")
    key, split, group = row.pop(FILE), row.pop(SPLIT, "").lower(), row.pop(GROUP, "")
    if split not in SPLITS:
        raise ValueError(f"split must be train, eval or test, not {split}")
    files = by_key.get(unicodedata.normalize("NFC", PurePosixPath(key.replace("\\", "/")).as_posix()), [])
    if not files:
        raise ValueError(f"there is no file {key}")
    if len({path.suffix.lower() for path in files}) < len(files):
        raise ValueError(f"{key} may be {files[0]} or {files[1]}: give its path in the folder")
    fields = {"analysis" if name == TEXT else name: value for name, value in row.items() if value}
    if not set(fields) - set(NO_TEXT):
        raise ValueError("no text")
    return Item(sorted(files, key=lambda path: path.suffix.lower()), fields, SPLITS[split], group, place)


# ---------- what belongs together ----------


def groups_of(items: Sequence[Item]) -> np.ndarray:
    """A number for each item, (items,), the same for those that must be on one side of a split.

    These are items of one `group`, of one stem, of files with the same content, and near-duplicates: ABC whose first
    voices, in whatever key, share half of their figures of ten steps, or MTF likewise. Nothing is known to be like a
    file that cannot be read.
    """
    parent = list(range(len(items)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[tuple, int] = {}
    grams: list[set[bytes]] = []
    for index, item in enumerate(items):
        keys: list[tuple] = [("stem", path.stem.casefold()) for path in item.files]
        keys += [("content", _hash(path)) for path in item.files] + [("group", item.group)] * bool(item.group)
        for key in keys:
            parent[root(index)] = root(first.setdefault(key, index))
        grams.append(set().union(*(_figures(path) for path in item.files)))
    for one, other in _near_duplicates(grams):
        parent[root(one)] = root(other)
    return np.array([root(index) for index in range(len(items))], np.int64)


def _near_duplicates(grams: list[set[bytes]]) -> Iterator[tuple[int, int]]:
    holders: dict[bytes, list[int]] = defaultdict(list)
    for index, found in enumerate(grams):
        for gram in found:
            holders[gram].append(index)
    shared: Counter[tuple[int, int]] = Counter()
    for who in holders.values():
        if len(who) <= COMMON:
            shared.update((a, b) for position, a in enumerate(who) for b in who[position + 1 :])
    for (one, other), count in shared.items():
        if count >= SHARED * min(len(grams[one]), len(grams[other])):
            yield one, other


def _hash(path: Path) -> str:
    try:
        return content_hash(path)
    except OSError:
        return str(path)


def _figures(path: Path) -> set[bytes]:
    """The runs of GRAM steps from note to note of a symbolic file: in scale steps for ABC, in semitones for MTF."""
    if path.suffix.lower() not in extensions(model_inputs(SYMBOLIC.name)):
        return set()
    try:
        text = read_text(path)
    except (ValueError, OSError):
        return set()
    heights = _abc_heights(text) if path.suffix.lower() == ".abc" else _mtf_heights(text)
    steps = np.diff(np.array(heights, np.int64)).clip(-100, 100).astype(np.int8).tobytes()
    kind = path.suffix.lower().encode()
    return {kind + steps[start : start + GRAM] for start in range(max(0, len(steps) - GRAM + 1))}


def _abc_heights(text: str) -> list[int]:
    """The notes of the first voice as steps of the scale."""
    if re.search(r"^\[V:1\]", text, re.MULTILINE):
        text = "\n".join(line.split("[V:2]")[0] for line in text.split("\n") if line.startswith("[V:1]"))
    found = NOTE.findall(NOT_NOTES.sub("", text))
    return [
        "CDEFGAB".index(letter.upper()) + 7 * (letter.islower() + marks.count("'") - marks.count(","))
        for letter, marks in found
    ]


def _mtf_heights(text: str) -> list[int]:
    words = (line.split() for line in text.split("\n"))
    sounding = (word for word in words if len(word) > 4 and word[0] == "note_on" and word[4] != "0")
    return [int(word[3]) for word in sounding if word[3].isdigit()]


def hold_out(items: Sequence[Item], groups: np.ndarray, share: float, seed: int) -> None:
    """Give about a `share` of the training items to evaluation, whole groups at a time; the same for one seed."""
    sizes = Counter(int(group) for item, group in zip(items, groups, strict=True) if item.split == "train")
    left = round(share * sum(sizes.values()))
    chosen = set()
    for group in np.random.default_rng(seed).permutation(np.array(sorted(sizes), np.int64)).tolist():
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    for item, group in zip(items, groups, strict=True):
        if item.split == "train" and int(group) in chosen:
            item.split = "eval"


def straddling(items: Sequence[Item], groups: np.ndarray) -> list[FileIssue]:
    """The items of evaluation and test that have a near-duplicate in training."""
    training = {int(group) for item, group in zip(items, groups, strict=True) if item.split == "train"}
    return [
        FileIssue(item.place, f"in {item.split}, and its like is in training ({item.files[0]})")
        for item, group in zip(items, groups, strict=True)
        if item.split != "train" and int(group) in training
    ]


# ---------- files ----------


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write `items` as the lines of a JSONL file, whole or not at all; their files by paths relative to its folder."""
    with atomic_write(path) as file:
        for item in items:
            names = [Path(os.path.relpath(name, path.parent)).as_posix() for name in item.files]
            line: dict[str, Any] = {"id": item.files[0].stem, "filepaths": names, **item.fields}
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
