"""Start training as train_clamp3_symbolic.py does, stop before the first step, and print how long that took, as JSON.

    CLAMP3_CONFIG=… python benchmarks/first_step.py CODE
CODE is the folder code/ of a checkout of the project. On Linux, the peak memory of the data workers is known too.
"""

import json
import multiprocessing
import os
import re
import resource
import sys
import time
from pathlib import Path

BEGIN = time.perf_counter()


def stop(trainer, _batch) -> None:
    """In place of the first step, which has its batch here: print the figures, and end."""
    workers = sum(peak_bytes(process.pid) for process in multiprocessing.active_children())
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"seconds": time.perf_counter() - BEGIN, "peak_bytes": own, "worker_bytes": workers}
    figures["cpu_seconds"] = time.process_time() + ended.ru_utime + ended.ru_stime
    if trainer.state.is_main_process:
        print(json.dumps(figures))
    sys.stdout.flush()
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(0)


def peak_bytes(pid: int) -> int:
    """Of a process that is running; 0 where the system does not tell."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except OSError:
        return 0


def main() -> int:
    sys.path.insert(0, sys.argv[1])
    from clamp3.cli.settings import load_knobs
    from clamp3.cli.training import train_clamp3, training_parser
    from clamp3.training.loop import Trainer

    Trainer.step = stop
    return train_clamp3("symbolic", load_knobs(), training_parser(__doc__).parse_args(["--device", "cpu"]))


if __name__ == "__main__":
    sys.exit(main())
