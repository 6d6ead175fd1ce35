"""What happened to single files: issues and their reasons, the report of a run, and names that are safe to show."""

import contextlib
import json
import shlex
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clamp3.errors import RepairWarning, is_out_of_memory
from clamp3.io.files import atomic_write, parse_json
from clamp3.io.shards import FAILURES_FILE, WARNINGS_FILE

OUT_OF_MEMORY = "there is not enough memory for it"


@dataclass(frozen=True)
class FileIssue:
    """An input, and why it has no output or what had to be repaired to read it."""

    file: str
    reason: str


@dataclass
class Report:
    """What a run over a folder has done."""

    output_dir: Path
    seconds: float
    written: int = 0  # inputs
    already_done: int = 0
    ignored: Counter[str] = field(default_factory=Counter)  # files of other kinds, by extension
    failures: list[FileIssue] = field(default_factory=list)
    warnings: list[FileIssue] = field(default_factory=list)
    skipped: list[FileIssue] = field(default_factory=list)  # FIFOs, devices and sockets that are named like inputs
    stopped: str | None = None  # why the run ended before its last input
    failures_file: str = FAILURES_FILE  # in `output_dir`, where all of them are
    warnings_file: str = WARNINGS_FILE

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def describe_error(error: BaseException | None) -> str:
    """What `error` says, in one line."""
    if is_out_of_memory(error) or is_out_of_memory(getattr(error, "__cause__", None)):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read or written: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | RepairWarning) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def load_issues(path: Path) -> list[FileIssue]:
    """Those that an earlier run has saved, if there was one and they can be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = [parse_json(line) for line in lines]
        return [FileIssue(str(record["file"]), str(record["reason"])) for record in records]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def append_issues(path: Path, issues: list[FileIssue]) -> None:
    """Add `issues` to those at `path`, in one piece; where that is not possible they stay out."""
    if not issues or (path.exists() and not path.is_file()):
        return
    lines = b"".join(json.dumps(asdict(issue)).encode() + b"\n" for issue in issues)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            file.write(lines)


def save_issues(path: Path, issues: list[FileIssue]) -> None:
    """Write `issues` as JSON lines in place of those of the last run; no file if there are none."""
    if issues == load_issues(path):  # so that a folder that cannot be written is no trouble
        return
    if not issues:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(issue)).encode() + b"\n" for issue in issues)


def printable(text: str) -> str:
    """`text`, such as a file name, in one line that is safe on any terminal: what could steer one becomes an escape.

    That is line ends, control and format characters (right-to-left marks too), and bytes that are not text.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or unicodedata.category(character) == "Zs" else _escaped(character)
        for character in text
    )


def quoted(path: Path) -> str:
    """`path` as a word of a shell's command, to be pasted."""
    return shlex.quote(str(path))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
