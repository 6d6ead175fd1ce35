"""A model -> a folder with a file for each tower, and all that it takes to use them."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from clamp3.distributed import PRECISIONS, checked_precision
from clamp3.errors import UserError
from clamp3.io.files import content_hash, write_whole
from clamp3.modalities import AUDIO
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import (
    CLAMP3,
    CONFIG_FILE,
    FORMAT,
    M3,
    XLM_R_SHA256,
    Description,
    content_of,
    text_files,
    versions,
)
from clamp3.models.m3 import M3Model
from clamp3.models.pretrained import MERT_FOLDER, TEXT_FOLDER, find_pretrained, prefixes, read_config
from clamp3.models.weight_files import unshared
from clamp3.models.weights import source_of
from clamp3.sizes import XLM_R_BASE, ModelSizes

CARD_FILE = "README.md"
# Of a description, what is published with weights: not the knobs, which name folders of the machine.
PUBLISHED = ("stage", "data")
CARD = """---
library_name: clamp3
tags: [music, clamp3, {tags}]
---
# CLaMP 3: {towers}

Text, sheet music, MIDI and audio in one space, by [CLaMP 3](https://arxiv.org/abs/2502.10362). This folder holds
{holding}, in {precision}. It was written by clamp3 {version}.

```python
from clamp3 import Embedder

embedder = Embedder.from_pretrained("{name}")
```

| file | tower | tensors | MB |
|---|---|---|---|
{rows}

`config.json` holds the sizes, and the SHA-256 of each file. Fingerprint of the weights: `{fingerprint}`.
{made}"""


@dataclass(frozen=True)
class SavedTower:
    """A file of a tower, as it is on disk."""

    tower: str
    file: str
    tensors: int
    size: int  # in bytes
    sha256: str
    largest_error: float  # of a weight, by rounding


def save_model(
    model: CLaMP3Model | M3Model,
    sizes: ModelSizes,
    folder: Path,
    precision: str = "fp32",
    towers: Collection[str] | None = None,
    fingerprint: str | None = None,
    mert: Path | None = None,
    name: str | None = None,
) -> list[SavedTower]:
    """Write the `towers` of a model, or all that it has, to `folder`: a file each, config.json, text model and card.

    Each file is read again, and all tensors compared. `mert` is the folder of what listens to sound for it, which is
    copied; `name` is the model's in the card, for the folder's. The `fingerprint` is kept where no weight was rounded,
    so that features go on comparing. Raises UserError where the folder holds other things or cannot be written.
    """
    kind, there = (M3 if isinstance(model, M3Model) else CLAMP3), list(model.towers)
    chosen = [tower for tower in there if towers is None or tower in towers]
    if missing := set(towers or ()) - set(there):
        raise UserError(f"no {', '.join(sorted(missing))} tower in these weights, which have {', '.join(there)}")
    checked_precision(precision)
    _refuse_others(folder)
    source = source_of(model)
    if source:
        source.check()
    try:
        weights = model.state_dict()
        saved = [_save_tower(folder, tower, weights, prefixes(kind == M3, tower), precision) for tower in chosen]
        if source:
            source.check()
        config = _config(kind, sizes, precision, saved, fingerprint, source.description if source else None)
        if kind == CLAMP3:
            config["tokenizer"] = _save_text_model(folder / TEXT_FOLDER, sizes.text_model_name)
        if mert is not None and AUDIO.name in chosen:
            config["mert"] = _copy_mert(mert, folder / MERT_FOLDER)
        write_whole(folder / CARD_FILE, _card(name or folder.name, config, saved).encode())
        write_whole(folder / CONFIG_FILE, json.dumps(config, indent=2).encode() + b"\n")  # last: now it is whole
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    return saved


def convert_weights(
    weights: str | Path, folder: Path, precision: str = "fp32", towers: Collection[str] | None = None
) -> list[SavedTower]:
    """`save_model` of a release, a checkpoint or a folder, without the state of an optimizer. UserError as that."""
    found = find_pretrained(weights, towers=towers)
    source = source_of(found.model)
    fingerprint = source.fingerprint if source else None
    return save_model(found.model, found.sizes, folder, precision, towers, fingerprint, found.mert)


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            config = read_config(folder / CONFIG_FILE)
        except UserError:
            raise UserError(f"{folder} holds other things than a model: give an empty or new folder") from None
        if "fingerprint" not in config:  # the small model's
            raise UserError(f"{folder} is not a folder that this has written: give another one")


def _save_tower(
    folder: Path, tower: str, weights: Mapping[str, Tensor], starts: tuple[str, ...], precision: str
) -> SavedTower:
    """Write a tower's file, and compare each tensor with what is read of it. Raises UserError where one differs."""
    dtype, path = PRECISIONS[precision], folder / f"{tower}.safetensors"
    tensors = unshared({name: weight.to(dtype) for name, weight in weights.items() if name.startswith(starts)})
    write_whole(path, save(tensors, {"format": "pt"}))
    read, largest = load_file(path), 0.0
    if read.keys() != tensors.keys():
        raise UserError(f"{path}: not all tensors are there as they were written: the disk is faulty")
    for name, tensor in tensors.items():
        if not torch.equal(read[name], tensor) or not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is not what was written, or has no finite value in {precision}")
        if tensor.numel() and dtype != torch.float32:
            largest = max(largest, float((tensor.float() - weights[name].detach().cpu()).abs().max()))
    return SavedTower(tower, path.name, len(tensors), path.stat().st_size, content_hash(path), largest)


def _config(
    kind: str,
    sizes: ModelSizes,
    precision: str,
    saved: list[SavedTower],
    fingerprint: str | None,
    before: Description | None,
) -> dict[str, Any]:
    knobs = {name: size for name, size in sizes.to_knobs().items() if name != "TEXT_MODEL_NAME"}
    if fingerprint is None:
        fingerprint = _digest(*(tower.sha256 for tower in saved))
    elif any(tower.largest_error for tower in saved):
        fingerprint = _digest(fingerprint, precision)
    return {
        "format": FORMAT,
        "kind": kind,
        "sizes": knobs,
        "precision": precision,
        "fingerprint": fingerprint,
        "towers": {tower.tower: {"file": tower.file, "sha256": tower.sha256} for tower in saved},
        "versions": versions(),
        **{name: before[name] for name in PUBLISHED if before and name in before},
    }


def _digest(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _save_text_model(folder: Path, name: str) -> dict[str, Any]:
    """Write the files of a text model but its weights; returns what config.json says of them."""
    files = text_files(name)
    for file, content in files.items():
        write_whole(folder / file, content)
    is_local = Path(name).is_dir()
    sha256 = XLM_R_SHA256 if name == XLM_R_BASE and not is_local else content_of(files)
    return {"name": Path(name).name if is_local else name, "sha256": sha256, "files": [*files]}


def _copy_mert(mert: Path, folder: Path) -> list[str]:
    names = [path.name for path in sorted(mert.iterdir()) if path.suffix in (".json", ".safetensors", ".bin")]
    for name in names:
        write_whole(folder / name, (mert / name).read_bytes())
    return names


def _card(name: str, config: Mapping[str, Any], saved: list[SavedTower]) -> str:
    towers = [tower.tower for tower in saved]
    holding = (
        "M3, the symbolic encoder, and its decoder" if config["kind"] == M3 else f"the towers {', '.join(towers)}"
    )
    stage, data = config.get("stage"), config.get("data")
    trained = stage and f"Trained on {data['training']['items'] if data else 'unknown'} items"
    return CARD.format(
        name=name,
        tags=", ".join(towers),
        towers=", ".join(towers),
        holding=holding,
        precision=config["precision"],
        version=config["versions"]["clamp3"],
        rows="\n".join(f"| `{one.file}` | {one.tower} | {one.tensors} | {one.size / 1e6:.1f} |" for one in saved),
        fingerprint=config["fingerprint"],
        made=f"\n{trained}; last stage: {stage['modality'] or 'M3'}.\n" if stage else "",
    )
