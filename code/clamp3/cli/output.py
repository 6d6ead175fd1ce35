import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from clamp3.errors import UserError

NUMBER = re.compile(r"-?[\d.]*%?")


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns under their names: numbers to the right, texts to the left."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    numeric = [all(NUMBER.fullmatch(row[column]) for row in cells[1:]) for column in range(len(header))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        columns = zip(row, widths, numeric, strict=True)
        print("  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in columns).rstrip())


def print_found(records: Sequence[dict]) -> None:
    """Print what a search has found, and by which weights."""
    columns = ["rank", "cosine", "file"] + ["metadata"] * any(record.get("metadata") for record in records)
    print_table(columns, [[record[column] for column in columns] for record in records])
    print_weights(records[0]["weights"]) if records else print("nothing found")


def print_weights(weights: str) -> None:
    """Say what made the features of an answer."""
    print(f"features made by {weights}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text}" for name, text in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def save_json(path: Path | None, records: Iterable[dict]) -> None:
    """Write `records` as JSON lines, if there is a path to write to. Raises UserError where that is not possible."""
    if path is None:
        return
    from clamp3.io.files import atomic_write

    try:
        with atomic_write(path) as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in records)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
