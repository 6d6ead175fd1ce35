"""Rank, device and threads, for one process or several (accelerate launch, torchrun)."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from clamp3.errors import UserError

LAUNCHERS_DEFAULT_THREADS = "1"


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of that name, or the default one. Raises UserError where this machine cannot compute on it."""
    if name is None:
        return default_device()
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot compute on device {name!s}: {str(error).splitlines()[0]}") from None


def start(device: str | None = None, threads: int | None = None) -> PartialState:
    """Join the other processes, if there are any, and return rank, number of processes and device.

    `device` overrides the process's own; several processes may be told "cpu" alone. `threads` bounds the CPU threads
    of each process; by default a machine's processes share its cores. Launchers set OMP_NUM_THREADS to 1 where the
    user has said nothing, so that only another value of it counts as the user's wish.
    """
    # Without an accelerator the processes find each other only where CPU is asked for.
    state = PartialState(cpu=usable_device(device).type == "cpu")
    if device not in (None, "cpu"):
        if state.num_processes > 1:
            raise UserError(f"--device {device} with several processes: each takes a device of its own; leave it out")
        state.device = usable_device(device)
    if threads is None and os.environ.get("OMP_NUM_THREADS", LAUNCHERS_DEFAULT_THREADS) == LAUNCHERS_DEFAULT_THREADS:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, cores // local_processes)
    if threads is not None:
        torch.set_num_threads(threads)
    return state


def from_main(state: PartialState, value):
    """The main process's `value`, in every process."""
    if state.num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def gather(state: PartialState, values: list) -> list:
    """The lists of all processes, joined in the order of ranks."""
    return values if state.num_processes == 1 else gather_object(values)
