"""Processes that train together on this machine, started as a launcher starts them."""

import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack


def run_together(command: Sequence[str], processes: int, **environment: str) -> str:
    """What the first of the processes prints. Raises RuntimeError, with what they say, where one of them fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, **environment, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        started = []
        for rank in map(str, range(processes)):
            own = {**os.environ, **environment} if processes == 1 else {**env, "RANK": rank, "LOCAL_RANK": rank}
            started.append(
                subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(started[-1].kill)
        told = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(stderr for _, stderr in told))
    return told[0][0]
