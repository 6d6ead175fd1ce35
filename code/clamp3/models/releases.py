import json
import os
from dataclasses import dataclass
from pathlib import Path

from clamp3.errors import UserError
from clamp3.io.files import content_hash
from clamp3.sizes import ModelSizes


@dataclass(frozen=True)
class Release:
    """A released weights file on the Hugging Face hub."""

    repository: str
    file_name: str


CLAMP3_FILE = (
    "weights_clamp3_{}_h_size_768_t_model_FacebookAI_xlm-roberta-base_t_length_128"
    "_a_size_768_a_layers_12_a_length_128_s_size_768_s_layers_12_p_size_64_p_length_512.pth"
)
RELEASES = {
    "saas": Release("sander-wood/clamp3", CLAMP3_FILE.format("saas")),
    "c2": Release("sander-wood/clamp3", CLAMP3_FILE.format("c2")),
    "m3": Release(
        "sander-wood/clamp2",
        "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth",
    ),
}
# The small model that comes with the code: clamp3.safetensors, m3.safetensors, config.json, and folders text and mert.
TINY = Path(__file__).resolve().parents[3] / "weights" / "tiny"
# What config.py calls the released M3 weights: the same facts in another order.
M3_CONFIGURED_NAME = (
    "weights_m3_h_size_768_t_layers_3_p_layers_12_p_size_64_p_length_512_lr_0.0001_batch_16_mask_0.45.pth"
)


def release_named(file_name: str) -> Release | None:
    """The release whose file is called `file_name`, if there is one."""
    by_name = {release.file_name: release for release in RELEASES.values()}
    return by_name.get(file_name, RELEASES["m3"] if file_name == M3_CONFIGURED_NAME else None)


def tiny_sizes() -> ModelSizes:
    """The sizes of the small model in `TINY`. Raises UserError where it is not there."""
    path = TINY / "config.json"
    if not path.is_file():
        raise UserError(f"no small model in {TINY}: it comes with the repository, not by pip")
    knobs = json.loads(path.read_text(encoding="utf-8"))
    return ModelSizes.from_knobs({**knobs, "TEXT_MODEL_NAME": str(TINY / "text")})


def find_weights(path: Path) -> Path | None:
    """`path`, or the released file that it stands for under its own name, or None where neither is there."""
    release = release_named(path.name)
    candidates = [path, path.with_name(release.file_name)] if release else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def ensure_weights(path: Path) -> Path:
    """What `find_weights` finds; else `path`, downloaded.

    One process of a machine downloads. Raises UserError where there is no such release or the download fails.
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
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # else another process has just downloaded it
                download(release, path)
    except OSError as error:
        raise UserError(f"no weights at {path}, and nothing can be written there: {error}") from error
    return path


def download(release: Release, path: Path) -> None:
    """Download `release` to `path`: resumed where an earlier try stopped, verified, then moved into place."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(release.repository, release.file_name)
    try:
        if HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        metadata = get_hf_file_metadata(url)
        partial = path.with_name(f"{path.name}.{metadata.etag[:16]}.incomplete")
        print(f"downloading {release.file_name} to {path.parent}", flush=True)
        with open(partial, "ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=metadata.size,
                displayed_filename=path.name[:40],
            )
        verify(partial, metadata.etag)
    except Exception as error:  # the hub's client raises many kinds; none is the user's to read as a traceback
        others = [name for name in ("saas", "c2") if path.with_name(RELEASES[name].file_name).is_file()]
        there = f"\n  note: the file of the variant {others[0]} is there: set config.py to it" if others else ""
        raise UserError(
            f"no weights at {path}, and the download failed ({type(error).__name__}: {error}).\n"
            f"  get:  {url}\n  put:  {path}{there}"
        ) from error
    os.replace(partial, path)


def verify(path: Path, etag: str) -> None:
    """Where `etag` is a SHA-256, as for all large files, and `path` has another: remove it and raise OSError."""
    if len(etag) != 64:
        return
    if content_hash(path) != etag:
        path.unlink()
        raise OSError("the downloaded file is damaged (its SHA-256 differs) and was removed; try again")
