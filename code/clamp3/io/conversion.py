"""Folders of raw files -> mirrored folders of converted ones: the work of preprocessing/abc and preprocessing/midi."""

import contextlib
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Protocol

from clamp3.errors import Note
from clamp3.io.files import atomic_write
from clamp3.io.folders import Job, Outcome, one_piece, plan, save_report, tally
from clamp3.io.reports import Report, describe_error
from clamp3.io.workers import TIME_LIMIT, in_processes


class Convert(Protocol):
    """A function of a module, or a `partial` of one."""

    def __call__(self, path: Path, *, note: Note) -> str | bytes | list[str]: ...


def convert_folder(
    convert: Convert,
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    target_extension: str,
    count_pieces: Callable[[Path], int] = one_piece,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
    strict: bool = False,
    progress: bool = False,
) -> Report:
    """Write what `convert` makes of each input under `input_dir`, as `plan` mirrors it; `progress` shows a bar.

    `convert` runs in `workers` processes (by default one for each core), so it must be a module's function (or a
    partial of one). It returns the output, or a list of one for each piece. It raises ValueError or OSError for an
    input that has no output; one on which it takes more than `time_limit` seconds, or that ends its process, counts as
    failed too. What it notes goes into the report; with `strict` that is a failure. Raises UserError as `plan`.
    """
    start = time.perf_counter()
    todo = plan(input_dir, output_dir, extensions, target_extension, count_pieces)
    jobs = sorted(todo.jobs, key=lambda job: -job.size)  # so that no long one is left for the end
    with contextlib.closing(in_processes(partial(_convert, convert, strict), jobs, workers, time_limit)) as outcomes:
        done = tally(outcomes, len(jobs), progress)
    return save_report(output_dir, todo, done, time.perf_counter() - start)


def _convert(convert: Convert, strict: bool, job: Job) -> Outcome:
    """Do `job` in this process."""
    repairs: list[str] = []

    def note(repair: str) -> None:
        if strict:
            raise ValueError(repair)
        repairs.append(repair)

    failure = None
    try:
        made = convert(job.source, note=note)
        pieces = made if isinstance(made, list) else [made]
        if len(pieces) != len(job.targets):
            raise ValueError(f"holds {len(pieces)} pieces, not {len(job.targets)} as it seemed at first")
        for target, piece in zip(job.targets, pieces, strict=True):
            with atomic_write(target) as file:
                file.write(piece if isinstance(piece, bytes) else piece.encode("utf-8"))
    except (Exception, SystemExit) as error:  # whatever a damaged file leads a converter to, the others go on
        failure = describe_error(error)
    return Outcome(job, failure, tuple(dict.fromkeys(repairs)))
