"""Rank, device and threads, for one process or several (accelerate launch, torchrun)."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

LAUNCHERS_DEFAULT_THREADS = "1"


def start(device: str | None = None, threads: int | None = None) -> PartialState:
    """Join the other processes, if there are any, and return rank, number of processes and device.

    `device` overrides the process's own (a single process may take any, several only "cpu"). `threads` bounds the
    CPU threads of each process; by default a machine's processes share its cores. Launchers set OMP_NUM_THREADS to 1
    where the user has said nothing, so that only another value of it counts as the user's wish.
    """
    state = PartialState(cpu=device == "cpu")
    if device is not None and state.num_processes == 1:
        state.device = torch.device(device)
    if threads is None and os.environ.get("OMP_NUM_THREADS", LAUNCHERS_DEFAULT_THREADS) == LAUNCHERS_DEFAULT_THREADS:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        threads = max(1, len(os.sched_getaffinity(0)) // local_processes)
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
