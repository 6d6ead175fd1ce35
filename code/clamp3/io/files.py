"""Single files: written whole or not at all, read without trust."""

import codecs
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

PARTIAL_EXTENSION = ".partial"
PARTIAL_NAME = re.compile(r"\.[0-9a-f]{16}\.partial")  # random: host names and process ids repeat among containers
FORMER_PARTIAL_NAME = re.compile(r"\..+\.\d+\.partial")  # host and process id; their writers held no lock
ORPHAN_AGE = 24 * 3600  # seconds without a write, where no lock can tell whether a partial file has a writer
NO_HOME = Path(os.devnull, "clamp3")  # a path at which nothing can be read or made
# What writing to a path of these kinds leads to has no name that could be replaced.
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def special_kind(mode: int) -> str | None:
    """What a path of this `st_mode` is, if neither a file nor a folder: "a FIFO", "a device" or "a socket"."""
    return KINDS.get(stat.S_IFMT(mode))


# ---------- writing ----------


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place at `path` once it is whole, and is gone if anything goes wrong before.

    A link at `path` stays, and its target is replaced. Devices, FIFOs and this process's own output streams cannot be
    replaced: they get the whole content at the end. Several processes may write the same path; the last one wins.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing there yet, or nothing that can be reached, which writing will tell
        mode = None
    if mode is not None and (stream := _in_place(path)) is not None:
        with stream as file:
            content = io.BytesIO()
            yield content
            file.write(content.getbuffer())
        return
    if mode is not None and stat.S_ISLNK(mode):
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        remove_orphans(target.parent)  # which other runs look for beside the link, not here
    else:
        target = path
    file = _open_partial(target.parent)
    partial = file.name  # a string: making paths takes longer than the file system
    try:
        with file:
            yield file
            file.flush()
            if fcntl is None:
                file.close()
            os.replace(partial, target)  # while the lock is held
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _in_place(path: Path) -> IO[bytes] | None:
    """What writes to `path`, if that is no file that can be replaced; else None."""
    try:
        found = os.stat(path)
    except OSError:  # a link that leads nowhere yet
        return None
    for standard in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or not a file at all
            if os.path.samestat(os.fstat(standard.fileno()), found):
                standard.flush()
                return os.fdopen(os.dup(standard.fileno()), "wb")  # behind what has been printed
    return None if stat.S_ISREG(found.st_mode) else open(path, "wb")


def _open_partial(folder: Path) -> BinaryIO:
    """A new file under a random name in `folder`, which is made if need be; locked while it is open."""
    while True:
        partial = os.path.join(folder, _partial_name())
        try:
            file = open(partial, "xb")
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            continue
        try:
            locked = try_lock(file)
            if locked is None or (locked and os.fstat(file.fileno()).st_nlink):
                return file
        except BaseException:
            file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
        file.close()  # another process took it for an orphan before it was locked, and removes it


def write_new(path: Path, content: bytes) -> bool:
    """Write a file, whole or not at all, unless there is one already; whether it is this one that is there.

    Of several processes, on one machine or many, one is the first. Where files have one name alone, as on some
    file systems, two that start within the same moment may both take themselves for it; the last one wins.
    """
    with _open_partial(path.parent) as file:
        try:
            file.write(content)
            file.flush()
            try:
                os.link(file.name, path)
            except FileExistsError:
                return False
            except OSError:
                if path.exists():
                    return False
                write_whole(path, content)
            return True
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


def atomic_link(source: Path, path: Path) -> None:
    """Let `path` be another name of the file `source`. Raises OSError where files have one name alone."""
    partial = path.with_name(_partial_name())
    try:
        os.link(source, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial_name() -> str:
    return f".{secrets.token_hex(8)}{PARTIAL_EXTENSION}"


def try_lock(file: IO[bytes]) -> bool | None:
    """Whether this process now holds the lock of `file`; None where its file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def remove_if_orphan(partial: Path) -> bool:
    """Remove a partial file whose writer is gone, on whatever machine or in whatever container; whether it was one.

    A writer holds a lock on its file, which ends with it. Where there are no locks, age decides.
    """
    if not PARTIAL_NAME.fullmatch(partial.name):
        return bool(FORMER_PARTIAL_NAME.fullmatch(partial.name)) and _remove_if_old(partial)
    try:
        with open(partial, "r+b") as file:  # some network file systems lock only what is open for writing
            locked = try_lock(file)
            if locked:
                partial.unlink(missing_ok=True)
                return True
    except OSError:  # gone, or another user's
        return False
    return locked is None and _remove_if_old(partial)


def _remove_if_old(partial: Path) -> bool:
    with contextlib.suppress(OSError):
        if time.time() - partial.stat().st_mtime > ORPHAN_AGE:
            partial.unlink()
            return True
    return False


def remove_orphans(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`."""
    for partial in folder.glob(f".*{PARTIAL_EXTENSION}"):
        remove_if_orphan(partial)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy, atomically."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


# ---------- reading ----------


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array in a .npy file, or a map of it. Raises ValueError for anything else, pickles above all."""
    with open(path, "rb") as file:
        start = file.read(6)
    if not start:
        raise ValueError("empty file")
    if start != b"\x93NUMPY":
        raise ValueError("not a .npy file (it does not start like one)")
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
        if "Python objects" in str(error) or "Object arrays" in str(error):
            raise ValueError("holds pickled Python objects, which are refused, for they could run code") from None
        raise ValueError(f"not a whole .npy file: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for any other text, and for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(content)


def matching_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files in `folder` whose names match any of `patterns`, once each, in their order."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache() -> Path:
    """The folder of what is kept for this user: $CLAMP3_CACHE, else one among the user's caches.

    NO_HOME for a user without a home, as in some containers; /tmp would be everybody's.
    """
    if chosen := os.environ.get("CLAMP3_CACHE"):
        return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches, "clamp3")
    try:
        return Path.home() / ".cache" / "clamp3"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return NO_HOME


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, all line ends as newlines; or of a UTF-16 file that starts with a byte order mark.

    ValueError where it is of another encoding or is empty.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = re.sub(r"\r\n?", "\n", data.decode(encoding))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {error.encoding.upper()}: byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert it first"
        ) from None
    if not text:
        raise ValueError("empty file")
    return text
