"""Checks of the folders that are written to: their file systems, and whether the cache is intact."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clamp3.tasks.diagnosis.findings import Finding, Subject, fault, ok, one_line, warning

CLOCK_SKEW = 60  # seconds, tolerated between this machine and a file server
READ_LIMIT = 30.0  # seconds spent on verifying the cache
STEPS = 100_000  # of SQLite, between looks at the clock
TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(7)
"""
REFUSED = 7


def folders_in_use(subject: Subject) -> dict[str, Path]:
    """The folders that are written to, by their use. Raises RuntimeError where the home folder is unknown."""
    from huggingface_hub import constants

    from clamp3.io.files import user_cache

    return {
        "outputs": Path(os.path.abspath(subject.output_dir)),
        "cache": user_cache(),
        "downloads": Path(constants.HF_HUB_CACHE),
        "temporary files": Path(tempfile.gettempdir()),
    }


def existing_parent(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.exists(one))


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, which is created for the time being if it does not exist. Raises OSError."""
    missing = [one for one in (folder.absolute(), *folder.absolute().parents) if not os.path.exists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".clamp3-doctor-", dir=folder) as made:
            yield Path(made)
    finally:
        for one in missing:
            with contextlib.suppress(OSError):  # another program has put something there
                one.rmdir()


def cache(subject: Subject) -> Iterator[Finding]:
    """The cache of features: its folder, what the file system supports, and its database."""
    try:
        folder = folders_in_use(subject)["cache"]
    except (RuntimeError, OSError) as error:
        yield fault(
            f"the cache has no folder: {one_line(error)}", "set HOME, or set CLAMP3_CACHE to a writable folder"
        )
        return
    yield from _file_system(folder, is_cache=True)
    yield from _databases(folder)


def outputs(subject: Subject) -> Iterator[Finding]:
    """The output folder (--output_dir), and what its file system supports."""
    yield from _file_system(Path(os.path.abspath(subject.output_dir)), is_cache=False)


def _file_system(folder: Path, is_cache: bool) -> Iterator[Finding]:
    try:
        with scratch(folder) as place:
            lacks, facts = _tried(place)
    except OSError as error:
        use = "set CLAMP3_CACHE to a writable folder" if is_cache else "choose another output folder"
        yield fault(f"{folder} cannot be written to: {error.strerror or one_line(error)}", use)
        return
    described = f"{folder}: writable; {', '.join(facts)}"
    if lacks:
        yield warning(f"{described}; {'; '.join(lacks)}", "use a folder on a local disk if that matters")
    else:
        yield ok(described)


def _tried(place: Path) -> tuple[list[str], list[str]]:
    """What the file system of `place` lacks, and what it supports."""
    lacks, facts = [], []
    first, second = place / "first", place / "second"
    first.write_bytes(b"content")
    if abs(first.stat().st_mtime - time.time()) > CLOCK_SKEW:
        lacks.append("its clock differs from this machine's, so files in use may be taken for old ones")
    if (locks := _locks_work(first)) is False:
        lacks.append("file locks do not work: do not run several commands on it at once")
    elif locks:
        facts.append("locks work")
    try:
        os.link(first, second)
        facts.append("hard links work")
    except OSError:
        lacks.append("no hard links: training's best and last weights take twice the space")
        second.write_bytes(b"other")
    os.replace(first, second)
    if second.read_bytes() != b"content":
        lacks.append("a replaced file is not visible at once")
    facts.append("names are not case-sensitive" if (place / "SECOND").exists() else "names are case-sensitive")
    return lacks, facts


def _locks_work(path: Path) -> bool | None:
    """Whether a lock keeps another process out; None where this system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        tried = subprocess.run([sys.executable, "-I", "-S", "-c", TRY_LOCK, str(path)], capture_output=True)
    return tried.returncode == REFUSED


def _databases(folder: Path) -> Iterator[Finding]:
    """Whether the databases in the cache, if any, are intact."""
    for path in sorted(folder.glob("*.sqlite")):
        try:
            damage = _damage(path)
        except sqlite3.Error as error:
            damage = one_line(error)
        if damage:
            advice = f"delete {path}: its features are then computed again when needed"
            yield warning(f"{path}: {damage}", advice)
        else:
            yield ok(f"{path}: {path.stat().st_size / 1e6:.1f} MB, no damage found")


def _damage(path: Path) -> str | None:
    """What SQLite finds within READ_LIMIT. Raises sqlite3.Error where it finds nothing that it can read."""
    end = time.monotonic() + READ_LIMIT
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.set_progress_handler(lambda: time.monotonic() > end, STEPS)
        try:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                return None
            raise
    return None if verdict == "ok" else verdict.splitlines()[0]
