"""Linear layers on CPUs, by the faster of two libraries that multiply matrices."""

import platform
from functools import cache

import torch
from torch import Tensor, nn

from clamp3.models.packing import is_steady

SMALL = 2**16  # weights, up to which oneDNN's longer preparation outweighs that it is faster


@cache
def has_onednn() -> bool:
    """Whether PyTorch can multiply by oneDNN here, and it is worth it.

    For float32 it calls MKL, which does not use AVX-512 on AMD's processors. oneDNN, by an operator that torch.compile
    uses too, is faster on x86, above all with few rows; and each row is rounded the same whatever the others are.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    inputs, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    try:
        return torch.equal(_multiplied(inputs, weight, bias), torch.full((2, 4), 4.0))
    except (AttributeError, RuntimeError):  # a PyTorch without it, or with another by that name
        return False


def _multiplied(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """As PyTorch's, in inference mode by oneDNN."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        is_float = inputs.dtype == self.weight.dtype == torch.float32
        if is_float and self.weight.numel() > SMALL and is_steady(inputs.device) and has_onednn():
            return _multiplied(inputs, self.weight, self.bias)
        return super().forward(inputs)


def multiply_by_onednn(network: nn.Module) -> None:
    """Let the linear layers of `network`, of whatever library, be such ones."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
