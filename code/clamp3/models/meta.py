"""Networks without memory for their parameters, which a checkpoint is going to replace."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ParametersOnMeta(TorchFunctionMode):
    """While it is entered, modules made in this thread get parameters on the meta device, without memory or values.

    Unlike `torch.device("meta")` it leaves buffers alone, whose values no checkpoint holds (positions, rotary
    frequencies), and modules that read numbers back while they are made.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = kwargs.get("tensor")
        if getattr(func, "__module__", "") == "torch.nn.init" and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor  # to draw values that are none, PyTorch would import its compiler, which takes a second
        return func(*args, **{**kwargs, "device": "meta"} if func is torch.empty else kwargs)
