"""Linear layers on CPUs, by the faster of two libraries that multiply matrices."""

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
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
    expected = torch.full((2, 4), 4.0)
    try:
        for either in (weight, _arranged(weight)):
            plain, activated = _multiplied(inputs, either, bias), _multiplied(inputs, either, bias, "gelu")
            if not (torch.equal(plain, expected) and torch.allclose(activated, F.gelu(expected))):
                return False
        return True
    except (AttributeError, RuntimeError):  # a PyTorch without it, or with another by that name
        return False


def _multiplied(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    approximation = "none" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], approximation)


def _arranged(weight: Tensor) -> Tensor:
    """A copy in oneDNN's own order, which cannot be pickled."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


class Linear(nn.Linear):
    """As PyTorch's, in inference mode by oneDNN."""

    _seen: tuple[Tensor, int, Tensor | None] | None = None  # the weight at its last use, its version, and arranged

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        if self.goes_by_onednn(inputs):
            return _multiplied(inputs, self._arranged_weight(), self.bias)
        return super().forward(inputs)

    def gelu(self, inputs: Tensor) -> Tensor:
        """The exact GELU of what `forward` gives, in one step where oneDNN multiplies and no hook looks on."""
        if self.goes_by_onednn(inputs) and not (self._forward_hooks or self._forward_pre_hooks):
            return _multiplied(inputs, self._arranged_weight(), self.bias, "gelu")
        return F.gelu(self(inputs))

    def goes_by_onednn(self, inputs: Tensor) -> bool:
        """Whether oneDNN multiplies these."""
        is_float = inputs.dtype == self.weight.dtype == torch.float32
        return is_float and self.weight.numel() > SMALL and is_steady(inputs.device) and has_onednn()

    def _arranged_weight(self) -> Tensor:
        """The weight, from the second use on a copy in the order of oneDNN, which else arranges it for each product.

        What is assigned to the weight, or done to it in place, is noticed, unless it is done to `weight.data`.
        """
        if self.weight.is_inference():  # which has no version
            return self.weight
        seen, version, arranged = self._seen or (None, 0, None)
        if seen is None or not seen.is_set_to(self.weight) or version != self.weight._version:
            # As long as it is held, nothing else can lie where it does.
            self._seen = self.weight.detach(), self.weight._version, None
            return self.weight
        if arranged is None:
            arranged = _arranged(self.weight)
            self._seen = seen, version, arranged
        return arranged

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but the arranged weight."""
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}


def multiply_by_onednn(network: nn.Module) -> None:
    """Let the linear layers of `network`, of whatever library, be such ones."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
