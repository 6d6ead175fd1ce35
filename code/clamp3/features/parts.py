"""Features as rows of Parquet files, in place of a .npy for each input: written, and read again.

A folder of them has parts, features-HEX.parquet, of some thousand rows each. Each process writes its own, and a part
appears when it is whole. A row has "file", the input's path relative to the folder of inputs; "modality";
"fingerprint", of the weights; "modified", when the input had last been changed when it was looked at (nanoseconds);
and "feature", a list of float32 numbers, or of such lists for hidden states. Where several rows have a file, which had
changed, the one that was modified last counts. It needs pyarrow, which is imported when it is first used.
"""

import os
import re
import secrets
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.formats.registry import format_of
from clamp3.io.files import atomic_write
from clamp3.io.folders import Outcome
from clamp3.io.rows import name_in_row, package

PART_NAME = re.compile(r"features-[0-9a-f]{16}\.parquet")
# A part is written once it has so many rows, so many bytes, or when its first row has waited for so many seconds:
# that is what a run loses that is killed at once.
ROWS, BYTES, SECONDS = 4096, 1 << 26, 300
BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


# ---------- writing ----------


def save_in_parts(made: Iterable[Outcome], folder: Path, fingerprint: str | None) -> Generator[Outcome, None, None]:
    """Write the features (1, …) that outcomes have as content: each outcome is passed on once its row is in a part.

    What was made is also written where the work ends before its end, by an error or a signal.
    """
    waiting: list[Outcome] = []
    size, first = 0, 0.0
    try:
        for outcome in made:
            if outcome.failure is not None:
                yield outcome
                continue
            first = first if waiting else time.monotonic()
            waiting.append(outcome)
            size += outcome.content.nbytes
            if len(waiting) >= ROWS or size >= BYTES or time.monotonic() - first >= SECONDS:
                whole, waiting, size = waiting, [], 0
                yield from _save_part(whole, folder, fingerprint)
    except BaseException:
        _save_part(waiting, folder, fingerprint)
        raise
    yield from _save_part(waiting, folder, fingerprint)


def _save_part(waiting: list[Outcome], folder: Path, fingerprint: str | None) -> list[Outcome]:
    """Write a part; the outcomes without their content."""
    if not waiting:
        return []
    part = folder / f"features-{secrets.token_hex(8)}.parquet"
    for outcome in waiting:
        outcome.job.warn_first(outcome.warnings)
    try:
        with atomic_write(part) as file:
            file.write(_table(waiting, folder, fingerprint))
    except OSError as error:
        return [Outcome.unwritten(outcome.job, part, error, outcome.warnings) for outcome in waiting]
    return [replace(outcome, content=None) for outcome in waiting]


def _table(outcomes: Sequence[Outcome], folder: Path, fingerprint: str | None) -> Any:
    """The bytes of a Parquet file of these outcomes' features (hidden,), or (length, hidden) each."""
    arrow, parquet = package("pyarrow", "pyarrow"), package("pyarrow.parquet", "pyarrow")
    features = [np.asarray(outcome.content[0], np.float32) for outcome in outcomes]
    values = np.concatenate([feature.reshape(-1) for feature in features])
    rows = arrow.FixedSizeListArray.from_arrays(arrow.array(values), features[0].shape[-1])
    if features[0].ndim == 2:
        ends = np.cumsum([0, *map(len, features)]).astype(np.int32)
        rows = arrow.ListArray.from_arrays(arrow.array(ends), rows)
    jobs = [outcome.job for outcome in outcomes]
    formats = [format_of(job.source) for job in jobs]
    columns = {
        "file": arrow.array([name_in_row(job.target.relative_to(folder)) for job in jobs], arrow.string()),
        "modality": arrow.array([known.modality if known else None for known in formats], arrow.string()),
        "fingerprint": arrow.array([fingerprint] * len(jobs), arrow.string()),
        "modified": arrow.array([job.modified for job in jobs], arrow.int64()),
        "feature": rows,
    }
    out = arrow.BufferOutputStream()
    # Floats of this kind do not repeat, and do not shrink.
    parquet.write_table(
        arrow.table(columns), out, use_dictionary=["modality", "fingerprint"], compression={"file": "snappy"}
    )
    return out.getvalue()


# ---------- reading ----------


@dataclass
class Parts:
    """The rows of a folder's parts, one of each file, in the order of their paths."""

    files: list[Path]  # below the folder; as files, these need not exist
    modalities: list[str]
    modified: list[int]
    features: np.ndarray  # (n, hidden) float32
    fingerprint: str | None  # of the weights that made them, where that is known


def is_part(path: Path) -> bool:
    return PART_NAME.fullmatch(path.name) is not None


def parts_in(folder: Path) -> list[Path]:
    """Those that extraction has written into `folder`."""
    return sorted(filter(is_part, folder.glob("features-*.parquet")))


def rows_done(folder: Path) -> dict[Path, int]:
    """The files whose rows whole parts in `folder` hold, as paths below it, and when each had been modified.

    Raises UserError where a part cannot be read.
    """
    done: dict[Path, int] = {}
    for part in parts_in(folder):
        names, times = (column.to_pylist() for column in _read(part, ["file", "modified"]).columns)
        for name, modified in zip(names, times, strict=True):
            for path in {name, _unescaped(name)} if "\\" in name else (name,):
                known = done.setdefault(folder / path, modified)
                if known < modified:
                    done[folder / path] = modified
    return done


def _unescaped(name: str) -> str:
    """The file's own name, of what `name_in_row` makes of it."""
    return os.fsdecode(BYTE.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(name)))


def read_parts(parts: Sequence[Path]) -> Parts:
    """All rows of these files, which may lie in several folders.

    Raises UserError where one cannot be read, where they hold hidden states, and where different weights made them.
    """
    rows: dict[Path, tuple[str, int, np.ndarray]] = {}
    makers: dict[tuple[int, str | None], Path] = {}
    for part in parts:
        table = _read(part, ["file", "modality", "fingerprint", "modified", "feature"])
        if not hasattr(table.schema.field("feature").type, "list_size"):
            raise UserError(f"{part} has hidden states, in place of features: make these by --get_global")
        hidden = table.schema.field("feature").type.list_size
        features = table.column("feature").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        features = features.reshape(-1, hidden)
        *texts, prints, times = (table.column(name).to_pylist() for name in table.column_names[:4])
        makers |= {(hidden, fingerprint): part for fingerprint in prints}
        for name, modality, modified, feature in zip(*texts, times, features, strict=True):
            path = part.parent / name
            if path not in rows or rows[path][1] < modified:
                rows[path] = modality, modified, feature
    if len(makers) > 1:
        (_, first), (_, second) = list(makers.items())[:2]
        raise UserError(f"{first} and {second} have features of different models, which cannot be compared")
    files = sorted(rows, key=str)
    fingerprint = next(iter(makers), (0, None))[1]
    modalities, modified, features = zip(*map(rows.__getitem__, files), strict=True) if files else ((), (), ())
    stacked = np.stack(features) if files else np.zeros((0, 0), np.float32)
    return Parts(files, list(modalities), list(modified), stacked, fingerprint)


def _read(part: Path, columns: list[str]) -> Any:
    arrow, parquet = package("pyarrow", "pyarrow"), package("pyarrow.parquet", "pyarrow")
    try:
        with open(part, "rb") as file:
            return parquet.ParquetFile(file).read(columns=columns).select(columns)
    except (OSError, KeyError, arrow.ArrowException) as error:
        raise UserError(
            f"{part} cannot be read ({' '.join(str(error).split())}): remove it, and extraction makes its rows again"
        ) from None
