"""Weights into models: built around them without initialisation, loaded strictly, and where training starts from."""

import weakref
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from clamp3.errors import UserError
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.models.meta import ParametersOnMeta
from clamp3.models.weight_files import (
    STORED_BUFFERS,
    Source,
    Sources,
    Weights,
    fingerprint,
    read_checkpoint,
    read_weights,
)
from clamp3.sizes import ModelSizes

__all__ = [
    "build_model",
    "build_with_weights",
    "check_weights",
    "fingerprint",
    "is_m3",
    "load_weights",
    "model_with",
    "read_checkpoint",
    "read_weights",
    "source_of",
    "start_from_m3",
    "start_from_text_model",
]

SHOWN_NAMES = 5
Network = TypeVar("Network", bound=nn.Module)
_sources: "weakref.WeakKeyDictionary[nn.Module, Source | Sources]" = weakref.WeakKeyDictionary()


def build_with_weights(
    make: Callable[[], Network],
    weights: dict[str, Tensor],
    path: Path,
    advice: str | None = None,
    without_poolers: bool = False,
) -> Network:
    """The network that `make` returns, holding `weights` themselves. Safe in threads.

    Raises UserError where they do not fit, as `check_weights` words it; `path` is the file that they are from. Where
    they may be `without_poolers`, which no feature needs, such are zero.
    """
    with ParametersOnMeta():
        network = make()
    if without_poolers:
        poolers = {name: weight for name, weight in network.named_parameters() if ".pooler." in name}
        weights = {**{name: torch.zeros(weight.shape) for name, weight in poolers.items()}, **weights}
    check_weights(network, weights, path, advice)
    network.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        network = make()  # with values of its own that are no parameters and in no checkpoint
        network.load_state_dict(weights)
    return network


def build_model(
    model_class: type[CLaMP3Model] | type[M3Model] | None, sizes: ModelSizes, path: Path
) -> CLaMP3Model | M3Model:
    """The model in evaluation mode with the weights at `path`, as `model_with`."""
    return model_with(read_weights(path), sizes, path, model_class)


def model_with(
    weights: Weights,
    sizes: ModelSizes,
    path: Path,
    model_class: type[CLaMP3Model] | type[M3Model] | None = None,
    towers: Collection[str] | None = None,
    without_poolers: bool = False,
) -> CLaMP3Model | M3Model:
    """The model in evaluation mode with `weights` of the file `path`: mapped from it, with no initialisation.

    Without `model_class`, it is what the file holds; of CLaMP 3, it has the `towers` of these modalities alone, if
    given. Before a part of it is used, `source_of(model).own_all(part)` frees it from what becomes of the file. Raises
    UserError where the weights do not fit.
    """
    chosen = model_class or (M3Model if is_m3(weights) else CLaMP3Model)

    def make() -> CLaMP3Model | M3Model:
        model = chosen(sizes)
        if towers is not None and isinstance(model, CLaMP3Model):
            model.keep(towers)
        return model

    model = build_with_weights(make, weights, path, without_poolers=without_poolers)
    if isinstance(model, M3Model):
        model.decoder.base.tie_weights()
    _sources[model] = weights.source
    return model.eval()


def source_of(model: nn.Module) -> Source | Sources | None:
    """The file that `build_model` has loaded `model` from."""
    return _sources.get(model)


def check_weights(model: nn.Module, weights: dict[str, Tensor], path: Path, advice: str | None = None) -> None:
    """Raise UserError, with names, unless `weights` are exactly what `model` takes.

    `advice` says what the file may be or what to do; without it, that is guessed for CLaMP and M3 models.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} is {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if not (missing or unexpected or misshapen):
        return
    problems = [f"{path} does not fit this model: {advice or _diagnosis(model, weights, misshapen)}"]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            more = f" … and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            problems.append(f"  {title}: {', '.join(names[:SHOWN_NAMES])}{more}")
    raise UserError("\n".join(problems))


def _diagnosis(model: nn.Module, weights: dict[str, Tensor], misshapen: list[str]) -> str:
    """What the file at hand seems to be."""
    towers = {name.split(".")[0] for name in weights}
    wants_m3 = isinstance(model, M3Model)
    if not wants_m3 and is_m3(weights):
        return "it is an M3 checkpoint, where CLaMP 3's (saas or c2) is needed"
    if wants_m3 and "text_model" in towers:
        return "it is a CLaMP checkpoint, where M3's is needed"
    if not wants_m3 and "text_model" in towers and "audio_model" not in towers:
        return "it is a CLaMP checkpoint without audio (CLaMP 2?), where CLaMP 3's is needed"
    if misshapen:
        return "it was made with other sizes; set the knobs in config.py (or CLAMP3_CONFIG) to those it was made with"
    return "it holds other tensors (another number of layers?)"


def is_m3(weights: Mapping[str, Tensor]) -> bool:
    """Whether a model's tensors are those of M3."""
    return {"encoder", "decoder"} <= {name.split(".")[0] for name in weights}


def load_weights(model: CLaMP3Model | M3Model, path: Path) -> None:
    """Copy the weights at `path` into `model`, on whatever device it is. UserError where they do not fit."""
    weights = read_weights(path)
    check_weights(model, weights, path)
    model.load_state_dict(weights)
    weights.source.check()


def start_from_m3(model: CLaMP3Model, path: Path) -> None:
    """Copy the encoder of the M3 weights at `path` into the symbolic tower, as training does before its first step."""
    prefix = "encoder."
    weights = read_weights(path)
    encoder = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    check_weights(model.symbolic_model, encoder, path)
    model.symbolic_model.load_state_dict(encoder)
    weights.source.check()


def start_from_text_model(model: CLaMP3Model, name: str) -> bool:
    """Copy the pretrained text model `name`, a local folder or one of the hub, into the text tower.

    Returns False for a local folder that holds a configuration alone: then the text tower starts at random.
    """
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return False
    for file in [*folder.glob("model*.safetensors")] or folder.glob("pytorch_model*.bin"):
        read_checkpoint(file)  # which says what is wrong with a damaged one
    from transformers import AutoModel

    try:
        pretrained = AutoModel.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged file makes the readers raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "weights_only" in str(error):  # torch's advice to load a file without protection against code in it
            reason = "its file is damaged, or holds more than weights"
        raise UserError(
            f"no weights of the text model {name}: {reason}\n"
            "  with a network they are downloaded once; without one, copy the Hugging Face cache (the folder that "
            "HF_HOME names) from a machine that has them"
        ) from error
    weights = {name: tensor for name, tensor in pretrained.state_dict().items() if not name.endswith(STORED_BUFFERS)}
    for name, parameter in model.text_model.named_parameters():
        if "pooler" in name:  # some files come without one, and nothing uses it
            weights.setdefault(name, parameter.detach())
    check_weights(model.text_model, weights, folder)
    model.text_model.load_state_dict(weights)
    return True
