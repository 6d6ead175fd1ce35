"""The items of a JSONL file, and the texts and files that training and evaluation take from an item."""

import codecs
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.formats.registry import extensions, model_inputs
from clamp3.io.files import parse_json

NOT_TEXT = ("id", "filepaths", "language", "translations")


class JsonLines:
    """The values of a JSONL file by position, in UTF-8 with or without a BOM. Memory grows with 16 bytes a line.

    `lines[index]` raises ValueError where the line is not JSON.
    """

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be read."""
        self.path = path
        starts, numbers, position = array("q"), array("q"), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                bom = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
                line, position = line[bom:], position + bom
                if line.strip():
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
        self.starts = np.array(starts, np.int64)
        self.numbers = np.array(numbers, np.int64)  # from 1, blank lines counted

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            return parse_json(file.readline())

    def place(self, index: int) -> str:
        """File and line, as people look for it."""
        return f"{self.path}:{self.numbers[index]}"


def checked_item(item: Any, modality: str) -> dict:
    """`item`, as far as it can be judged without its files. Raises ValueError where it cannot be trained on."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if not isinstance(item.get("translations") or {}, dict):
        raise ValueError('"translations" must be an object')
    lines = lines_of(item, translated=False) + lines_of(item, translated=True)
    if not lines:
        raise ValueError("no text in any of its fields")
    try:
        "".join(lines).encode()
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


def lines_of(item: dict, translated: bool) -> list[str]:
    """The distinct lines of an item's own texts, or of its translations where there are any."""
    translations = item.get("translations") or {}
    texts = texts_of({name: value for name, value in translations.items() if name != "language"}) if translated else []
    texts = texts or texts_of({name: value for name, value in item.items() if name not in NOT_TEXT})
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
