from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**26  # numbers that are averaged over processes in one message


# ---------- random numbers and processes ----------


def random_state() -> tuple[Tensor, Tensor | None]:
    """What dropout draws from, on the CPU and on this process's GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[1])


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of what each process holds; `tensor` is left as it is."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, many in one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    while gradients:
        bucket, size = [], 0
        while gradients and (not bucket or size + gradients[0].numel() <= BUCKET):
            bucket.append(gradients.pop(0))
            size += bucket[-1].numel()
        mean = mean_over_processes(torch.cat([gradient.flatten() for gradient in bucket]))
        for gradient, part in zip(bucket, mean.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))
