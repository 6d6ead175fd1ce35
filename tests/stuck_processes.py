"""Two processes of which one is stuck, slow or stopped; each scenario is a function below.

    python tests/stuck_processes.py MODEL_FOLDER DATA_FOLDER OUTPUT_FOLDER
Each process is a fork of this one, so that nothing has to be imported anew.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
from clamp3 import distributed
from clamp3.cli.training import fit, start_training
from clamp3.distributed import on_main
from clamp3.errors import UserError
from clamp3.training.checkpoints import last_path
from forks import free_port, launched
from training_runs import make_trainer

TIMEOUT = 3  # seconds for a collective operation
TIME_LIMIT = 60
FOLDERS = [Path(argument) for argument in sys.argv[1:4]]


def main() -> None:
    torch.set_num_threads(1)
    distributed.HEARTBEAT, distributed.HEARTBEAT_TIMEOUT = 0.2, timedelta(seconds=TIMEOUT)
    scenarios = ((a_rank_hangs, 2, True), (main_is_slow, 0, False), (main_is_stopped, 0, True))
    for scenario, expected, stuck in scenarios:
        port, begin = free_port(), time.monotonic()
        children = [fork(scenario, rank, port) for rank in range(2)]
        waiting, other = children if scenario is a_rank_hangs else reversed(children)
        try:
            code = exit_code(waiting)
        finally:  # one that is stopped would keep the pipes of this process open
            if stuck:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
        assert code == expected and (stuck or exit_code(other) == expected), (scenario.__name__, code)
        print(f"{scenario.__name__}: as expected after {time.monotonic() - begin:.1f} s", flush=True)


def exit_code(child: int) -> int:
    deadline = time.monotonic() + TIME_LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it waits for ever")


def fork(scenario: Callable, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= launched(rank, 2, port)
        knobs = {"COLLECTIVE_TIMEOUT": TIMEOUT / 60}
        code = scenario(start_training(knobs, argparse.Namespace(device="cpu", threads=1)), knobs)
        sys.stdout.flush()
        os._exit(code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def a_rank_hangs(state, knobs: dict) -> int:
    """In the middle of an epoch: the other process says so and ends, and the last checkpoint is whole."""
    trainer = make_trainer("symbolic", *FOLDERS, state=state, batch_size=4, save_steps=2)
    step = trainer.step

    def hanging(batch) -> None:
        if state.process_index == 1 and trainer.progress.step == 3:
            signal.pause()
        step(batch)

    trainer.step = hanging
    try:
        fit(trainer, knobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        assert torch.load(last_path(trainer.settings.weights_path))["progress"]["step"] == 2
        return 2
    return 1


def main_is_slow(state, _knobs: dict) -> int:
    """Far slower than the timeout of a collective operation, but alive."""

    def slow() -> str:
        time.sleep(3 * TIMEOUT)
        return "done"

    assert on_main(state, slow) == "done"
    distributed.finish(state)
    return 0


def main_is_stopped(state, _knobs: dict) -> int:
    """So that it gives no sign of life."""

    def stop() -> None:
        time.sleep(
            TIMEOUT
        )  # till the other process has joined: it asks this one, and PyTorch waits for ever for answers
        os.kill(os.getpid(), signal.SIGSTOP)

    try:
        on_main(state, stop)
    except UserError as error:
        assert "another process is stuck or gone" in str(error)
        return 0
    return 1


if __name__ == "__main__":
    main()
