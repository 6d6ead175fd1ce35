"""What weights say of themselves, so that a file of them is all that it takes to use them.

A description is an entry of a checkpoint (in a .safetensors file, of its metadata), of plain types alone, so that what
does not know it reads the file as before:

    format      1
    kind        "clamp3" or "m3"
    sizes       as in config.py, by the names there
    tokenizer   name, sha256, and files: the text model's configuration and tokenizer, packed (not those of XLM-R base,
                which the library holds)
    knobs       config.py's at the time, but the paths of weights and logs and the key of wandb
    versions    of clamp3, torch and transformers
    stage       modality, and which parts were frozen
    data        of training and evaluation: how many items, and a fingerprint
    audio_encoder   what listens to sound for them, if that is not MERT-v1-95M: "tiny" or a folder
"""

import base64
import hashlib
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import clamp3
from clamp3.errors import UserError
from clamp3.inputs.tokenizer import tokenizer_files
from clamp3.io.files import user_cache, write_whole
from clamp3.models.text import text_config
from clamp3.sizes import XLM_R_BASE, ModelSizes

Description = dict[str, Any]

ENTRY = "clamp3"  # of a checkpoint, and of the metadata of a .safetensors file
FORMAT = 1
CLAMP3, M3 = "clamp3", "m3"  # kinds
AUDIO_ENCODER = "audio_encoder"  # an entry
CONFIG_FILE = "config.json"
# Of `tokenizer_files(XLM_R_BASE)`, by `content_of`.
XLM_R_SHA256 = "d85a5248e31e564a27df8420d76b6dcbc83b0c1df092bcace9d096761e9fc4a4"
PRIVATE = ("WANDB_KEY", "_WEIGHTS_PATH", "_LOGS_PATH")  # ends of the names of knobs that are not kept
LARGEST_FILE = 200_000_000  # bytes that a tokenizer's file may unpack to
_unpacked: list[tempfile.TemporaryDirectory] = []  # where the user's cache cannot be written; removed at exit


def describe(kind: str, sizes: ModelSizes, knobs: Mapping[str, Any] | None = None, **others: Any) -> Description:
    """The description of weights of a `kind`; `others` are stage and data. Raises UserError as `load_tokenizer`."""
    kept = {
        name: value
        for name, value in (knobs or {}).items()
        if name.isupper() and not name.endswith(PRIVATE) and isinstance(value, bool | int | float | str | list)
    }
    described: Description = {
        "format": FORMAT,
        "kind": kind,
        "sizes": sizes.to_knobs(),
        "knobs": kept,
        "versions": versions(),
    }
    if kind == CLAMP3:
        described["tokenizer"] = describe_tokenizer(sizes.text_model_name)
    return {**described, **others}


def versions() -> dict[str, str]:
    """Of this library, and of those that compute."""
    found = {"clamp3": clamp3.__version__, "torch": torch.__version__, "transformers": version("transformers")}
    return {name: str(one) for name, one in found.items()}  # torch's is no plain string


def describe_tokenizer(name: str) -> dict[str, Any]:
    """Name, content hash and packed files of a text model's tokenizer and configuration."""
    if name == XLM_R_BASE:
        return {"name": name, "sha256": XLM_R_SHA256}
    files = text_files(name)
    packed = {file: base64.b64encode(zlib.compress(content)).decode() for file, content in files.items()}
    return {"name": name, "sha256": content_of(files), "files": packed}


def text_files(name: str) -> dict[str, bytes]:
    """The files of a text model's tokenizer and its configuration, all that it takes but the weights."""
    files = tokenizer_files(name)
    if CONFIG_FILE not in files:
        files[CONFIG_FILE] = text_config(name).to_json_string().encode()
    return dict(sorted(files.items()))


def content_of(files: Mapping[str, bytes]) -> str:
    """What tells files from others: the SHA-256 over their names and the SHA-256 of each."""
    lines = (f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---------- read ----------


def checked(description: Any, path: Path) -> Description:
    """`description`, found in the file `path`. Raises UserError where it is none that this version can read."""
    try:
        written = int(description["format"])
        sizes = ModelSizes()
        for name, size in description["sizes"].items():
            expected = type(getattr(sizes, name.lower(), size))
            if not isinstance(size, expected):
                raise TypeError(f"{name} is {size!r}")
        if description["kind"] not in (CLAMP3, M3):
            raise ValueError(f"there is no kind {description['kind']!r}")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: what it says of its weights cannot be read ({error!r})") from None
    if written > FORMAT:
        raise UserError(f"{path} was written by a later version of clamp3: update this one")
    return description


def sizes_of(description: Description, path: Path) -> ModelSizes:
    """The sizes of the described weights in `path`; its text model is a folder, or one that the library knows.

    Raises UserError where the text model that it describes cannot be used.
    """
    sizes = ModelSizes.from_knobs(description["sizes"])
    if not (tokenizer := description.get("tokenizer")):
        return sizes
    try:
        return replace(sizes, text_model_name=_text_model_of(tokenizer))
    except (TypeError, KeyError, ValueError, AttributeError, zlib.error) as error:
        raise UserError(f"{path}: the tokenizer in it cannot be used: {error}") from None


def _text_model_of(tokenizer: dict[str, Any]) -> str:
    """The name of a described text model if it still is what it was, else a folder with the files that it holds."""
    name, files = tokenizer["name"], tokenizer.get("files")
    if not files:
        if name == XLM_R_BASE and tokenizer["sha256"] != XLM_R_SHA256:
            raise ValueError(f"it is another one of {name} than this version has")
        return name
    if Path(name).is_dir() and content_of(text_files(name)) == tokenizer["sha256"]:
        return name
    contents = {file: _unpack(packed) for file, packed in files.items()}
    if any(Path(file).name != file for file in contents) or content_of(contents) != tokenizer["sha256"]:
        raise ValueError("it is damaged")
    return str(_folder_with(contents, tokenizer["sha256"]))


def _unpack(packed: str) -> bytes:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(packed), LARGEST_FILE)
    if not unpacking.eof:
        raise ValueError("it is cut short, or too large")
    return content


def _folder_with(files: Mapping[str, bytes], sha256: str) -> Path:
    """A folder that holds `files`: one in the user's cache, or where that cannot be written, one for this process."""
    folder = user_cache() / "text_models" / sha256[:32]
    if _holds(folder, files):
        return folder
    try:
        _write_into(folder, files)
    except OSError:
        _unpacked.append(tempfile.TemporaryDirectory(prefix="clamp3_text_model_"))
        folder = Path(_unpacked[-1].name)
        _write_into(folder, files)
    return folder


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def _write_into(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_whole(folder / name, content)
