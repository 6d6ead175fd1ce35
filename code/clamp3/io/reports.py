import json
from dataclasses import asdict, dataclass
from pathlib import Path

from clamp3.errors import RepairWarning
from clamp3.io.files import atomic_write

SHOWN_REMARKS = 20


@dataclass(frozen=True)
class FileIssue:
    """An input, and why it has no output or what had to be mended to read it."""

    file: str
    reason: str


# ---------- the report ----------


def describe_error(error: BaseException) -> str:
    """What `error` says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read or written: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | RepairWarning) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _load_issues(path: Path) -> list[FileIssue]:
    """Those of an earlier run, if there was one."""
    try:
        return [FileIssue(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):
        return []


def _save_issues(path: Path, remarks: list[FileIssue]) -> None:
    """Write `remarks` in place of those of the last run."""
    if not remarks:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(remark)).encode() + b"\n" for remark in remarks)


def show(title: str, remarks: list[FileIssue], most: int | None = SHOWN_REMARKS) -> None:
    """Print `remarks` as a table, the first ones or, where `most` is None, all."""
    if not remarks:
        return
    print(f"{title}:")
    shown = [(printable(remark.file), remark.reason) for remark in remarks[:most]]
    width = max(len(file) for file, _ in shown)
    for file, why in shown:
        print(f"  {file:{width}}  {why}")
    if len(remarks) > len(shown):
        print(f"  … and {len(remarks) - len(shown)} more")


def printable(name: str) -> str:
    """A file name that any terminal can take: bytes that are not text become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
