"""Jobs in worker processes, one at a time in each, so that a file that crashes or hangs a converter is one failure."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from multiprocessing import connection

from clamp3.io.files import remove_orphans
from clamp3.io.folders import Job, Outcome


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


TIME_LIMIT = 300  # seconds for one input
MAX_WAIT = 3600  # seconds without news from any process, before looking again


def in_processes(
    task: Callable[[Job], Outcome], jobs: list[Job], workers: int | None, time_limit: float
) -> Generator[Outcome, None, None]:
    """The outcomes of all `jobs`, in the order in which they end; what ends or holds up a process is a failure."""
    waiting = deque(jobs)
    pool = [_Worker(task) for _ in range(min(workers or cores(), len(jobs)))]
    try:
        while pool:
            remaining = min(worker.deadline for worker in pool) - time.monotonic()
            ready = connection.wait([worker.pipe for worker in pool], min(max(remaining, 0), MAX_WAIT))
            for worker in tuple(pool):
                if worker.pipe in ready:
                    outcome = worker.outcome()
                elif time.monotonic() > worker.deadline:
                    outcome = worker.stop(f"takes longer than {time_limit:g} s (--time_limit)")
                else:
                    continue
                if worker.stopped:
                    pool.remove(worker)
                    if waiting:
                        pool.append(_Worker(task))
                elif waiting:
                    worker.begin(waiting.popleft(), time_limit)
                else:
                    worker.stop()
                    pool.remove(worker)
                if outcome is not None:
                    yield outcome
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """A process that does `task` on a job at a time. Its pipe is readable when it waits for a job, or has ended."""

    def __init__(self, task: Callable[[Job], Outcome]):
        # A new interpreter: a copy of this one might hold locks that nobody will ever release.
        context = multiprocessing.get_context("spawn")
        self.pipe, others_end = context.Pipe()
        self.process = context.Process(target=_work, args=(task, others_end), daemon=True)
        with interrupts_held_back():  # from the new process, for good
            self.process.start()
        others_end.close()  # so that the pipe ends when the process does
        self.job: Job | None = None  # it starts, with all its imports
        self.deadline = math.inf
        self.stopped = False

    def begin(self, job: Job, time_limit: float) -> None:
        self.job = job
        self.deadline = time.monotonic() + time_limit
        with contextlib.suppress(BrokenPipeError):  # it has ended: `outcome` will tell
            self.pipe.send(job)

    def outcome(self) -> Outcome | None:
        """That of the job; None if the process has only started."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
        if self.job is None:
            raise RuntimeError(f"a worker process cannot start: exit code {self.process.exitcode}")
        return self.stop(f"ended the converter's process, with exit code {self.process.exitcode}")

    def stop(self, why: str = "") -> Outcome | None:
        """End the process and remove what it has begun to write. Returns the outcome of its job, which failed."""
        self.stopped = True
        self.process.kill()
        self.process.join()
        self.pipe.close()
        if self.job is None:
            return None
        for folder in {target.parent for target in self.job.targets}:
            remove_orphans(folder)
        return Outcome(self.job, why)


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C has no effect until the end of this block, and never on processes that start in it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(task: Callable[[Job], Outcome], pipe: connection.Connection) -> None:
    """What a worker process does: jobs, until it or its parent is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send(None)
        while True:
            pipe.send(task(pipe.recv()))


def _end_with_parent() -> None:
    """Wait in a thread for the end of the parent process, which may be a sudden one, and end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker process
    parent.join()
    os._exit(1)
