"""The items of a JSONL file, and the texts and files that training and evaluation take from an item."""

import codecs
import hashlib
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clamp3.formats.registry import extensions, model_inputs
from clamp3.io.files import parse_json
from clamp3.io.remembered import Remembered

NOT_TEXT = ("id", "filepaths", "language", "translations")
READ_SIZE = 1 << 18  # bytes at once
REMEMBERED_SIZE = 1 << 24  # bytes from which on a file's lines are remembered: smaller ones are read through at once
SETTLED = 10**9  # nanoseconds since a file's last change, within which another one might not show in its times
LINES_VERSION = 1  # counts up when lines are found in another way
PARTS = ("starts", "numbers", "sha256")
NEWLINE, SPACES = ord("\n"), b" \t\n\r\v\f"
IS_SPACE = np.isin(np.arange(256), list(SPACES))


class JsonLines:
    """The values of a JSONL file by position, in UTF-8 with or without a BOM. Memory grows with 16 bytes a line.

    `lines[index]` raises ValueError where the line is not JSON. `sha256` is that of the file, in hexadecimal digits.
    Where the lines of a large file start is remembered in the user's cache folder, with its SHA-256: while size and
    times stay as they are, the file is not read through again.
    """

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be read."""
        self.path = path
        with open(path, "rb") as file:
            state = _state(file)
            is_large, is_settled = state[0] >= REMEMBERED_SIZE, time.time_ns() - max(state[1:]) > SETTLED
            remembered = Remembered("lines", [LINES_VERSION, str(path.resolve())], state)
            found = remembered.load(*PARTS) if is_large else None
            if found is None:
                found = _read_lines(file)
                if is_large and is_settled and _state(file) == state:
                    remembered.save(**dict(zip(PARTS, found, strict=True)))
        self.starts, self.numbers, self.sha256 = found[0], found[1], str(found[2])  # numbers count blank lines, from 1

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            return parse_json(file.readline())

    def place(self, index: int) -> str:
        """File and line, as people look for it."""
        return f"{self.path}:{self.numbers[index]}"


def _state(file: BinaryIO) -> list[int]:
    """What changes with the content of an open file: its size, and the times of its last change in nanoseconds.

    Programs that copy set the first of these times; the second is the system's own (on Windows, the file's birth).
    """
    stat = os.fstat(file.fileno())
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_lines(file: BinaryIO) -> list[np.ndarray]:
    """Where the lines that are not blank begin, their numbers (from 1, blank ones counted), and the file's SHA-256."""
    digest, position, is_start = hashlib.sha256(), 0, True
    starts, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]  # of each line, and its first byte
    while block := file.read(READ_SIZE):
        digest.update(block)
        data = np.frombuffer(block, np.uint8)
        begins = np.empty(len(data), bool)
        begins[0], begins[1:] = is_start, data[:-1] == NEWLINE
        starts.append(np.flatnonzero(begins) + position)
        firsts.append(data[begins])
        if not position and block.startswith(codecs.BOM_UTF8):
            starts[-1][0], firsts[-1][0] = len(codecs.BOM_UTF8), SPACES[0]
        position, is_start = position + len(block), block.endswith(b"\n")
    found = np.concatenate(starts)
    is_item = np.ones(len(found), bool)
    for index in np.flatnonzero(IS_SPACE[np.concatenate(firsts)]):
        file.seek(found[index])
        is_item[index] = bool(file.readline().strip())
    numbers = np.flatnonzero(is_item)
    numbers += 1
    return [found[is_item], numbers, np.array(digest.hexdigest())]


def checked_item(item: Any, modality: str) -> dict:
    """`item`, as far as it can be judged without its files. Raises ValueError where it cannot be trained on."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if not isinstance(item.get("translations") or {}, dict):
        raise ValueError('"translations" must be an object')
    texts = _own_texts(item) + _translated_texts(item)
    if not texts:
        raise ValueError("no text in any of its fields")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"a text holds the lone surrogate U+{half:04X}, which is no character") from None
    filepaths = item.get("filepaths")
    if not isinstance(filepaths, list) or not filepaths or not all(isinstance(path, str) for path in filepaths):
        raise ValueError('"filepaths" must be a list of one path or more')
    taken = extensions(model_inputs(modality))
    for name in filepaths:
        if Path(name).suffix.lower() not in taken:
            raise ValueError(f"{name}: {modality} training takes {' '.join(taken)} files")
    return item


def texts_of(fields: dict) -> list[str]:
    """The strings among the values of `fields`, and in their lists; null and empty ones are left out."""
    values = (value if isinstance(value, list) else [value] for value in fields.values())
    return [text for group in values for text in group if isinstance(text, str) and text.strip()]


def _own_texts(item: dict) -> list[str]:
    return texts_of({name: value for name, value in item.items() if name not in NOT_TEXT})


def _translated_texts(item: dict) -> list[str]:
    return texts_of({name: value for name, value in (item.get("translations") or {}).items() if name != "language"})


def lines_of(item: dict, translated: bool) -> list[str]:
    """The distinct lines of an item's own texts, or of its translations where there are any."""
    texts = (_translated_texts(item) if translated else []) or _own_texts(item)
    return list(dict.fromkeys(line for text in texts for line in text.split("\n") if line.strip()))


def training_text(item: dict, rng: np.random.Generator, separator: str) -> str:
    """Half of the lines of an item, shuffled; every second time those of its translations."""
    lines = lines_of(item, translated=rng.random() < 0.5)
    kept = [line for line in lines if rng.random() < 0.5] or lines
    return separator.join(rng.permutation(np.array(kept, object)))


def evaluation_text(item: dict, separator: str) -> str:
    """The item's analysis; where there is none, all its lines."""
    analysis = item.get("analysis")
    if isinstance(analysis, str) and analysis.strip():
        return analysis
    return separator.join(lines_of(item, translated=False))


def evaluation_file(filepaths: list[str]) -> str:
    """The first file, or the second where the first is neither ABC nor audio."""
    first, *others = filepaths
    return others[0] if others and not first.lower().endswith((".abc", ".npy")) else first
