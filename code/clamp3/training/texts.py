"""The items of a JSONL file, and the texts and files that training and evaluation take from an item."""

import json
from array import array
from pathlib import Path

import numpy as np

NOT_TEXT = ("id", "filepaths", "language", "translations")


class JsonLines:
    """The objects of a JSONL file by position. Memory grows with 16 bytes a line."""

    def __init__(self, path: Path):
        self.path = path
        starts, numbers, position = array("q"), array("q"), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
        self.starts = np.array(starts, np.int64)
        self.numbers = np.array(numbers, np.int64)  # from 1, blank lines counted

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            return json.loads(file.readline())

    def place(self, index: int) -> str:
        """Where an object stands, as people look for it."""
        return f"{self.path}:{self.numbers[index]}"


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
