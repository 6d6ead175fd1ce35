"""What training needs of several processes and of devices: averages, gradients, and the random state of a device."""

import contextlib
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RandomState = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> RandomState:
    """What dropout draws from: the state of the CPU's generator and, where that is another device, of `device`'s."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_which(device))


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go back to what `random_state` returned for this `device`."""
    torch.set_rng_state(state[0])
    if state[1] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], *_which(device))


def _which(device: torch.device) -> list[torch.device]:
    """The argument that names one of several devices; there is one MPS device, and its functions take none."""
    return [] if device.type == "mps" else [device]


def is_distributed() -> bool:
    """Whether there are several processes."""
    return dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of what each process holds; `tensor` is left as it is."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` with gradients that are averaged over the processes during backward; itself where there is one process.

    All processes take the weights of rank 0. Parameters that a forward pass does not use (poolers, for instance) keep
    their gradient of None.
    """
    if not is_distributed():
        return module
    # All buffers are constants. The argument that says so has two names, of which newer libraries warn of the older.
    has_new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    constant_buffers: dict[str, Any] = {"forward_sync_buffers" if has_new_name else "broadcast_buffers": False}
    return DistributedDataParallel(
        module, find_unused_parameters=True, gradient_as_bucket_view=True, **constant_buffers
    )


def gradient_sync(module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager:
    """Where a backward pass of `module` averages gradients over the processes only if `enabled`."""
    if enabled or not isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext()
    return module.no_sync()


def gather_rows_on_main(rows: Tensor, counts: list[int]) -> list[Tensor] | None:
    """The rows (n, …) of each process, by rank, in the main process; None in the others.

    `counts` holds how many rows each process has.
    """
    if not is_distributed():
        return [rows]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if dist.get_rank() == 0 else None
    dist.gather(padded, parts)
    return parts and [part[:count] for part, count in zip(parts, counts, strict=True)]
