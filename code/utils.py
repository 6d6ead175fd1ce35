"""What the scripts import: the library's classes, and builders that read config.py's knobs."""

from pathlib import Path

import config
from clamp3.checkpoints import build_model, ensure_weights, find_weights
from clamp3.embedding import Embedder
from clamp3.errors import UserError
from clamp3.losses import ClipLoss
from clamp3.models import CLaMP3Model, M3Model, M3PatchEncoder, M3TokenDecoder, ModelSizes
from clamp3.patchilizer import M3Patchilizer, remove_instrument_info

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
    "remove_instrument_info",
]


def configured_sizes() -> ModelSizes:
    """The model sizes that config.py sets."""
    return ModelSizes.from_knobs(vars(config))


def configured_path(path: str) -> Path:
    """A weights path of config.py: in the working directory if it is there, else beside config.py."""
    return Path(path) if find_weights(Path(path)) else Path(config.__file__).parent / path


def build_embedder(model_class: type[CLaMP3Model] | type[M3Model], epoch: int | None = None, **options) -> Embedder:
    """An Embedder over the configured weights, or those of an epoch (`..._E.pth`); `options` are Embedder's."""
    configured = config.M3_WEIGHTS_PATH if model_class is M3Model else config.CLAMP3_WEIGHTS_PATH
    path = configured_path(configured)
    if epoch is not None:
        path = configured_path(f"{configured.removesuffix('.pth')}_{epoch}.pth")
        if not path.is_file():
            raise UserError(f"no weights of epoch {epoch}: there is no {path}")
    sizes = configured_sizes()
    return Embedder(build_model(model_class, sizes, ensure_weights(path)), sizes, **options)
