"""Files of weights: read without trust, memory-mapped, and told from one another by their content."""

import hashlib
import json
import pickle
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from clamp3.errors import UserError
from clamp3.io.files import content_hash
from clamp3.models.releases import release_named

STORED_BUFFERS = ("position_ids", "token_type_ids")  # old library versions stored these constants
# Losses may be stored as NumPy scalars; NumPy 1 and 2 name the function that reads them differently.
_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]
_safe_globals_lock = threading.Lock()  # what PyTorch holds to be safe is one list for the whole process


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits that identify the weights in a file, or in the files of a folder.

    They are made from the checksums that PyTorch stores with the tensors, else from all bytes, never from names.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update((stored_checksums(file) or content_hash(file)).encode())
    return digest.hexdigest()[:16]


def stored_checksums(path: Path) -> str | None:
    """Size and checksum of each part of a PyTorch file; None where it has none, or is another file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if not all(part.CRC for part in parts if part.file_size):  # torch can be told not to compute them
        return None
    return " ".join(f"{part.file_size}:{part.CRC}" for part in parts)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint dict at `path`, its tensors memory-mapped: what is never used is never read.

    Raises UserError, with what the file is instead, where it is neither a PyTorch checkpoint nor .safetensors, is cut
    short, or holds code.
    """
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # a damaged file makes the readers raise errors of many kinds
        # PyTorch's own message is left out: it advises to load the file without protection against code in it.
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {_diagnose_file(path, error)}") from None


def _load_torch(path: Path) -> dict[str, Any]:
    def load() -> dict[str, Any]:
        return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)

    try:
        return load()
    except pickle.UnpicklingError:
        with _safe_globals_lock, torch.serialization.safe_globals(NUMPY_SCALARS):
            return load()


def _diagnose_file(path: Path, error: Exception) -> str:
    """Why `path` could not be read, by its size and its first bytes, and what to do."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return str(error.strerror)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(1000)
    release = release_named(path.name)
    forbidden = re.search(r"GLOBAL (\S+) was not an allowed|Trying to call (\S+)|(\S+) is not allowed", str(error))
    if not size:
        what = "it is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "it is a Git LFS pointer, which only names the file with the weights"
    elif start.lstrip().startswith(b"<"):
        what = "it is a web page"
    elif start.lstrip().startswith((b'{"', b"{\n", b"Entry not found", b"Invalid")):
        what = "it is a text, such as a server's error message"
    elif release and release.size and size < release.size and not zipfile.is_zipfile(path):
        what = f"it is cut short: {size:,} of {release.size:,} bytes"
    elif (start.startswith(b"PK") and not zipfile.is_zipfile(path)) or _is_cut_safetensors(path, start, size):
        what = f"it is cut short, at {size:,} bytes"
    elif forbidden:
        name = next(group for group in forbidden.groups() if group)
        return f"it holds Python objects other than tensors ({name}), which are refused, for they could run code"
    elif path.suffix == ".safetensors":
        what = f"it is damaged, or no .safetensors file ({str(error).strip().splitlines()[0]})"
    else:
        what = "it is cut short, damaged, or no such file at all"
    return f"{what}; delete it and download it again"


def _is_cut_safetensors(path: Path, start: bytes, size: int) -> bool:
    """Whether a .safetensors file ends before the last tensor that its header (8 bytes of length, then JSON) names."""
    header_size = int.from_bytes(start[:8], "little")
    if path.suffix != ".safetensors" or len(start) < 9 or start[8:9] != b"{":
        return False
    if 8 + header_size > size:
        return True
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(8 + header_size)[8:])
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
    return 8 + header_size + max(ends, default=0) > size


def read_weights(path: Path) -> dict[str, Tensor]:
    """The model's tensors by name, as float32, from a checkpoint (its "model" entry) or a bare state dict."""
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path} holds no model weights")
    return {name: tensor.float() for name, tensor in weights.items() if not name.endswith(STORED_BUFFERS)}
