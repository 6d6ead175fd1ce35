"""Jobs in worker processes, one at a time in each, so that a file that crashes or hangs a converter is one failure."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

from clamp3.errors import UserError
from clamp3.io.files import remove_orphans
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import OUT_OF_MEMORY

if sys.platform != "win32":
    import fcntl
    import resource

TIME_LIMIT = 300  # seconds of work on one input
MEMORY_LIMIT = 1000  # MB for one input
START_LIMIT = 300  # seconds for a process to start, with all its imports
TICK = 1.0  # seconds between two looks at the clock
MAX_FAILED_STARTS = 3  # in a row, after which no process is started any more

Task = Callable[[Job], Outcome]  # a function of a module, or a `partial` of one


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """This process's share of the machine's cores, among those that a launcher has started."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class Processes:
    """How many worker processes there are, and what one of them may take for one input."""

    count: int | None = None  # by default one for each core
    time_limit: float = TIME_LIMIT  # seconds of work; waiting for whoever takes the outcomes does not count
    memory_limit: float = MEMORY_LIMIT  # MB of address space on top of what a worker starts with; Linux alone knows it


def in_processes(task: Task, jobs: list[Job], processes: Processes) -> Generator[Outcome, None, None]:
    """`Pool.run`, in processes of its own."""
    with Pool(processes) as pool:
        yield from pool.run(task, jobs)


class Pool:
    """Worker processes, which start when there are jobs for them and end with the `with` block.

    They start as new interpreters, which import the main module: a script that uses a Pool needs a `__main__` guard.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.size = processes.count or cores()
        self.workers: list[_Worker] = []
        self.failed_starts = 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in tuple(self.workers):
            self._end(worker)

    def run(self, task: Task, jobs: list[Job]) -> Generator[Outcome, None, None]:
        """The outcomes of all `jobs`, in the order in which they end; what ends or holds up a process is a failure.

        A job whose process ended all of a sudden is tried once more. Raises UserError where no process can start.
        """
        waiting = deque(jobs)
        tried_again: set[Job] = set()
        for worker in self.workers if jobs else ():
            worker.prepare(task)
        try:
            while waiting or any(worker.job for worker in self.workers):
                self._hand_out(task, waiting)
                for worker in self._watch():
                    outcome = self._outcome(worker)
                    if outcome is None:  # it has started, or ended
                        continue
                    if outcome.crashed and outcome.job not in tried_again:
                        tried_again.add(outcome.job)
                        waiting.appendleft(outcome.job)
                    else:
                        yield outcome
        finally:
            for worker in [worker for worker in self.workers if worker.job]:  # of a run that is given up
                self._end(worker)

    def _hand_out(self, task: Task, waiting: deque[Job]) -> None:
        """Start processes as long as there are jobs for them, and give each idle one its next job."""
        busy = sum(worker.job is not None for worker in self.workers)
        while len(self.workers) < min(self.size, busy + len(waiting)):
            try:
                self.workers.append(_Worker(task, self.processes.memory_limit))
            except OSError as error:  # no more open files, processes or memory for this one
                if not self.workers:
                    raise UserError(f"no worker process can be started: {error.strerror or error}") from None
                self.size = len(self.workers)
        for worker in self.workers:
            if worker.is_idle and waiting:
                worker.begin(waiting.popleft(), self.processes.time_limit)

    def _watch(self) -> list["_Worker"]:
        """Those workers that have something to tell, or have taken too long, by the next tick.

        The time that they take is added up here, in ticks: it does not run while nobody asks for the next outcome, nor
        while this process is stopped.
        """
        watched = [worker for worker in self.workers if not worker.is_idle]
        remaining = min(worker.limit - worker.used for worker in watched)
        begin = time.monotonic()
        ready = connection.wait([worker.pipe for worker in watched], min(max(remaining, 0), TICK))
        passed = min(time.monotonic() - begin, TICK)
        for worker in watched:
            if worker.pipe not in ready:
                worker.used += passed
        return [worker for worker in watched if worker.pipe in ready or worker.is_late]

    def _outcome(self, worker: "_Worker") -> Outcome | None:
        """What has come of the job of `worker`, which has something to tell or has taken too long."""
        job = worker.job
        try:
            told = None if worker.is_late and not worker.pipe.poll() else worker.pipe.recv()
        except (EOFError, ConnectionError):
            code = self._end(worker)
            if job:
                return Outcome(job, f"ended the converter's process, with exit code {code}", crashed=True)
            self._note_failed_start(f"exit code {code}")
            return None
        if told is None and worker.is_late:
            self._end(worker)
            if job:
                return Outcome(job, f"takes longer than {worker.limit:g} s (--time_limit)")
            self._note_failed_start(f"nothing in {START_LIMIT} s")
            return None
        self.failed_starts = 0
        if told is None:
            worker.preparing -= 1
            return None
        worker.job = None
        outcome, goes_on = told
        if not goes_on:
            self._end(worker)
        return outcome

    def _note_failed_start(self, how: str) -> None:
        self.failed_starts += 1
        if self.failed_starts >= MAX_FAILED_STARTS:
            raise UserError(f"worker processes cannot start: {how}, {self.failed_starts} times in a row")

    def _end(self, worker: "_Worker") -> int | None:
        """Kill a worker, and remove what it has begun to write; returns its exit code."""
        self.workers.remove(worker)
        return worker.stop()


class _Worker:
    """A process that does one job at a time. Its pipe is readable when it is ready, has an outcome, or has ended."""

    def __init__(self, task: Task, memory_limit: float):
        # A new interpreter: a copy of this one might hold locks that nobody will ever release.
        context = multiprocessing.get_context("spawn")
        self.pipe, others_end = context.Pipe()
        self.process = context.Process(target=_work, args=(others_end, memory_limit), daemon=True)
        try:
            with interrupts_held_back():  # from the new process, for good
                self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            others_end.close()  # so that the pipe ends when the process does
        self.job: Job | None = None
        self.preparing = 0  # for how many tasks; the last is that of the jobs to come
        self.prepare(task)

    def prepare(self, task: Task) -> None:
        """Tell the process what is to be done with the jobs to come; it is ready once it has imported that."""
        self.preparing += 1
        self._send(task, START_LIMIT)

    def begin(self, job: Job, time_limit: float) -> None:
        self.job = job
        self._send(job, time_limit)

    def _send(self, message: object, limit: float) -> None:
        self.used, self.limit = 0.0, limit  # seconds
        with contextlib.suppress(ConnectionError):  # it has ended, as its pipe will tell
            self.pipe.send(message)

    @property
    def is_idle(self) -> bool:
        return not self.preparing and self.job is None

    @property
    def is_late(self) -> bool:
        return self.used >= self.limit

    def stop(self) -> int | None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        for folder in {target.parent for target in self.job.targets} if self.job else ():
            remove_orphans(folder)
        return self.process.exitcode


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Signals to end have no effect until the end of this block, and Ctrl-C never has on processes that start in it.

    A process that starts would otherwise tell at length how the one that started it was not there any more.
    """
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:
        resource_tracker.ensure_running()  # the first process would start it, which lets interrupts through again
    received: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # whose affair Python's handlers are
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, lambda *how: received.append(how))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for held, handler in handlers.items():
            signal.signal(held, handler)
        for held, frame in received:
            handlers[held](held, frame)


# ---------- in the worker process ----------


def _work(pipe: connection.Connection, memory_limit: float) -> None:
    """Do jobs, until this process or its parent is ended, or until it has grown too much."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    end_with_parent()
    with contextlib.suppress(EOFError, ConnectionError):
        task, before = None, 0
        while True:
            message = pipe.recv()
            if not isinstance(message, Job):
                task, before = message, _address_space()
                _limit_address_space(before + int(memory_limit * 1e6))
                pipe.send(None)
                continue
            assert task is not None
            too_much = f"takes more than {memory_limit:g} MB of memory (--memory_limit)"
            try:
                outcome = task(message)
                goes_on = outcome.failure != OUT_OF_MEMORY and _address_space() < before + memory_limit * 1e6 / 2
                if outcome.failure == OUT_OF_MEMORY:
                    outcome = replace(outcome, failure=too_much)
                pipe.send((outcome, goes_on))
            except MemoryError:
                goes_on = False
                pipe.send((Outcome(message, too_much), goes_on))
            if not goes_on:
                return


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, NameError):
        return 0


def _limit_address_space(size: int) -> None:
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))


def end_with_parent() -> None:
    """Have this process end when its parent does, which may be a sudden end."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    if sys.platform != "win32":  # a long search by a regular expression lets no thread run, but signals end it
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
