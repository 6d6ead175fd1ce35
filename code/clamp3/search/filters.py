"""Which files of a collection a search may find: by modality, kind, metadata, and but for some contents."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any, NamedTuple

from clamp3.errors import UserError
from clamp3.formats.registry import MIDI, MTF, format_of
from clamp3.modalities import AUDIO, SYMBOLIC, TEXT

SCORE, MIDI_KIND = "score", "midi"
KINDS = (SCORE, MIDI_KIND, AUDIO.name, TEXT.name)
OPERATORS = {"<": lt, ">": gt, "<=": le, ">=": ge}  # of numbers; = and != compare texts too
CONDITION = re.compile(r"(?P<column>.*?)(?P<operator>!=|<=|>=|=|<|>)\s*(?P<value>.*)", re.DOTALL)


class File(NamedTuple):
    """What a filter looks at."""

    path: Path
    modality: str
    hash: str
    metadata: Mapping[str, Any]


def kind_of(path: Path, modality: str) -> str | None:
    """One of KINDS, by the file's extension and modality; None of ready-made features, whose own is not known."""
    if modality == SYMBOLIC.name:
        return MIDI_KIND if format_of(path) in (MIDI, MTF) else SCORE
    return modality if modality in KINDS else None


@dataclass(frozen=True)
class Condition:
    """What a column of metadata must be: such as `collection=Essen`, `year<1850`."""

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str, columns: Collection[str]) -> "Condition":
        """From "COLUMN OPERATOR VALUE". Raises UserError, with the `columns` there are, where it names none."""
        for column in sorted(columns, key=len, reverse=True):  # whose name may hold an operator
            rest = text.strip().removeprefix(column)
            if rest != text.strip() and (found := CONDITION.fullmatch(rest)) and not found["column"].strip():
                return cls(column, found["operator"], found["value"]).checked()
        found = CONDITION.fullmatch(text.strip())
        if not found or not found["column"]:
            raise UserError(f'"{text}" is no condition: say COLUMN=VALUE, or != < <= > >= in place of =')
        known = ", ".join(sorted(columns)) or "none; clamp3_index.py add INDEX FOLDER --metadata FILE.csv gives some"
        raise UserError(f"no file has metadata in a column {found['column'].strip()}; columns: {known}")

    def checked(self) -> "Condition":
        if self.operator not in ("=", "!=") and number(self.value) is None:
            raise UserError(f"{self.column}{self.operator} takes a number, not {self.value or 'nothing'}")
        return self

    def holds(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a file satisfies it: numbers compare as numbers. One without a value satisfies != alone."""
        value = metadata.get(self.column)
        if value is None or str(value) == "":
            return (self.value == "") == (self.operator == "=") if self.operator in ("=", "!=") else False
        ours, theirs = number(value), number(self.value)
        if self.operator in ("=", "!="):
            same = str(value).strip() == self.value or (ours is not None and ours == theirs)
            return same == (self.operator == "=")
        return ours is not None and theirs is not None and OPERATORS[self.operator](ours, theirs)


def number(value: object) -> Decimal | None:
    """The finite number that a value is or says, if any; with all its digits, as identifiers may have many."""
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


@dataclass(frozen=True)
class Filter:
    """What all files that are found must be. The default lets all through.

    `modality` is as in an index, `kind` one of KINDS, `where` holds conditions as `Condition.parse` takes them, and
    `but` the content hashes (`io.files.content_hash`) and the paths of files that are not to be found.
    """

    modality: str | None = None
    kind: str | None = None
    where: tuple[str, ...] = ()
    but: frozenset[str | Path] = frozenset()

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            raise ValueError(f"{self.kind!r} is no kind of file; there are {', '.join(KINDS)}")

    def passed(self, files: Iterable[File]) -> list[bool]:
        """For each of `files`, whether it may be found. Raises UserError as `Condition.parse` does."""
        files = list(files)
        columns = {column for file in files for column in file.metadata} if self.where else set()
        conditions = [Condition.parse(text, columns) for text in self.where]
        return [
            self.modality in (None, file.modality)
            and (self.kind is None or kind_of(file.path, file.modality) == self.kind)
            and not {file.hash, file.path} & self.but
            and all(condition.holds(file.metadata) for condition in conditions)
            for file in files
        ]


EVERYTHING = Filter()
