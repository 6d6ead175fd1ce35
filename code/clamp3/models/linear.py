"""Linear layers on CPUs, by the faster of two libraries that multiply matrices."""

import platform

import torch
from torch import Tensor, nn

from clamp3.models.packing import is_steady

# PyTorch calls MKL for float32, which does not use AVX-512 on AMD's processors. oneDNN, by an operator that
# torch.compile uses too, is faster, above all with few rows; and each row is rounded the same whatever the others are.
HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
SMALL = 2**16  # weights, up to which oneDNN's longer preparation outweighs that


class Linear(nn.Linear):
    """As PyTorch's, in inference mode by oneDNN."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        weight = self.weight
        is_float = inputs.dtype == weight.dtype == torch.float32
        if not (HAS_ONEDNN and is_float and weight.numel() > SMALL and is_steady(inputs.device)):
            return super().forward(inputs)
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, self.bias, "none", [], "")


def multiply_by_onednn(network: nn.Module) -> None:
    """Let the linear layers of `network`, of whatever library, be such ones."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
