"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the weights of a model, by peft: pip install "clamp3[train]".

A model with adapters has the state dict of one without, in which they are merged into the weights: so its checkpoints
are those of any model. What an exact restart needs beside that is the `state` here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clamp3.errors import UserError
from clamp3.io.files import write_whole
from clamp3.models.m3 import PatchEmbedding
from clamp3.training.settings import Lora

INSTALL = 'pip install "clamp3[train]"'
ADAPTER = "default"  # peft's name of it
SCALE = 2  # of what an adapter adds: peft's lora_alpha / rank
BASE, ADAPTERS = ".base_layer.", ".lora_"  # in the names of parameters
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's files


def add_adapters(model: nn.Module, lora: Lora) -> int:
    """Put an adapter beside each target of the parts of `model` that are trained, and freeze all else.

    The targets are linear layers, by the last part of their names. Before the first step, the adapters add nothing.
    Returns the number of parameters that they have. Raises UserError where a part has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"LORA_RANK needs peft, which is missing: {INSTALL}") from error
    names = target_names(model, lora)
    config = LoraConfig(r=lora.rank, lora_alpha=SCALE * lora.rank, target_modules=names)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(ADAPTERS in name)
    model.register_state_dict_post_hook(_merged)
    model.register_load_state_dict_pre_hook(_into_base)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def target_names(model: nn.Module, lora: Lora) -> list[str]:
    """The full names of the layers that get an adapter."""
    linear = [name for name, module in model.named_modules() if _is_linear(module) and ".pooler." not in name]
    found = []
    for part, child in model.named_children():
        if not any(parameter.requires_grad for parameter in child.parameters()):
            continue
        own = [name for name in linear if name.split(".")[0] == part]
        chosen = [name for name in own if name.rpartition(".")[2] in lora.targets]
        if not chosen and not part.endswith("_proj"):
            kinds = sorted({name.rpartition(".")[2] for name in own})
            raise UserError(f"LORA_TARGETS: {part} has {', '.join(kinds)}, and none of {', '.join(lora.targets)}")
        found += chosen
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not isinstance(module, PatchEmbedding)  # which takes ids, not numbers


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names that the layers beneath them had."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def plain_name(name: str) -> str:
    """What the weight of a layer is called where there is no adapter beside it."""
    return name.replace(BASE, ".")


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapted layers' weights with what the adapters add, by the weights' own names."""
    layers = adapted_layers(model).items()
    return {f"{name}.weight": layer.base_layer.weight + layer.get_delta_weight(ADAPTER) for name, layer in layers}


@torch.no_grad()
def _merged(model: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """A hook: state dicts hold the sums of weights and adapters, under the weights' own names."""
    merged = {prefix + name: weight for name, weight in merged_weights(model).items()}
    for name in list(state):
        tensor = state.pop(name)
        if ADAPTERS not in name:
            state[plain_name(name)] = merged.get(plain_name(name), tensor)


def _into_base(model: nn.Module, state: dict[str, Tensor], prefix: str, *_others: Any) -> None:
    """A hook: state dicts are loaded into the weights, and the adapters stay as they are."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if ADAPTERS in name:
            state[prefix + name] = tensor.detach()
        elif BASE in name and prefix + plain_name(name) in state:
            state[prefix + name] = state.pop(prefix + plain_name(name))


# ---------- what a restart needs ----------


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters, and the weights that they stand beside, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if ADAPTERS in name or BASE in name}


@torch.no_grad()
def restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Go back to what `state` returned."""
    for name, tensor in saved.items():
        model.get_parameter(name).copy_(tensor)


# ---------- adapters on their own ----------


def adapter_path(weights_path: Path) -> Path:
    """The folder of the adapters that belong to `weights_path`, where they are kept on their own."""
    return weights_path.with_name(f"{weights_path.stem}_adapter")


def save_adapter(model: nn.Module, lora: Lora, folder: Path, base: str) -> None:
    """Write the adapters to `folder` as peft does; `base` names the weights that they stand beside."""
    from safetensors.torch import save

    layers = adapted_layers(model)
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": SCALE * lora.rank,
        "target_modules": sorted(layers),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ADAPTERS in name
    }
    about = {"format": "pt", "base": _digest([layer.base_layer.weight for _, layer in sorted(layers.items())])}
    for file_name, content in ((CONFIG, json.dumps(config, indent=2).encode()), (WEIGHTS, save(adapters, about))):
        write_whole(folder / file_name, content)


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add the adapters in `folder` to the weights of `model`, for good.

    Raises UserError where they were not trained beside these weights, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        from peft import PeftModel

        names = sorted(json.loads((folder / CONFIG).read_bytes())["target_modules"])
        with safe_open(folder / WEIGHTS, "pt") as file:
            base = file.metadata()["base"]
    except ImportError as error:
        raise UserError(f"adapters need peft, which is missing: {INSTALL}") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} is no folder of adapters that training has saved: {error}") from None
    weights = dict(model.named_parameters())
    own = [weights[f"{name}.weight"] for name in names if f"{name}.weight" in weights]
    if _digest(own) != base:
        raise UserError(f"the adapters in {folder} were trained beside other weights than these")
    PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def _digest(weights: list[Any]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
