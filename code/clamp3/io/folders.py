"""Work on folders: find the inputs, mirror them, share them out, report what was done and what failed."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from clamp3.errors import WAS_STANDARD, UserError
from clamp3.io.files import PARTIAL_EXTENSION, is_orphan
from clamp3.io.reports import FileIssue, _load_issues, _save_issues, show

FAILURES_FILE = "failures.jsonl"
WARNINGS_FILE = "warnings.jsonl"


@dataclass(frozen=True)
class Job:
    """One input file and its outputs: one, but for a file that holds several pieces."""

    source: Path
    targets: tuple[Path, ...]
    size: int  # bytes of the source: a measure of the work

    @property
    def target(self) -> Path:
        """The only output."""
        (target,) = self.targets
        return target


@dataclass
class Plan:
    """What a run over a folder has to do."""

    jobs: list[Job] = field(default_factory=list)
    already_done: int = 0
    ignored: Counter = field(default_factory=Counter)  # files of other kinds, by extension
    failures: list[FileIssue] = field(default_factory=list)  # folders that cannot be listed


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with its outputs written, or with the reason why not."""

    job: Job
    failure: str | None = None
    warnings: tuple[str, ...] = ()
    content: str | None = None  # what was read, of a job without outputs


@dataclass
class Tally:
    """What a run has done."""

    written: int = 0  # inputs
    failures: list[FileIssue] = field(default_factory=list)
    warnings: list[FileIssue] = field(default_factory=list)


def one_piece(_source: Path) -> int:
    return 1


def plan(
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    target_extension: str,
    count_pieces: Callable[[Path], int] = one_piece,
) -> Plan:
    """Find the files under `input_dir` whose extension, in any letter case, is one of `extensions`.

    A file of several pieces, as `count_pieces` says, has as many outputs, numbered (name_01, name_02, …). Inputs whose
    outputs are there are left out; what killed runs left behind is removed. Raises UserError where there is no such
    folder or file, and, before anything is written, where two inputs would have one output.
    """
    if not input_dir.is_dir():
        raise UserError(f"there is no folder {input_dir}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file; outputs need a folder")
    if input_dir.resolve() == output_dir.resolve():
        raise UserError(f"input and output folder are the same ({input_dir}): give the outputs a folder of their own")
    result = Plan()
    owners: dict[Path, Path] = {}  # of the targets
    jobs, clashes = [], []
    for source in walk(input_dir, result, output_dir):
        if source.suffix.lower() not in extensions:
            if source.name not in (FAILURES_FILE, WARNINGS_FILE):
                result.ignored[source.suffix.lower() or "without extension"] += 1
            continue
        mirrored = output_dir / source.relative_to(input_dir)
        job = Job(source, tuple(_targets(mirrored, count_pieces(source), target_extension)), _size(source))
        clashes += [f"  {owners[target]} and {source} -> {target}" for target in job.targets if target in owners]
        owners |= dict.fromkeys(job.targets, source)
        jobs.append(job)
    if clashes:
        raise UserError("two inputs would have one output; rename one of each pair:\n" + "\n".join(clashes))
    if not jobs and not result.failures:
        raise UserError(f"there is no {' '.join(sorted(extensions))} file under {input_dir}")

    done = _outputs(output_dir)
    result.jobs = [job for job in jobs if not done.issuperset(job.targets)]
    result.already_done = len(jobs) - len(result.jobs)
    return result


def _targets(mirrored: Path, pieces: int, extension: str) -> Iterator[Path]:
    """The outputs of an input of so many pieces."""
    if pieces == 1:
        yield mirrored.with_suffix(extension)
        return
    digits = len(str(pieces))
    for number in range(1, pieces + 1):
        yield mirrored.with_name(f"{mirrored.stem}_{number:0{digits}}{extension}")


def walk(folder: Path, result: Plan, excluded: Path | None = None) -> Iterator[Path]:
    """All files under `folder`, in a fixed order, but those under `excluded`; `result` notes what is passed over."""

    def note(error: OSError) -> None:
        result.failures.append(FileIssue(str(error.filename), f"the folder cannot be listed: {error.strerror}"))

    excluded = excluded and excluded.resolve()
    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if Path(parent, name).resolve() != excluded)
        linked = sum(Path(parent, name).is_symlink() for name in folders)  # which os.walk does not enter
        if linked:
            result.ignored["links to folders"] += linked
        yield from (Path(parent, name) for name in sorted(names))


def _outputs(output_dir: Path) -> set[Path]:
    """All files under `output_dir`, once the partial ones that killed processes of this machine left are removed."""
    outputs = set()
    for parent, _, names in os.walk(output_dir):
        for name in names:
            path = Path(parent, name)
            if path.suffix == PARTIAL_EXTENSION:
                if is_orphan(path):
                    path.unlink(missing_ok=True)
            else:
                outputs.add(path)
    return outputs


def _size(path: Path) -> int:
    """Bytes of `path`; 0 where it cannot be read, which will be named when it is tried."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def share(jobs: list[Job], processes: int, rank: int) -> list[Job]:
    """The `jobs` that process `rank` does: each kind by size, dealt out to and fro, so that shares are even."""
    ordered = sorted(jobs, key=lambda job: (job.source.suffix.lower(), -job.size, job.targets))
    to_and_fro = [*range(processes), *reversed(range(processes))]
    return [job for index, job in enumerate(ordered) if to_and_fro[index % len(to_and_fro)] == rank]


def tally(outcomes: Iterable[Outcome], total: int, show: bool = True) -> Tally:
    """Count `outcomes` as they come in, with a progress bar."""
    result = Tally()
    with tqdm(total=total, unit="file", delay=1, disable=not show) as progress:
        for outcome in outcomes:
            if outcome.failure is None:
                result.written += 1
            else:
                result.failures.append(FileIssue(str(outcome.job.source), outcome.failure))
            result.warnings += [FileIssue(str(outcome.job.source), warning) for warning in outcome.warnings]
            progress.update()
    return result


def report(output_dir: Path, todo: Plan, done: Tally, seconds: float) -> None:
    """Print what a run did, and write its failures and warnings into OUTPUT_DIR.

    failures.jsonl holds those of this run alone, since a failed input is tried again by each run; warnings.jsonl also
    holds those of earlier runs on inputs that this one left as they were.
    """
    failures = sorted(todo.failures + done.failures, key=lambda failure: failure.file)
    rate = f" in {seconds:.1f} s ({done.written / seconds:.1f} files/s)" if done.written else ""
    print(f"{done.written} written{rate}, {todo.already_done} already there, {len(failures)} failed -> {output_dir}")
    if todo.ignored:
        kinds = ", ".join(f"{count} {extension}" for extension, count in todo.ignored.most_common())
        print(f"left aside, for this command does not take them: {kinds}")
    tried = {str(job.source) for job in todo.jobs}
    earlier = [remark for remark in _load_issues(output_dir / WARNINGS_FILE) if remark.file not in tried]
    _save_issues(output_dir / WARNINGS_FILE, earlier + done.warnings)
    _save_issues(output_dir / FAILURES_FILE, failures)
    damaged = [remark for remark in done.warnings if remark.reason != WAS_STANDARD]
    if standard := len(done.warnings) - len(damaged):
        print(f"{standard} file{'s were' if standard > 1 else ' was'} standard ABC and interleaved first")
    show(f"damaged, but read (all of them in {output_dir / WARNINGS_FILE})", damaged)
    show(f"failed (all of them in {output_dir / FAILURES_FILE})", failures)
