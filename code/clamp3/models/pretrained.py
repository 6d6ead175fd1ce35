"""A file of weights -> a model, with all that it takes to use it."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clamp3.errors import UserError
from clamp3.inputs.patchilizer import VOCAB_SIZE
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import sizes_of
from clamp3.models.m3 import M3Model
from clamp3.models.weights import is_m3, model_with, read_weights
from clamp3.sizes import ModelSizes

POSITIONS = "embeddings.position_embeddings.weight"
XLM_R_SHAPES = {"word_embeddings": (250002, 768), "position_embeddings": (514, 768)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model with weights, in evaluation mode."""

    model: CLaMP3Model | M3Model
    sizes: ModelSizes
    path: Path


def load_pretrained(
    path: Path,
    sizes: ModelSizes | None = None,
    configured: ModelSizes | None = None,
    model_class: type[CLaMP3Model] | type[M3Model] | None = None,
) -> Pretrained:
    """The model at `path`, as `model_with` builds it.

    Its sizes are `sizes`, else those that the file says, else the `configured` ones, else what its tensors' shapes
    tell. Raises UserError where they do not fit, or cannot be told.
    """
    weights = read_weights(path)
    if sizes is None and weights.source.description:
        sizes = sizes_of(weights.source.description, path)
        if configured:
            _tell_differences(path, sizes, configured)
    sizes = sizes or configured or inferred_sizes(weights, path)
    return Pretrained(model_with(weights, sizes, path, model_class), sizes, path)


def _tell_differences(path: Path, sizes: ModelSizes, configured: ModelSizes) -> None:
    others = configured.to_knobs()
    differing = [
        f"{name} {size} (not {others[name]})"
        for name, size in sizes.to_knobs().items()
        if size != others[name] and name != "TEXT_MODEL_NAME"
    ]
    if differing:
        logger.info("sizes are those that %s says, not config.py's: %s", path, ", ".join(differing))


def inferred_sizes(weights: Mapping[str, Tensor], path: Path) -> ModelSizes:
    """The sizes that the shapes of a model's tensors tell; what is missing is as in the released models.

    How long a text may be is taken from the file's name, as config.py makes it; else it is as in the released models,
    which is logged where others are not. Raises UserError where the text model is not XLM-R base.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}

    def size(field: str, name: str, axis: int) -> dict[str, int]:
        return {field: shapes[name][axis]} if len(shapes.get(name, ())) > axis else {}

    def layers(field: str, prefix: str) -> dict[str, int]:
        numbers = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
        return {field: len(numbers)} if numbers else {}

    symbolic = "encoder." if is_m3(weights) else "symbolic_model."
    found: dict[str, Any] = {
        **size("m3_hidden_size", f"{symbolic}patch_embedding.weight", 0),
        **size("patch_size", f"{symbolic}patch_embedding.weight", 1),
        **layers("patch_num_layers", f"{symbolic}base.encoder.layer."),
        **size("patch_length", f"{symbolic}base.{POSITIONS}", 0),
        **layers("token_num_layers", "decoder.base.transformer.h."),
        **size("audio_hidden_size", f"audio_model.{POSITIONS}", 1),
        **layers("audio_num_layers", "audio_model.encoder.layer."),
        **size("max_audio_length", f"audio_model.{POSITIONS}", 0),
        **size("clamp3_hidden_size", "text_proj.weight", 0),
    }
    if "patch_size" in found:
        found["patch_size"] //= VOCAB_SIZE
    sizes = ModelSizes(**found)
    if is_m3(weights):
        return sizes
    for table, shape in XLM_R_SHAPES.items():
        if shapes.get(f"text_model.embeddings.{table}.weight", shape) != shape:
            raise UserError(
                f"{path} does not say what its text model is, and that is not {sizes.text_model_name}: give the sizes "
                "(ModelSizes with text_model_name), or in config.py those that it was made with"
            )
    if named := re.search(r"_t_length_(\d+)_", path.name):
        return replace(sizes, max_text_length=int(named[1]))
    if sizes != ModelSizes():
        logger.info("%s does not say how long a text may be: %d tokens are taken", path, sizes.max_text_length)
    return sizes
