"""What the scripts import: the library's classes, and builders that read config.py's knobs."""

from pathlib import Path
from typing import Any

import config
from clamp3.cli import embedders, settings
from clamp3.cli.embedders import embedder_loader, extraction_options
from clamp3.features.embedder import Embedder
from clamp3.inputs.patchilizer import M3Patchilizer, remove_instrument_info
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.losses import ClipLoss
from clamp3.models.m3 import M3Model, M3PatchEncoder, M3TokenDecoder
from clamp3.sizes import ModelSizes

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
    weights: Path | None = None,
    **options: Any,
) -> Embedder:
    """An Embedder over the configured weights, or those of an epoch (`..._E.pth`); `options` are Embedder's.

    Its sizes are those that the file says, as all do that training here writes; else those of config.py. With
    `variant`, over those of the release saas or c2, or of the small model tiny, whatever config.py says; with
    `weights`, over those in a file or a folder.
    """
    return embedders.build_embedder(model_class, vars(config), epoch, variant, weights, **options)
