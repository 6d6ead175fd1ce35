"""The released weights, and the small model of the repository: what they are called and where they are found."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from clamp3.errors import UserError
from clamp3.io.files import user_cache
from clamp3.models.hub import cached_file, download_file, file_url, is_offline
from clamp3.sizes import ModelSizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """A released weights file on the Hugging Face hub."""

    repository: str
    file_name: str
    size: int | None = None  # in bytes; None where it is not known
    sha256: str | None = None


CLAMP3_FILE = (
    "weights_clamp3_{}_h_size_768_t_model_FacebookAI_xlm-roberta-base_t_length_128"
    "_a_size_768_a_layers_12_a_length_128_s_size_768_s_layers_12_p_size_64_p_length_512.pth"
)
RELEASES = {
    "saas": Release(
        "sander-wood/clamp3",
        CLAMP3_FILE.format("saas"),
        size=2_571_027_658,
        sha256="5033f868e3977be3945ee416b5a1718d5589a173c7ba8982231d8c94a6441d80",
    ),
    "c2": Release("sander-wood/clamp3", CLAMP3_FILE.format("c2")),
    "m3": Release(
        "sander-wood/clamp2",
        "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth",
    ),
}
# The small model that comes with the code: clamp3.safetensors, m3.safetensors, config.json, and folders text and mert.
TINY = Path(str(files("clamp3") / "tiny"))
# What config.py calls the released M3 weights: the same facts in another order.
M3_CONFIGURED_NAME = (
    "weights_m3_h_size_768_t_layers_3_p_layers_12_p_size_64_p_length_512_lr_0.0001_batch_16_mask_0.45.pth"
)


def is_name(weights: str | Path) -> bool:
    """Whether `weights` names a release or the small model, whatever files or folders are called so."""
    return str(weights) in (*RELEASES, "tiny")


def release_named(file_name: str) -> Release | None:
    """The release whose file is called `file_name`, if there is one."""
    by_name = {release.file_name: release for release in RELEASES.values()}
    return by_name.get(file_name, RELEASES["m3"] if file_name == M3_CONFIGURED_NAME else None)


def tiny_sizes() -> ModelSizes:
    """The sizes of the small model in `TINY`."""
    knobs = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    return ModelSizes.from_knobs({**knobs, "TEXT_MODEL_NAME": str(TINY / "text")})


def find_in_folder(path: Path) -> Path | None:
    """`path`, or the released file that it stands for beside it under its own name; None where neither is there."""
    release = release_named(path.name)
    candidates = [path, path.with_name(release.file_name)] if release else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find_weights(path: Path) -> Path | None:
    """What `find_in_folder` finds; else the release of that name in the hub's cache. Needs no network.

    ~/.cache/clamp3, where earlier versions downloaded to, is searched too.
    """
    found, release = find_in_folder(path), release_named(path.name)
    if found or not release:
        return found
    former = user_cache() / release.file_name
    return cached_file(release.repository, release.file_name) or (former if former.is_file() else None)


def ensure_weights(path: Path, announce: Callable[[str], None] = logger.info) -> Path:
    """What `find_weights` finds; else the released file that `path` names, downloaded into the hub's cache.

    `announce` is called before a download. Raises UserError where there is no such release or the download fails.
    """
    found = find_weights(path)
    if found is not None:
        return found
    release = release_named(path.name)
    if release is None:
        raise UserError(
            f"no weights at {path}, and no released file has that name: put the file there, or set the knobs in "
            "config.py (or CLAMP3_CONFIG) to those it was trained with, from which its name follows"
        )
    try:
        if is_offline():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        announce(f"downloading {release.file_name} into the Hugging Face cache")
        return download_file(release.repository, release.file_name, release.size, release.sha256)
    except Exception as error:  # the hub's client raises many kinds; none is the user's to read as a traceback
        others = [name for name in ("saas", "c2") if path.with_name(RELEASES[name].file_name).is_file()]
        there = f"\n  note: the file of the variant {others[0]} is there: set config.py to it" if others else ""
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(
            f"no weights at {path}, and the download failed ({type(error).__name__}: {reason}).\n"
            f"  get:  {file_url(release.repository, release.file_name)}\n  put:  {path}{there}"
        ) from error
