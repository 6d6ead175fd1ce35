"""Work on folders: find the inputs, mirror them, share them out, report what was done and what failed."""

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clamp3.errors import UserError
from clamp3.io.files import PARTIAL_EXTENSION, matching_files, remove_if_orphan, special_kind
from clamp3.io.reports import FileIssue, Report, append_issues, describe_error, load_issues, printable, save_issues
from clamp3.io.shards import FAILURES_FILE, REPORT_NAME, WARNINGS_FILE, Shard, report_name

# Errors of writing one output that any other would meet too; after so many in a row, a run stops.
NO_ROOM = {errno.ENOSPC, errno.EROFS, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
MAX_UNWRITTEN = 5
LINKS = "links to folders"  # those that lead to a folder that is read anyway
# What systems and their file managers put into every folder; hidden folders and ._* of macOS are such, too.
JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
JUNK_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir"}


@dataclass(frozen=True)
class Job:
    """One input file and its outputs: one, but for a file that holds several pieces."""

    source: Path
    targets: tuple[Path, ...]
    size: int  # bytes of the source: a measure of the work
    warnings_file: Path | None = None  # of the run's report
    modified: int = 0  # nanoseconds: when the source had last been changed when it was looked at

    @property
    def target(self) -> Path:
        """The only output."""
        (target,) = self.targets
        return target

    def warn_first(self, warnings: Iterable[str]) -> None:
        """Put warnings into the report before the output is written, so that a run that is killed loses none.

        The report of a run that comes to its end replaces them.
        """
        if self.warnings_file is not None:
            append_issues(self.warnings_file, [FileIssue(str(self.source), warning) for warning in warnings])


@dataclass
class Plan:
    """What a run over a folder has to do."""

    jobs: list[Job] = field(default_factory=list)
    already_done: int = 0
    ignored: Counter[str] = field(default_factory=Counter)  # files of other kinds, by extension
    failures: list[FileIssue] = field(default_factory=list)  # folders that cannot be listed
    special: list[FileIssue] = field(default_factory=list)  # FIFOs, devices and sockets
    is_new: bool = True  # whether no input has an output yet, in any shard
    shard: Shard | None = None  # the share of the inputs that is meant; None: all
    rows: Callable[[], Mapping[Path, int]] | None = None  # outputs that are no files of their own


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with its outputs written, or with the reason why not."""

    job: Job
    failure: str | None = None
    warnings: tuple[str, ...] = ()
    content: Any = None  # what was read, of a job without outputs
    crashed: bool = False  # its process ended before it did
    no_room: str | None = None  # why no output can be written at all

    @classmethod
    def unwritten(cls, job: Job, target: Path, error: OSError, warnings: tuple[str, ...] = ()) -> "Outcome":
        """That of a job one of whose outputs cannot be written."""
        failure = f"{target} cannot be written: {error.strerror}"
        return cls(job, failure, warnings, no_room=error.strerror if error.errno in NO_ROOM else None)


@dataclass
class Tally:
    """What a run has done."""

    written: int = 0  # inputs
    failures: list[FileIssue] = field(default_factory=list)
    warnings: list[FileIssue] = field(default_factory=list)
    stopped: str | None = None  # why it ended before its last input


def plan(
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    target_extension: str | None,
    count_pieces: Callable[[list[Job]], Iterable[Outcome]] | None = None,
    redo_changed: bool = False,
    shard: Shard | None = None,
    rows: Callable[[], Mapping[Path, int]] | None = None,
) -> Plan:
    """Find the files under `input_dir` whose extension, in any letter case, is one of `extensions`.

    A file of several pieces, as `count_pieces` gives for content, has as many outputs, numbered (name_01, name_02, …).
    Inputs whose outputs exist are left out, unless `redo_changed` and they are older than the input; what killed runs
    left behind is removed. With a `shard`, only what is in its share is planned. Outputs that are rows of tables, not
    files, are those that `rows` gives, with the time of their inputs; without a `target_extension`, outputs are called
    as the inputs are. Raises UserError where there is no such folder or file, where two inputs would have the same
    output, and where there is something to do and outputs cannot be written: all before anything is written.
    """
    if not input_dir.is_dir():
        raise UserError(f"there is no folder {input_dir}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file; outputs need a folder")
    if input_dir.resolve() == output_dir.resolve():
        raise UserError(f"input and output folder are the same ({input_dir}): give the outputs a folder of their own")
    result = Plan(shard=shard, rows=rows)
    sources = []
    for source in walk(input_dir, result, output_dir):
        if source.suffix.lower() in extensions:
            sources.append(source)
        elif not REPORT_NAME.fullmatch(source.name) and not source.name.startswith("."):
            result.ignored[source.suffix.lower() or "without extension"] += 1
    pieces = dict.fromkeys(sources, 1)
    for outcome in count_pieces([Job(source, (), 0) for source in sources]) if count_pieces else ():
        if outcome.failure is None:
            pieces[outcome.job.source] = outcome.content
        else:
            result.failures.append(FileIssue(str(outcome.job.source), outcome.failure))
            del pieces[outcome.job.source]

    owners: dict[Path, Path] = {}  # of the targets
    jobs, clashes = [], []
    for source, count in pieces.items():
        mirrored = output_dir / source.relative_to(input_dir)
        targets = tuple(_targets(mirrored, count, target_extension))
        size, modified = _size_and_time(source)
        job = Job(source, targets, size, output_dir / report_name(WARNINGS_FILE, shard), modified)
        clashes += [_clash(owners[target], source, target) for target in job.targets if target in owners]
        owners |= dict.fromkeys(job.targets, source)
        jobs.append(job)
    if clashes:
        raise UserError("two inputs would have one output; rename one of each pair:\n" + "\n".join(clashes))
    result.special = special_inputs(result, extensions)
    if not jobs and not result.failures and not result.special:
        raise UserError(f"there is no {' '.join(sorted(extensions))} file under {input_dir}")

    done: Collection[Path] = _outputs(output_dir)
    times = rows() if rows else None
    done = done if times is None else times
    result.is_new = not any(_is_done(job, done) for job in jobs)
    if shard is not None:
        jobs = [job for job in jobs if shard.takes(job.source.relative_to(input_dir))]
        result.special = [one for one in result.special if shard.takes(Path(one.file).relative_to(input_dir))]
    result.jobs = [job for job in jobs if not _is_done(job, done) or (redo_changed and _has_changed(job, times))]
    result.already_done = len(jobs) - len(result.jobs)
    if result.jobs:
        _try_to_write(output_dir)
    return result


def _try_to_write(folder: Path) -> None:
    """Make `folder`, and raise UserError where no file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None


def _is_done(job: Job, outputs: Collection[Path]) -> bool:
    return all(target in outputs for target in job.targets)


def _targets(mirrored: Path, pieces: int, extension: str | None) -> Iterator[Path]:
    """The outputs of an input of so many pieces."""
    if pieces == 1:
        yield mirrored if extension is None else mirrored.with_suffix(extension)
        return
    digits = len(str(pieces))
    for number in range(1, pieces + 1):
        yield mirrored.with_name(f"{mirrored.stem}_{number:0{digits}}{extension}")


def _has_changed(job: Job, rows: Mapping[Path, int] | None) -> bool:
    """Whether the input is newer than an output, or than the input that a row was made of."""
    if rows is not None:
        return job.modified > min(rows[target] for target in job.targets)
    try:
        return job.source.stat().st_mtime_ns > min(target.stat().st_mtime_ns for target in job.targets)
    except OSError:  # which will be named when it is tried
        return True


def _clash(first: Path, second: Path, target: Path) -> str:
    return "  {} and {} -> {}".format(*(printable(str(path)) for path in (first, second, target)))


def walk(folder: Path, result: Plan, excluded: Path | None = None) -> Iterator[Path]:
    """All files under `folder`, in a fixed order, but those under `excluded`; `result` notes what is passed over.

    Links to files are files, and each folder is read once: under its own path if it lies under `folder`, else under
    that of the first link to it. Links that lead back up are not followed. Junk is passed over in silence. What has
    no end or no content (FIFOs, devices, sockets) is noted.
    """
    seen = {_identity(path) for path in (*folder.resolve().parents, *([excluded] if excluded else []))}
    waiting: list[Path] = [folder]
    links: list[Path] = []
    while waiting or links:
        # Real folders first, in the order of their paths; then what links lead to.
        parent = waiting.pop() if waiting else links.pop(0)
        identity = _identity(parent)
        if identity is not None and identity in seen:
            result.ignored[LINKS] += parent.is_symlink()
            continue
        seen.add(identity)
        files, folders, linked = _listed(parent, result)
        waiting += reversed(folders)
        links += linked
        yield from files


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all paths of a file or folder; None where it cannot be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _listed(folder: Path, result: Plan) -> tuple[list[Path], list[Path], list[Path]]:
    """The files, the folders and the links to folders in `folder`, sorted; `result` notes what is passed over."""
    files: list[Path] = []
    folders: list[Path] = []
    links: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        result.failures.append(FileIssue(str(folder), f"the folder cannot be listed: {error.strerror}"))
        return files, folders, links
    for entry in found:
        path = Path(folder, entry.name)
        if _is(entry, "is_dir"):
            if not entry.name.startswith(".") and entry.name.lower() not in JUNK_FOLDERS:
                (links if entry.is_symlink() else folders).append(path)
        elif entry.name.startswith("._") or entry.name.lower() in JUNK_FILES:
            continue
        elif not _is(entry, "is_file") and (kind := _special(path)):
            result.special.append(FileIssue(str(path), f"passed over: {kind}, not a file"))
        else:  # a link that leads nowhere too: its name may be an input's
            files.append(path)
    return files, folders, links


def _is(entry: os.DirEntry[str], question: str) -> bool:
    """`entry.is_dir()` or `entry.is_file()`; False for a link that leads nowhere or to itself."""
    try:
        return bool(getattr(entry, question)())
    except OSError:
        return False


def _special(path: Path) -> str | None:
    """As `special_kind`, by path; None where there is nothing."""
    try:
        return special_kind(path.stat().st_mode)
    except OSError:
        return None


def refuse_special(path: Path) -> None:
    """Raise UserError for a FIFO, a device or a socket, which could be read without an end."""
    if kind := _special(path):
        raise UserError(f"{path} is {kind}, not a file")


def special_inputs(found: Plan, extensions: Collection[str]) -> list[FileIssue]:
    """Those FIFOs, devices and sockets that `walk` has noted in `found` whose extension is an input's."""
    return [issue for issue in found.special if Path(issue.file).suffix.lower() in extensions]


def _outputs(output_dir: Path) -> set[Path]:
    """All files under `output_dir`, once the partial ones that killed processes left are removed."""
    outputs = set()
    for parent, _, names in os.walk(output_dir):
        for name in names:
            path = Path(parent, name)
            if path.suffix == PARTIAL_EXTENSION and name.startswith("."):
                remove_if_orphan(path)
            else:
                outputs.add(path)
    return outputs


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes of `path`, and when it was modified; 0 where it cannot be read, which will be named when it is tried."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def share(jobs: list[Job], processes: int, rank: int) -> list[Job]:
    """The `jobs` that process `rank` does: each kind by size, dealt out to and fro, so that shares are even."""
    ordered = sorted(jobs, key=lambda job: (job.source.suffix.lower(), -job.size, job.targets))
    to_and_fro = [*range(processes), *reversed(range(processes))]
    return [job for index, job in enumerate(ordered) if to_and_fro[index % len(to_and_fro)] == rank]


def tally(outcomes: Iterable[Outcome], total: int, progress: bool = False) -> Tally:
    """Count `outcomes` as they come in; `progress` shows a bar. Where no output can be written, the rest is left."""
    result = Tally()
    unwritten = 0  # in a row
    with tqdm(total=total, unit="file", delay=1, disable=not progress) as bar:
        for outcome in outcomes:
            if outcome.failure is None:
                result.written += 1
                unwritten = 0
            else:
                result.failures.append(FileIssue(str(outcome.job.source), outcome.failure))
            result.warnings += [FileIssue(str(outcome.job.source), warning) for warning in outcome.warnings]
            bar.update()
            unwritten += outcome.no_room is not None
            if unwritten == MAX_UNWRITTEN:
                result.stopped = outcome.no_room
                break
    return result


def _lost(output_dir: Path, todo: Plan, done: Tally) -> list[FileIssue]:
    """The inputs whose outputs were written and are gone again, as with a folder that is removed in mid-run."""
    if not done.written or done.stopped:
        return []
    there: Collection[Path] = todo.rows() if todo.rows else _outputs(output_dir)
    failed = {issue.file for issue in done.failures}
    gone = [job.source for job in todo.jobs if not _is_done(job, there) and str(job.source) not in failed]
    return [FileIssue(str(source), "its output was written, and was removed in mid-run") for source in gone]


def save_report(output_dir: Path, todo: Plan, done: Tally, seconds: float) -> Report:
    """What a run did; its failures and warnings are written into OUTPUT_DIR.

    failures.jsonl holds those of this run alone, since each run tries a failed input again; warnings.jsonl also holds
    those of earlier runs on inputs that this one left as they were. A run of one shard has files of its own, such as
    failures-3-of-16.jsonl; one of all inputs takes their place.
    """
    lost = _lost(output_dir, todo, done)
    failures = sorted(todo.failures + done.failures + lost, key=lambda failure: failure.file)
    tried = {str(job.source) for job in todo.jobs} | {issue.file for issue in todo.special}
    failures_file, warnings_file = (report_name(name, todo.shard) for name in (FAILURES_FILE, WARNINGS_FILE))
    replaced = [] if todo.shard else [path.name for path in matching_files(output_dir, ["failures-*", "warnings-*"])]
    replaced = [name for name in replaced if REPORT_NAME.fullmatch(name)]
    warned = [warnings_file, *(name for name in replaced if name.startswith("warnings"))]
    known = dict.fromkeys(issue for name in warned for issue in load_issues(output_dir / name))
    earlier = [issue for issue in known if issue.file not in tried]
    lists = {warnings_file: earlier + todo.special + done.warnings, failures_file: failures}
    lists |= {name: [] for name in replaced}
    for name, issues in lists.items():
        try:
            save_issues(output_dir / name, issues)
        except OSError as error:  # the report itself must survive what it reports, such as a full disk
            failures.append(FileIssue(str(output_dir / name), describe_error(error)))
    stopped = None
    if done.stopped:
        left = len(todo.jobs) - done.written - len(done.failures)
        stopped = f"{output_dir} takes no more files ({done.stopped}); {left} inputs were not tried"
    return Report(
        output_dir,
        seconds,
        done.written - len(lost),
        todo.already_done,
        todo.ignored,
        failures,
        done.warnings,
        todo.special,
        stopped,
        failures_file,
        warnings_file,
    )
