"""Batch work on folders: walk, mirror, share out, write atomically, report failures."""

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clamp3.errors import UserError

FAILURES_FILE = "failures.jsonl"
SHOWN_FAILURES = 20
PARTIAL_EXTENSION = ".partial"


@dataclass(frozen=True)
class Job:
    """One input file and the output file that mirrors it."""

    source: Path
    target: Path
    size: int  # bytes of the source: a measure of the work


@dataclass(frozen=True)
class Failure:
    """An input that has no output, and why."""

    file: str
    reason: str


@dataclass
class Plan:
    """What a run over a folder has to do."""

    jobs: list[Job] = field(default_factory=list)
    already_done: int = 0
    ignored: Counter = field(default_factory=Counter)  # files of other kinds, by extension
    failures: list[Failure] = field(default_factory=list)  # folders that cannot be listed


def plan(input_dir: Path, output_dir: Path, extensions: Collection[str], target_extension: str) -> Plan:
    """Find the files under `input_dir` whose extension, in any letter case, is one of `extensions`.

    Those whose output is there are left out; what killed runs left behind is removed. Raises UserError where there is
    no such folder or file, and, before anything is written, where two inputs would have one output.
    """
    if not input_dir.is_dir():
        raise UserError(f"there is no folder {input_dir}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file; outputs need a folder")
    if input_dir.resolve() == output_dir.resolve():
        raise UserError(f"input and output folder are the same ({input_dir}): give the outputs a folder of their own")
    result = Plan()
    sources: dict[Path, Path] = {}  # by target
    clashes = []
    for source in _walk(input_dir, output_dir, result):
        if source.suffix.lower() not in extensions:
            result.ignored[source.suffix.lower() or "without extension"] += 1
            continue
        target = output_dir / source.relative_to(input_dir).with_suffix(target_extension)
        if target in sources:
            clashes.append(f"  {sources[target]} and {source} -> {target}")
        sources[target] = source
    if clashes:
        raise UserError("two inputs would have one output; rename one of each pair:\n" + "\n".join(clashes))
    if not sources and not result.failures:
        raise UserError(f"there is no {' '.join(sorted(extensions))} file under {input_dir}")

    done = _outputs(output_dir)
    result.jobs = [Job(source, target, _size(source)) for target, source in sources.items() if target not in done]
    result.already_done = len(sources) - len(result.jobs)
    return result


def _walk(folder: Path, excluded: Path, result: Plan) -> Iterator[Path]:
    """All files under `folder`, in a fixed order, but those under `excluded`; `result` notes what is passed over."""

    def note(error: OSError) -> None:
        result.failures.append(Failure(str(error.filename), f"the folder cannot be listed: {error.strerror}"))

    excluded = excluded.resolve()
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
                if _is_orphan(path):
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
    ordered = sorted(jobs, key=lambda job: (job.source.suffix.lower(), -job.size, job.target))
    to_and_fro = [*range(processes), *reversed(range(processes))]
    return [job for index, job in enumerate(ordered) if to_and_fro[index % len(to_and_fro)] == rank]


def _partial_name(process: int) -> str:
    """What `process` of this machine calls the file that it writes: not after its target, whose name may be long."""
    return f".{socket.gethostname()[:64]}.{process}{PARTIAL_EXTENSION}"


def _is_orphan(partial: Path) -> bool:
    """Whether the process of this machine that was writing `partial` is gone."""
    process = partial.stem.rpartition(".")[2]
    if not process.isdigit() or partial.name != _partial_name(int(process)):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place at `path` when it is whole, and is gone if anything goes wrong before.

    A process writes one file of a folder at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(_partial_name(os.getpid()))
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy, atomically."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> np.ndarray:
    """The array in a .npy file. Raises ValueError for anything else, pickles above all."""
    with open(path, "rb") as file:
        start = file.read(6)
    if not start:
        raise ValueError("empty file")
    if start != b"\x93NUMPY":
        raise ValueError("not a .npy file (its first bytes are others)")
    try:
        return np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
        if "Python objects" in str(error) or "Object arrays" in str(error):
            raise ValueError("holds pickled Python objects, which are refused, for they could run code") from None
        raise ValueError(f"not a whole .npy file: {error}") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, all line ends as newlines. ValueError where it is not UTF-8 or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}; convert it first"
        ) from None
    if not text:
        raise ValueError("empty file")
    return text


def reason(error: Exception) -> str:
    """What `error` says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def report(output_dir: Path, written: int, todo: Plan, failures: list[Failure], seconds: float) -> None:
    """Print what a run did, and write its failures to OUTPUT_DIR/failures.jsonl, in place of those of the last run."""
    failures = sorted(failures, key=lambda failure: failure.file)
    rate = f" in {seconds:.1f} s ({written / seconds:.1f} files/s)" if written else ""
    print(f"{written} written{rate}, {todo.already_done} already there, {len(failures)} failed -> {output_dir}")
    if todo.ignored:
        kinds = ", ".join(f"{count} {extension}" for extension, count in todo.ignored.most_common())
        print(f"left aside, for this command does not take them: {kinds}")
    path = output_dir / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(failure)).encode() + b"\n" for failure in failures)
    print(f"failed (all of them in {path}):")
    shown = [(printable(failure.file), failure.reason) for failure in failures[:SHOWN_FAILURES]]
    width = max(len(file) for file, _ in shown)
    for file, why in shown:
        print(f"  {file:{width}}  {why}")
    if len(failures) > SHOWN_FAILURES:
        print(f"  … and {len(failures) - SHOWN_FAILURES} more")


def printable(name: str) -> str:
    """A file name that any terminal can take: bytes that are not text become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
