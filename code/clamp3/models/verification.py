"""Is a file of weights what it was when it was written? And what tells its content from others."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clamp3.io.files import atomic_write, content_hash, parse_json, user_cache
from clamp3.io.workers import own_cores

VERSION = 1  # of what is verified: to be raised with each change, so that files are verified again
WORTH_REMEMBERING = 1_000_000  # bytes; smaller files are verified each time
BLOCK = 1 << 22  # bytes
LOCAL_HEADER = 30  # bytes in a ZIP file before a part's name, which its extra field and then its data follow
SHA256_DIGITS = 64
# How .safetensors and NumPy call the types of floating-point numbers; bfloat16 is the upper half of a float32.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class DamagedError(ValueError):
    """A file's content is not what it was when it was written: the message says what is wrong, after "it is"."""


@dataclass(frozen=True)
class Part:
    """A record of a PyTorch file, which is a ZIP archive: where its bytes are, and their CRC-32."""

    name: str
    start: int
    size: int
    checksum: int
    is_compressed: bool


def file_state(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written, or when another takes its place."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def verified_digest(path: Path) -> str:
    """A text that identifies the content of a file, which is verified as far as possible.

    PyTorch's files hold a CRC-32 of each part. Others are told apart by all their bytes; .safetensors hold no
    checksums, so that only NaN and what contradicts the header can be seen, or in the hub's cache, where files are
    named after their SHA-256, any change. It is done once for a file of this path, size, time and inode: that is
    remembered in the user's cache. Raises DamagedError.
    """
    stat = os.stat(path)
    state = [VERSION, *file_state(stat), stat.st_ctime_ns]
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    record = user_cache() / "verified" / f"{name}.json"
    if (known := _remembered(record, state)) is not None:
        return known
    digest = _verify(path)
    if stat.st_size >= WORTH_REMEMBERING and file_state(os.stat(path)) == file_state(stat):
        _remember(record, {"file": os.fspath(path), "state": state, "digest": digest})
    return digest


def _remembered(record: Path, state: list[int]) -> str | None:
    try:
        known = parse_json(record.read_bytes())
        return str(known["digest"]) if known["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(record: Path, facts: dict[str, Any]) -> None:
    try:
        with atomic_write(record) as file:
            file.write(json.dumps(facts).encode())
    except OSError:  # then it is verified again the next time
        pass


def _verify(path: Path) -> str:
    parts = parts_of(path)
    has_checksums = all(part.checksum for part in parts if part.size)  # torch can be told to leave them out
    if parts and has_checksums and not any(part.is_compressed for part in parts):
        check_parts(path, parts)
        return " ".join(f"{part.size}:{part.checksum}" for part in parts)
    digest, blob = content_hash(path), Path(os.path.realpath(path)).name
    if len(blob) == SHA256_DIGITS and blob != digest:
        raise DamagedError("damaged: its SHA-256 is not the one that it is named after")
    if is_safetensors(path):
        check_values(path)
    return digest


# ---------- PyTorch's files ----------


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, be it a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its directory says that it goes on elsewhere
        return True


def parts_of(path: Path) -> list[Part]:
    """The records of a PyTorch file; none if it is another file. Raises DamagedError where it contradicts itself."""
    if not is_zip(path):
        return []
    parts = []
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                file.seek(entry.header_offset)
                header = file.read(LOCAL_HEADER)
                if header[:4] != b"PK\x03\x04":
                    raise DamagedError(f"damaged: its part {entry.filename} is not where it should be")
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                start = entry.header_offset + LOCAL_HEADER + lengths
                is_compressed = entry.compress_type != zipfile.ZIP_STORED
                parts.append(Part(entry.filename, start, entry.file_size, entry.CRC, is_compressed))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeError) as error:
        raise DamagedError(f"damaged: {error}") from None
    return parts


def check_parts(path: Path, parts: list[Part]) -> None:
    """Compare the checksums of all parts. Raises DamagedError, with its name, where one differs."""

    def is_whole(part: Part) -> bool:
        found = 0
        with open(path, "rb") as file:
            for block in _blocks(file, part.start, part.size):
                found = zlib.crc32(block, found)
        return found == part.checksum

    largest_first = sorted(parts, key=lambda part: -part.size)
    with ThreadPoolExecutor(own_cores()) as pool:
        for part, whole in zip(largest_first, pool.map(is_whole, largest_first), strict=True):
            if not whole:
                raise DamagedError(f"damaged: the checksum of its part {part.name} is wrong")


def _blocks(file: BinaryIO, start: int, size: int) -> Iterator[memoryview]:
    """The bytes of a stretch of a file, or less of them where it ends before; a block is valid until the next."""
    buffer = memoryview(bytearray(min(size, BLOCK)))
    file.seek(start)
    while size and (count := file.readinto(buffer[: min(size, BLOCK)])):  # type: ignore[attr-defined]
        yield buffer[:count]
        size -= count


# ---------- .safetensors ----------


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as .safetensors do, be it a damaged one."""
    with open(path, "rb") as file:
        start = file.read(9)
        return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= os.fstat(file.fileno()).st_size


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a .safetensors file, and its size in bytes. ValueError … for other files."""
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > os.fstat(file.fileno()).st_size:
            raise ValueError("its header is longer than the file")
        return parse_json(file.read(header_size)), header_size


def safetensors_entries(path: Path) -> dict[str, tuple[str, int, int]]:
    """Type, start and end, in bytes of the file, of each tensor. ValueError, KeyError … for other files."""
    header, header_size = _safetensors_header(path)
    header.pop("__metadata__", None)
    begin = 8 + header_size
    return {
        name: (entry["dtype"], begin + entry["data_offsets"][0], begin + entry["data_offsets"][1])
        for name, entry in header.items()
    }


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What a .safetensors file says beside its tensors. ValueError … for other files."""
    return _safetensors_header(path)[0].get("__metadata__") or {}


def check_values(path: Path) -> None:
    """Raise DamagedError, with the tensor's name, where a .safetensors holds NaN, as bytes by chance do."""
    with open(path, "rb") as file:
        for name, (kind, start, end) in safetensors_entries(path).items():
            if kind not in FLOATS:
                continue
            for block in _blocks(file, start, end - start):
                numbers = np.frombuffer(block, FLOATS[kind])
                if kind == "BF16":
                    numbers = (numbers.astype("<u4") << 16).view("<f4")
                if np.isnan(numbers).any():
                    raise DamagedError(f"damaged: {name} holds NaN")
