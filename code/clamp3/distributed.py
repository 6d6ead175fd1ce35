"""Rank, device, precision and threads, for one process or several (accelerate launch, torchrun)."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from clamp3.errors import UserError
from clamp3.io.workers import own_cores

if TYPE_CHECKING:
    from accelerate import PartialState

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How long a process waits for the others where each works through its own share of the files and they meet only at the
# end: as long as that takes. Launchers stop all processes when one dies. Training sets a timeout of minutes instead.
SHARED_WORK_TIMEOUT = timedelta(days=30)
HEARTBEAT = 5.0  # seconds between the signs of life of processes that others wait for in `long_work`
HEARTBEAT_TIMEOUT = timedelta(minutes=5)  # without one, after which a process counts as stuck


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


def checked_precision(name: str) -> str:
    """`name`. Raises UserError where it is none of PRECISIONS."""
    if name not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}")
    return name


def start(
    device: str | None = None, threads: int | None = None, timeout: timedelta = SHARED_WORK_TIMEOUT
) -> "PartialState":
    """Join the other processes, if there are any, and return rank, number of processes and device.

    `device` overrides the process's own; several processes may only be told "cpu". `threads` bounds the CPU threads
    of each process; by default the processes of a machine share its cores. A collective operation that takes longer
    than `timeout` fails.
    """
    from accelerate import PartialState

    # Without an accelerator the processes find each other only where CPU is asked for.
    state = PartialState(cpu=usable_device(device).type == "cpu", timeout=timeout)
    if device not in (None, "cpu"):
        if state.num_processes > 1:
            raise UserError(f"--device {device} with several processes: each takes a device of its own; leave it out")
        state.device = usable_device(device)
        if state.device.type == "cuda":
            torch.cuda.set_device(state.device)  # whose random numbers are the ones that are saved and restored
    if threads is None and _threads_are_the_launchers():
        threads = own_cores()
    if threads is not None:
        torch.set_num_threads(threads)
    return state


def start_alone(device: str | None = None, threads: int | None = None) -> torch.device:
    """`start` for commands that one process answers; returns the device. Raises UserError among several processes."""
    if not _is_launched():  # then there is nothing to ask accelerate, which takes long to import
        if threads is not None:
            torch.set_num_threads(threads)
        return usable_device(device)
    state = start(device, threads)
    if state.num_processes > 1:
        raise UserError(
            "this command works in one process; several can make the features that it compares: "
            "accelerate launch clamp3_embd.py INPUT_DIR OUTPUT_DIR --get_global"
        )
    return state.device


def _is_launched() -> bool:
    """Whether accelerate launch, torchrun or mpirun, maybe, has started this process, alone or with others."""
    return any(name.endswith(("WORLD_SIZE", "PMI_SIZE")) or name.startswith("ACCELERATE_") for name in os.environ)


def _threads_are_the_launchers() -> bool:
    """Whether OMP_NUM_THREADS is the 1 that launchers set where the user has said nothing."""
    launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    return launched and os.environ.get("OMP_NUM_THREADS") == "1"


def from_main(state: "PartialState", value: Any) -> Any:
    """The main process's `value`, in every process."""
    if state.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def long_work(state: "PartialState") -> Iterator[None]:
    """Work that may take one process far longer than another, such as a download: all leave the block together.

    Meanwhile a thread of each process tells the others that it is alive: waiting for the slowest is no timeout, but
    waiting for one that is stopped or gone is. Raises UserError where a process has given no sign of life for
    HEARTBEAT_TIMEOUT.
    """
    if state.num_processes == 1:
        yield
        return
    state.wait_for_everyone()
    group = dist.new_group(timeout=HEARTBEAT_TIMEOUT, backend="gloo")
    done, errors = threading.Event(), []

    def beat() -> None:
        all_done = False
        try:
            while not all_done:
                done.wait(HEARTBEAT)
                finished = torch.tensor([int(done.is_set())])
                dist.all_reduce(finished, dist.ReduceOp.MIN, group=group)
                all_done = bool(finished)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
    thread.join()
    if errors:
        raise UserError(f"another process is stuck or gone: no sign of life ({str(errors[0]).splitlines()[0]})")
    dist.destroy_process_group(group)


def is_collective_error(error: BaseException) -> bool:
    """Whether `error` says that a collective operation has timed out, or that another process is gone."""
    text = str(error).lower()
    signs = ("timed out", "timeout", "connection closed by peer", "connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def on_main(state: "PartialState", work: Callable[[], Any]) -> Any:
    """What `work` returns in the main process, in every process; a UserError there is raised in every process.

    The work may take long.
    """
    result = None
    with long_work(state):
        if state.is_main_process:
            try:
                result = work()
            except UserError as error:
                result = error
    result = from_main(state, result)
    if isinstance(result, UserError):
        raise result
    return result


def gather(state: "PartialState", values: list) -> list:
    """The lists of all processes, joined in the order of ranks."""
    if state.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)


def tell_launcher(message: str) -> None:
    """Let the report of a launcher (torchrun, accelerate launch), where this process fails, end with `message`.

    Such a report has some 40 lines and comes last, so that it buries what the process itself has printed. It shows
    what a failed process has written into a file that the launcher names; it exits with 1, whatever the process does.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")


def finish(state: "PartialState") -> None:
    """Wait for the other processes and part from them: launchers stop all when the first ends with an error."""
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
