"""Single files: written whole or not at all, read without trust."""

import codecs
import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

PARTIAL_EXTENSION = ".partial"


def partial_name(process: int) -> str:
    """What `process` of this machine calls the file that it writes: not after its target, whose name may be long."""
    return f".{socket.gethostname()[:64]}.{process}{PARTIAL_EXTENSION}"


def is_orphan(partial: Path) -> bool:
    """Whether the process of this machine that was writing `partial` is gone."""
    process = partial.stem.rpartition(".")[2]
    if not process.isdigit() or partial.name != partial_name(int(process)):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()


def remove_orphans(folder: Path) -> None:
    """Remove what killed processes of this machine were writing in `folder`."""
    for partial in folder.glob(f".*{PARTIAL_EXTENSION}"):
        if is_orphan(partial):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place at `path` when it is whole, and is gone if anything goes wrong before.

    A process writes one file of a folder at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(os.getpid()))
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


def load_array(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    """The array in a .npy file, or a map of it. Raises ValueError for anything else, pickles above all."""
    with open(path, "rb") as file:
        start = file.read(6)
    if not start:
        raise ValueError("empty file")
    if start != b"\x93NUMPY":
        raise ValueError("not a .npy file (its first bytes are others)")
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
        if "Python objects" in str(error) or "Object arrays" in str(error):
            raise ValueError("holds pickled Python objects, which are refused, for they could run code") from None
        raise ValueError(f"not a whole .npy file: {error}") from None


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache() -> Path:
    """Where this user's downloads and features are kept: $CLAMP3_CACHE, else a folder among the user's caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CLAMP3_CACHE") or Path(caches, "clamp3"))


def _encoding(path: Path) -> str:
    """The encoding that a file's byte order mark names; UTF-8 where it has none."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, all line ends as newlines; or of a UTF-16 file that starts with a byte order mark.

    ValueError where it is of another encoding or is empty.
    """
    try:
        text = path.read_text(encoding=_encoding(path))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {error.encoding.upper()}: byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert it first"
        ) from None
    if not text:
        raise ValueError("empty file")
    return text
