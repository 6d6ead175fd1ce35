from pathlib import Path

from torch import nn


def optimizer_states(checkpoint: dict, model: nn.Module) -> dict[int, dict]:
    """AdamW's state in a checkpoint, by the place of the parameter in `model`; empty where it does not fit.

    A checkpoint numbers parameters in the order of its weights, and library versions differ in that order.
    """
    own = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    names = [name for name in checkpoint["model"] if name in own]
    saved = checkpoint.get("optimizer") or {}
    if sum(len(group["params"]) for group in saved.get("param_groups", ())) != len(names):
        return {}
    return {own[names[index]]: state for index, state in saved["state"].items()}


def last_path(weights_path: Path) -> Path:
    """Where a run's newest full state is kept; `weights_path` itself holds the best so far."""
    return weights_path.with_name(f"{weights_path.stem}_last{weights_path.suffix}")


def epoch_path(weights_path: Path, epoch: int) -> Path:
    """Where the weights after an epoch are kept, and where --epoch looks for them."""
    return weights_path.with_name(f"{weights_path.stem}_{epoch}{weights_path.suffix}")
