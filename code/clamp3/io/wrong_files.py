"""What a downloaded file is that is not what its name says: told by its first bytes and its size."""

import os
import re
import zipfile
from pathlib import Path

from clamp3.io.files import matching_files, parse_json

AGAIN = "delete it and download it again"
START = 1000  # bytes that are looked at
LFS_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)
TAR_MARK, TAR_PLACE = b"ustar", 257
SIGNATURES = {
    b"\x1f\x8b": "gzip-compressed data",
    b"BZh": "bzip2-compressed data",
    b"\xfd7zXZ\x00": "xz-compressed data",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
}


def kind_of_other(path: Path) -> str | None:
    """What a file that should hold weights is instead, as a noun; None where its start does not tell.

    Raises OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(START)
    if not size:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        whole = LFS_SIZE.search(start)
        of_size = f" of {int(whole[1]):,} bytes" if whole else ""
        return f"a Git LFS pointer, which only names the file{of_size}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "an XML text, such as a server's error message" if text[:5].lower() == b"<?xml" else "a web page"
    for signature, name in SIGNATURES.items():
        if start.startswith(signature):
            return name
    if start[TAR_PLACE:].startswith(TAR_MARK):
        return "a tar archive"
    if start.startswith(b"PK"):
        return _other_archive(path)
    return "a text, such as a server's error message" if _is_text(start) else None


def _other_archive(path: Path) -> str | None:
    """What a ZIP archive is, if it is whole and not one of PyTorch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, UnicodeError):
        return None
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None
    return f"a ZIP archive of other files ({', '.join(names[:3]) or 'none'})"


def _is_text(start: bytes) -> bool:
    """Whether the start of a file is UTF-8 text, of which a character may be cut at the end."""
    try:
        return all(character.isprintable() or character in "\t\r\n" for character in start.decode())
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == START and _is_text(start[: error.start])


def problem_of_text_file(path: Path) -> str | None:
    """What is wrong with a file that should hold text, in JSON if it is named so; None where nothing is seen."""
    try:
        kind = kind_of_other(path)
        if kind and not kind.startswith("a text"):
            return f"it is {kind}; {AGAIN}"
        if path.suffix == ".json":
            parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return f"it is no whole JSON file ({error}); {AGAIN}"
    return None


def problem_in(folder: Path, patterns: tuple[str, ...]) -> str | None:
    """What is wrong with the first file of a folder, among those that match, that is not what its name says."""
    for path in matching_files(folder, patterns):
        if problem := problem_of_text_file(path):
            return f"{path} cannot be used: {problem}"
    return None
