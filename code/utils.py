"""What the scripts import: the library's classes, and builders that read config.py's knobs."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import config
from clamp3.cli import settings
from clamp3.cli.options import worker_processes
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.inputs.patchilizer import M3Patchilizer, remove_instrument_info
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.losses import ClipLoss
from clamp3.models.m3 import M3Model, M3PatchEncoder, M3TokenDecoder
from clamp3.models.pretrained import load_pretrained
from clamp3.models.releases import RELEASES, TINY, ensure_weights, find_weights, tiny_sizes
from clamp3.sizes import ModelSizes
from clamp3.training.checkpoints import epoch_path

__all__ = [
    "CLaMP3Model",
    "ClipLoss",
    "M3Model",
    "M3PatchEncoder",
    "M3Patchilizer",
    "M3TokenDecoder",
    "build_embedder",
    "configured_path",
    "configured_sizes",
    "embedder_loader",
    "extraction_options",
    "remove_instrument_info",
]


def configured_sizes() -> ModelSizes:
    """The model sizes that config.py sets."""
    return ModelSizes.from_knobs(vars(config))


def configured_path(path: str) -> Path:
    """A weights path of config.py: in the working directory if it is there, else beside config.py."""
    return settings.configured_path(vars(config), path)


def build_embedder(
    model_class: type[CLaMP3Model] | type[M3Model],
    epoch: int | None = None,
    variant: str | None = None,
    **options: Any,
) -> Embedder:
    """An Embedder over the configured weights, or those of an epoch (`..._E.pth`); `options` are Embedder's.

    Its sizes are those that the file says, as all do that training here writes; else those of config.py.
    With `variant`, over those of the release saas or c2, or of the small model tiny, whatever config.py says.
    """
    configured = config.M3_WEIGHTS_PATH if model_class is M3Model else config.CLAMP3_WEIGHTS_PATH
    path, sizes = configured_path(configured), configured_sizes()
    if variant == "tiny":
        path, sizes = TINY / ("m3.safetensors" if model_class is M3Model else "clamp3.safetensors"), tiny_sizes()
        options["mert"] = options.get("mert") or TINY / "mert"
    elif variant:
        path, sizes = configured_path(RELEASES[variant].file_name), ModelSizes()
    elif epoch is not None:
        path = configured_path(str(epoch_path(Path(configured), epoch)))
        if not path.is_file():
            raise UserError(f"no weights of epoch {epoch}: there is no {path}")
    path = ensure_weights(path, announce=partial(print, flush=True))
    found = load_pretrained(path, configured=sizes, model_class=model_class)
    return Embedder(found.model, found.sizes, weights=path, **options)


def extraction_options(args: Namespace, device: torch.device) -> dict[str, Any]:
    """Options of an Embedder, as those of `extraction_parser` ask for."""
    return {
        "device": device,
        "precision": args.precision,
        "batch_tokens": args.batch_tokens,
        "as_is": args.as_is,
        "processes": worker_processes(args),
    }


def embedder_loader(args: Namespace, device: torch.device | str | None) -> Callable[[], Embedder]:
    """What builds, once, the Embedder that the options of `add_model_options` and `add_raw_options` ask for.

    Where they ask for none, and the released weights that config.py names are not at hand, it is the small model's.
    """
    options = {"precision": args.precision, "batch_tokens": args.batch_tokens, "mert": args.mert, "device": device}
    options["processes"] = worker_processes(args)

    @cache
    def load() -> Embedder:
        variant = args.variant
        if variant is None and args.epoch is None and (release := missing_release()) and TINY.is_dir():
            print(
                f"note: the weights of {release} are not here, so this is the small model, which knows folk tunes "
                f"only; --variant {release} downloads them",
                file=sys.stderr,
            )
            variant = "tiny"
        return build_embedder(CLaMP3Model, args.epoch, variant, **options)

    return load


def missing_release() -> str | None:
    """The release whose CLaMP 3 weights config.py names, if they are not here."""
    path = config.CLAMP3_WEIGHTS_PATH
    if find_weights(configured_path(path)):
        return None
    return next((name for name, release in RELEASES.items() if release.file_name == Path(path).name), None)
