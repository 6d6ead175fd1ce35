"""CSV files that users write: pairs, labels, metadata."""

import csv
from pathlib import Path

from clamp3.errors import UserError


def csv_rows(path: Path) -> list[list[str]]:
    """All lines of a CSV file, blank ones too. Raises UserError where it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file, numbered from 1, but blank ones and a first one that names the columns.

    Raises UserError where it cannot be read, and for a line of another number of values.
    """
    numbered = []
    for number, row in enumerate(csv_rows(path), 1):
        values = [value.strip() for value in row]
        if not any(values) or (number == 1 and values == list(columns)):
            continue
        if len(values) != len(columns):
            raise UserError(f"{path}:{number}: a line must be {','.join(columns)}, not {','.join(row)}")
        numbered.append((number, values))
    return numbered
