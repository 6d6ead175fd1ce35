"""Files of weights: read without trust, mapped until they are used, and told from one another by their content."""

import hashlib
import json
import os
import pickle
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, UntypedStorage, nn

from clamp3.errors import UserError
from clamp3.io.files import parse_json
from clamp3.io.workers import own_cores
from clamp3.io.wrong_files import AGAIN, kind_of_other
from clamp3.models.description import ENTRY, Description, checked
from clamp3.models.hub import file_url, url_of_cached
from clamp3.models.releases import release_named
from clamp3.models.verification import (
    DamagedError,
    Part,
    file_state,
    is_safetensors,
    is_zip,
    parts_of,
    safetensors_entries,
    safetensors_metadata,
    verified_digest,
)

STATE_ENTRY = "training"  # of a .safetensors file's metadata: what a checkpoint holds beside tensors, as JSON
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
PIECE = 2**25  # bytes that a thread reads at a time
ATTEMPTS = 3  # at a file that another takes the place of while it is read


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits that identify the weights in a file, or in the files of a folder, by their content.

    Raises UserError where a file is damaged.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digests = []
    for file in files:
        try:
            digests.append(verified_digest(file))
        except DamagedError as error:
            raise UserError(f"{file} cannot be used: {_diagnose_file(file, error)}") from None
    return _fingerprint(*digests)


def _fingerprint(*digests: str) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


class Source:
    """The file that weights were loaded from, and their `fingerprint`.

    Weights are mapped from it until they are used: what is never used is never read. Mapped tensors change with a file
    that is written in place (by cp, say), and where it has been cut short, to read them ends the process. So what is
    used gets `own` copies first, which are read from the file that was loaded, even if another has its name by now.
    """

    def __init__(self, path: Path):
        self.path = path
        self.fingerprint = self.digest = ""  # the latter as `verified_digest`: of .safetensors, the SHA-256
        self.description: Description | None = None  # what the file says of its weights
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._state = file_state(os.fstat(self._descriptor))
        self._mapped: dict[int, UntypedStorage] = {}  # by address; kept, so that nothing else is ever there
        self._offset = 0  # from places in the file to addresses in memory

    def check(self) -> None:
        """Raise UserError if the file was changed since it was loaded; another in its place is no change."""
        if file_state(os.fstat(self._descriptor)) != self._state:
            raise UserError(f"{self.path} was changed in place after it had been loaded: load it again")

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this file, as it was when it was opened."""
        try:
            return file_state(os.stat(self.path)) == self._state
        except OSError:
            return False

    def set_mapping(self, storages: Iterable[UntypedStorage], places: Iterable[int]) -> bool:
        """Note that `storages` are mapped from `places` in the file; False where they are not.

        Both are in any order, and those that belong together are found by their distances.
        """
        mapped = {storage.data_ptr(): storage for storage in storages if storage.nbytes()}
        starts = sorted(places)
        offsets = {address - place for address, place in zip(sorted(mapped), starts, strict=False)}
        if len(mapped) != len(starts) or len(offsets) != 1:
            return not mapped
        self._mapped, self._offset = mapped, offsets.pop()
        return True

    def own(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that is mapped from the file; any other tensor as it is.

        Raises UserError where the file was changed since it was loaded.
        """
        return self._owned([tensor])[0]

    def own_all(self, network: nn.Module) -> None:
        """Give `network` copies of its own of all weights that are mapped from the file. Raises UserError as `own`."""
        with torch.inference_mode(False):
            tensors = [*network.parameters(), *network.buffers()]
            for tensor, copy in zip(tensors, self._owned(tensors), strict=True):
                if copy is not tensor:
                    tensor.data = copy

    def _owned(self, tensors: list[Tensor]) -> list[Tensor]:
        """`own` of each; what they share, their copies share too."""
        addresses = [tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0 for tensor in tensors]
        copies = {
            address: torch.empty(self._mapped[address].nbytes(), dtype=torch.uint8)
            for address in dict.fromkeys(addresses)
            if address in self._mapped
        }
        self._read({address - self._offset: memoryview(copy.numpy().data) for address, copy in copies.items()})

        def owned(tensor: Tensor, address: int) -> Tensor:
            if address not in copies:
                return tensor
            like = (tensor.storage_offset(), tensor.size(), tensor.stride())
            return torch.empty(0, dtype=tensor.dtype).set_(copies[address].untyped_storage(), *like)

        return list(map(owned, tensors, addresses))

    def _read(self, buffers: dict[int, memoryview]) -> None:
        """Fill `buffers` with what is in the file from their places on."""
        pieces = [
            (buffer[first : first + PIECE], place + first)
            for place, buffer in buffers.items()
            for first in range(0, len(buffer), PIECE)
        ]

        def read(piece: memoryview, start: int) -> None:
            done = 0
            while done < len(piece) and (count := os.preadv(self._descriptor, [piece[done:]], start + done)):
                done += count

        # In threads, as much of the time goes into memory that is new to this process.
        with ThreadPoolExecutor(own_cores()) as threads:
            for _ in threads.map(read, [piece for piece, _ in pieces], [start for _, start in pieces]):
                pass
        self.check()


class Sources:
    """The files of a folder that a model's towers were loaded from, to be used as a `Source`."""

    def __init__(self, path: Path, sources: list[Source], fingerprint: str, description: Description):
        self.path, self.fingerprint, self.description = path, fingerprint, description
        self._sources = sources

    def check(self) -> None:
        """As Source's."""
        for source in self._sources:
            source.check()

    def own_all(self, network: nn.Module) -> None:
        """As Source's."""
        for source in self._sources:
            source.own_all(network)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint dict at `path`, its tensors memory-mapped: what is never used is never read.

    Raises UserError, with what the file is instead, where it is neither a PyTorch checkpoint nor .safetensors, is cut
    short or damaged, or holds code.
    """
    return _open(path)[0]


def _open(path: Path) -> tuple[dict[str, Any], Source]:
    for _ in range(ATTEMPTS):
        try:
            source = Source(path)
            named_so = path.suffix == ".safetensors" and not is_zip(path)  # earlier versions wrote others by that name
            load = _load_safetensors if named_so or is_safetensors(path) else _load_torch
            checkpoint = load(path, source)
            source.digest = verified_digest(path)
            source.fingerprint = _fingerprint(source.digest)
        except Exception as error:  # a damaged file makes the readers raise errors of many kinds
            # PyTorch's own message is left out: it advises to load the file without protection against code in it.
            raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {_diagnose_file(path, error)}") from None
        if source.is_at_its_path():
            return checkpoint, source
    raise UserError(f"{path} is being written: try again when it is whole")


def _load_safetensors(path: Path, source: Source) -> dict[str, Any]:
    """The tensors by name; those of a checkpoint under "model", beside what its metadata say."""
    tensors = load_file(path)
    places = [start for _, start, end in safetensors_entries(path).values() if end > start]
    if not source.set_mapping((tensor.untyped_storage() for tensor in tensors.values()), places):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = safetensors_metadata(path)
    if ENTRY not in metadata:
        return tensors
    return {**parse_json(metadata.get(STATE_ENTRY, "{}")), ENTRY: parse_json(metadata[ENTRY]), "model": tensors}


def _load_torch(path: Path, source: Source) -> dict[str, Any]:
    if not is_zip(path):  # as torch wrote before 1.6
        return _torch_load(path, mmap=False)[0]
    parts = parts_of(path)
    if any(part.is_compressed for part in parts):
        raise DamagedError("a compressed archive, which PyTorch cannot read")
    if path.suffix == ".safetensors":  # of which PyTorch, given the name, believes that it is what it says
        with open(path, "rb") as file:
            return _torch_load(file, mmap=False)[0]
    checkpoint, storages = _torch_load(path, mmap=True)
    places = [part.start for part in parts if "/data/" in part.name and part.size]
    if _byte_order(path, parts) == sys.byteorder and source.set_mapping(storages, places):
        return checkpoint
    return _torch_load(path, mmap=False)[0]


def _byte_order(path: Path, parts: list[Part]) -> str:
    """That of the numbers in a PyTorch file; early versions did not note it."""
    for part in parts:
        if part.name.endswith("/byteorder"):
            with open(path, "rb") as file:
                file.seek(part.start)
                return file.read(part.size).decode("ascii", "replace")
    return "little"


def _torch_load(path: Path | BinaryIO, mmap: bool) -> tuple[dict[str, Any], list[UntypedStorage]]:
    """What torch.load makes of a file, and all storages of its tensors."""
    storages: list[UntypedStorage] = []

    def on_cpu(storage: Any, _location: str) -> Any:
        storages.append(storage)
        return storage

    try:
        return torch.load(path, map_location=on_cpu, mmap=mmap, weights_only=True), storages
    except pickle.UnpicklingError:
        storages.clear()
        if not isinstance(path, Path):
            path.seek(0)
        with _safe_globals_lock, torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location=on_cpu, mmap=mmap, weights_only=True), storages


def _diagnose_file(path: Path, error: Exception) -> str:
    """Why `path` could not be read, by its size and its first bytes, and what to do."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return str(error.strerror)
    if isinstance(error, DamagedError):
        return _with_advice(path, f"it is {error}")
    try:
        size, kind = path.stat().st_size, kind_of_other(path)
    except OSError as unreadable:
        return str(unreadable.strerror)
    release = release_named(path.name)
    forbidden = re.search(r"GLOBAL (\S+) was not an allowed|Trying to call (\S+)|(\S+) is not allowed", str(error))
    if kind:
        what = f"it is {kind}"
    elif release and release.size and size < release.size and not is_zip(path):
        what = f"it is cut short: {size:,} of {release.size:,} bytes"
    elif (_starts_as_zip(path) and not is_zip(path)) or _is_cut_safetensors(path, size):
        what = f"it is cut short, at {size:,} bytes"
    elif forbidden:
        name = next(group for group in forbidden.groups() if group)
        return f"it holds Python objects other than tensors ({name}), which are refused, for they could run code"
    elif isinstance(error, SafetensorError):
        what = f"it is damaged, or no .safetensors file ({str(error).strip().splitlines()[0]})"
    elif path.suffix == ".safetensors":
        what = "it is damaged, or no .safetensors file"
    else:
        what = "it is cut short, damaged, or no such file at all"
    return _with_advice(path, what)


def _with_advice(path: Path, what: str) -> str:
    """What to do about a file, and where to get it, if that is known."""
    release, blob = release_named(path.name), Path(os.path.realpath(path))
    url = file_url(release.repository, release.file_name) if release else url_of_cached(path)
    leads = f" (it leads to {blob}: delete that too)" if path.is_symlink() else ""
    return f"{what}; {AGAIN}{leads}" + (f"\n  get:  {url}" if url else "")


def _starts_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _is_cut_safetensors(path: Path, size: int) -> bool:
    """Whether a .safetensors file ends before its header does, or before the last tensor that its header names."""
    if path.suffix != ".safetensors":
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if len(start) == 9 and start[8:] == b"{" and 8 + int.from_bytes(start[:8], "little") > size:
            return True
        return max((end for _, _, end in safetensors_entries(path).values()), default=0) > size
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


class Weights(dict[str, Tensor]):
    """A model's tensors by name, and the file that they are from."""

    source: Source | Sources


def read_weights(path: Path, mapped: bool = True) -> Weights:
    """The model's tensors by name, as float32, from a checkpoint (its "model" entry) or a bare state dict.

    Where they are float32 in the file, they are `mapped` from it; else they are copies. Raises UserError as
    `read_checkpoint`.
    """
    checkpoint, source = _open(path)
    stored = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(stored, dict) or not stored or not all(isinstance(w, Tensor) for w in stored.values()):
        raise UserError(f"{path} holds no model weights")
    weights = Weights()
    for name, tensor in stored.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} cannot be used: {name} is larger than what the file holds of it")
        if not name.endswith(STORED_BUFFERS):
            weights[name] = tensor if mapped and tensor.dtype == torch.float32 else source.own(tensor).float()
    weights.source = source
    if "model" in checkpoint and ENTRY in checkpoint:
        source.description = checked(checkpoint[ENTRY], path)
    return weights


def safetensors_of(checkpoint: dict[str, Any]) -> bytes:
    """A .safetensors file of a checkpoint's weights; what it says of them, and of a run, is in the metadata.

    Only what JSON can hold is kept of a run: so neither optimizer nor random states.
    """
    state = {name: part for name, part in checkpoint.items() if name not in ("model", ENTRY) and _is_plain(part)}
    metadata = {"format": "pt", ENTRY: json.dumps(checkpoint[ENTRY]), STATE_ENTRY: json.dumps(state)}
    return save(unshared(checkpoint["model"]), metadata)


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` on the CPU, each in memory of its own, as .safetensors files want it: weights may be tied."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return found


def _is_plain(value: Any) -> bool:
    """Whether JSON gives `value` back as it is."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
