"""Folders of raw files -> mirrored folders of converted ones: the work of preprocessing/abc and preprocessing/midi."""

import contextlib
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Protocol

from clamp3.errors import Note
from clamp3.io.files import write_whole
from clamp3.io.folders import Job, Outcome, plan, save_report, tally
from clamp3.io.reports import Report, describe_error
from clamp3.io.workers import MEMORY_LIMIT, TIME_LIMIT, Pool, Processes


class Convert(Protocol):
    """A function of a module, or a `partial` of one."""

    def __call__(self, path: Path, /, *, note: Note) -> str | bytes | list[str]: ...


def convert_folder(
    convert: Convert,
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    target_extension: str,
    count_pieces: Callable[[Path], int] | None = None,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
    memory_limit: float = MEMORY_LIMIT,
    strict: bool = False,
    progress: bool = False,
) -> Report:
    """Write what `convert` makes of each input under `input_dir`, as `plan` mirrors it; `progress` shows a bar.

    `convert` and `count_pieces`, which says how many outputs an input has, run in `workers` processes (by default one
    for each core), so they must be a module's functions (or partials of such), and scripts need a `__main__` guard.
    `convert` returns the output, or a list of one for each piece. It raises ValueError or OSError for an input that
    has no output; one on which it takes more than `time_limit` seconds or `memory_limit` MB, or that ends its process,
    counts as failed too. What it notes goes into the report; with `strict` that is a failure. Raises UserError as
    `plan`, and where no process can be started.
    """
    start = time.perf_counter()
    with Pool(Processes(workers, time_limit, memory_limit)) as pool:
        count = partial(pool.run, partial(_count, count_pieces)) if count_pieces else None
        todo = plan(input_dir, output_dir, extensions, target_extension, count)
        jobs = sorted(todo.jobs, key=lambda job: -job.size)  # so that no long one is left for the end
        with contextlib.closing(pool.run(partial(_convert, convert, strict), jobs)) as outcomes:
            done = tally(outcomes, len(jobs), progress)
    return save_report(output_dir, todo, done, time.perf_counter() - start)


def _count(count_pieces: Callable[[Path], int], job: Job) -> Outcome:
    """How many outputs an input has, as content."""
    try:
        return Outcome(job, content=count_pieces(job.source))
    except Exception as error:
        return Outcome(job, describe_error(error))


def _convert(convert: Convert, strict: bool, job: Job) -> Outcome:
    """Do `job` in this process."""
    repairs: list[str] = []

    def note(repair: str) -> None:
        if strict:
            raise ValueError(repair)
        repairs.append(repair)

    try:
        made = convert(job.source, note=note)
        pieces = made if isinstance(made, list) else [made]
        if len(pieces) != len(job.targets):
            raise ValueError(f"holds {len(pieces)} pieces, not {len(job.targets)} as it seemed at first")
        contents = [piece if isinstance(piece, bytes) else piece.encode("utf-8") for piece in pieces]
    except (Exception, SystemExit) as error:  # whatever a damaged file leads a converter to, the others go on
        return Outcome(job, describe_error(error), tuple(dict.fromkeys(repairs)))
    warnings = tuple(dict.fromkeys(repairs))
    job.warn_first(warnings)
    for target, content in zip(job.targets, contents, strict=True):
        try:
            write_whole(target, content)
        except OSError as error:
            return Outcome.unwritten(job, target, error, warnings)
    return Outcome(job, warnings=warnings)
