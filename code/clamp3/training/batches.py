"""Batches: which process gets which items, how examples are stacked, and the worker processes that read them."""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from clamp3.inputs.patchilizer import PAD_ID
from clamp3.inputs.segments import pad
from clamp3.io.reports import FileIssue
from clamp3.io.workers import end_with_parent, interrupts_held_back
from clamp3.training.data import Example, Examples

SHARED_MEMORY = "/dev/shm"  # where Linux keeps what processes share
WORKER = "DataLoader worker"  # what PyTorch calls it in its errors

logger = logging.getLogger("clamp3")


@dataclass(frozen=True)
class Batch:
    """Examples of one process, stacked: by sequence, a tensor (batch, longest, …) and masks (batch, longest).

    They are on the CPU, where the model can count what masks select without waiting for its device.
    """

    names: list[str]
    tensors: dict[str, tuple[Tensor, Tensor]]
    remarks: Counter[str] = field(default_factory=Counter)  # of how many items the input encoder made each
    skipped: tuple[FileIssue, ...] = ()  # items that could not be read
    not_shared: str = ""  # why a worker process could not put it into shared memory

    def __len__(self) -> int:
        return len(self.names)

    def pin_memory(self) -> "Batch":
        pinned = {name: (stacked.pin_memory(), masks.pin_memory()) for name, (stacked, masks) in self.tensors.items()}
        return replace(self, tensors=pinned)

    def pieces(self, size: int) -> Iterator["Batch"]:
        """Consecutive parts of at most `size` examples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            tensors = {name: (stacked[part], masks[part]) for name, (stacked, masks) in self.tensors.items()}
            yield Batch(self.names[part], tensors)


class Collate:
    """Stacks examples, each sequence padded to the batch's longest; those without sequences are left out."""

    def __init__(self, pad_values: dict[str, int]):
        """`pad_values` holds what fills up a sequence, by name; 0 for those that it does not name."""
        self.pad_values = pad_values

    def __call__(self, examples: list[Example]) -> Batch:
        read = [example for example in examples if example.sequences]
        tensors = {}
        for name in read[0].sequences if read else ():
            stacked, masks = pad([example.sequences[name] for example in read], self.pad_values.get(name, PAD_ID))
            tensors[name] = torch.from_numpy(stacked), torch.from_numpy(masks)
        remarks = Counter(remark for example in read for remark in example.remarks)
        skipped = tuple(issue for example in examples for issue in example.skipped)
        return Batch([example.name for example in read], tensors, remarks, skipped)


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """One process's parts of the global batches of an epoch, as keys of `Examples`; `set` chooses where to begin.

    With a `seed` (training), in an order of the epoch's own and without the remainder, since a short batch has few
    negatives; a set smaller than one batch is one batch of as many as the processes can share evenly. Without
    (evaluation), in order and with the remainder.
    """

    def __init__(self, size: int, batch_size: int, processes: int, rank: int, seed: int | None):
        self.size, self.processes, self.rank, self.seed = size, processes, rank, seed
        self.global_batch_size = batch_size * processes  # items in a global batch
        if seed is not None:
            self.global_batch_size = min(self.global_batch_size, size // processes * processes)
        self.epoch = self.first = 0
        self.arrange: Callable[[np.ndarray], np.ndarray] = lambda order: order  # the order of an epoch

    def set(self, epoch: int, first: int = 0) -> None:
        """Go to batch `first` of `epoch`."""
        self.epoch, self.first = epoch, first

    @property
    def batches_per_epoch(self) -> int:
        """How many global batches an epoch has."""
        return (
            self.size // self.global_batch_size if self.seed is not None else -(-self.size // self.global_batch_size)
        )

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = self.arrange(np.random.default_rng([self.seed, self.epoch]).permutation(self.size))
        for number in range(self.first, self.first + len(self)):
            batch = order[number * self.global_batch_size : (number + 1) * self.global_batch_size]
            yield [(self.epoch, int(index)) for index in np.array_split(batch, self.processes)[self.rank]]


# ---------- worker processes ----------


class Loader:
    """The batches of what `sampler` is set to, read by `workers` processes (0: by this one), which live as long as it.

    Iterating raises RuntimeError where a worker process ends, as `is_worker_error` recognizes; that error may arise in
    the main thread at any moment, for the end of a process is a signal.
    """

    def __init__(
        self, dataset: Examples, sampler: GlobalBatchSampler, collate: Collate, workers: int, device: torch.device
    ):
        self.dataset, self.sampler, self.collate, self.device = dataset, sampler, collate, device
        self.loader = self._loader(workers)
        self.told = False  # that batches go through pipes

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._received()
        except RuntimeError:
            # Else PyTorch's handler of SIGCHLD would raise a worker's death a second time, wherever this process is.
            if (workers := self.loader._iterator) is not None:
                self.loader._iterator = None
                workers._shutdown_workers()  # type: ignore[attr-defined]
            raise

    def _received(self) -> Iterator[Batch]:
        for batch in self._start():
            received = batch.received() if isinstance(batch, Sent) else batch
            if received.not_shared and not self.told:
                self.told = True
                logger.info(
                    "data workers send batches through pipes, which takes longer, as they cannot share memory: %s "
                    "(docker run --shm-size enlarges it; TMPDIR must be a short path)",
                    received.not_shared,
                )
            yield received

    def _start(self) -> "Iterator[Batch | Sent]":
        if self.loader.num_workers:
            context = multiprocessing.get_context("spawn")
            try:  # to have as many semaphores as the loader makes, which is not ready for a failure
                _ = [context.Lock() for _ in range(8 + 3 * self.loader.num_workers)]
            except OSError as error:
                logger.info("data workers cannot be started: %s; this process reads the data, more slowly", error)
                self.loader = self._loader(0)
        with interrupts_held_back():  # from the workers, for good
            return iter(self.loader)

    def _loader(self, workers: int) -> DataLoader:
        return DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=Send(self.collate) if workers else self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context="spawn" if workers else None,  # forks of a process with threads may hang
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that training's random numbers do not depend on restarts
        )


class Send:
    """What a worker process does with a batch: it stacks the examples, and makes them ready to be sent."""

    def __init__(self, collate: Collate):
        self.collate = collate
        self.not_shared = ""  # once shared memory has failed, it is not tried again

    def __call__(self, examples: list[Example]) -> "Sent":
        batch = self.collate(examples)
        if not self.not_shared:
            try:
                check_room(batch)
                return Sent(bytes(ForkingPickler.dumps(batch)))
            except (OSError, RuntimeError) as error:
                self.not_shared = str(error).splitlines()[0]
        arrays = {name: (stacked.numpy(), masks.numpy()) for name, (stacked, masks) in batch.tensors.items()}
        return Sent(pickle.dumps((replace(batch, tensors={}, not_shared=self.not_shared), arrays)))


class Sent:
    """A batch on its way from a worker process, pickled there: its tensors are in shared memory or, if need be, here.

    Left to the queue between the processes, it would be pickled by a thread, which prints what goes wrong and drops
    the batch, for which training would then wait for ever.
    """

    def __init__(self, content: bytes):
        self.content = content

    def received(self) -> Batch:
        try:
            loaded = pickle.loads(self.content)
        except (OSError, EOFError) as error:  # the worker hands over what shared memory it means, while it lives
            raise RuntimeError(f"a batch of a {WORKER} does not arrive: {error}") from error
        if isinstance(loaded, Batch):
            return loaded
        batch, arrays = loaded
        return replace(batch, tensors={name: tuple(map(torch.from_numpy, pair)) for name, pair in arrays.items()})

    def pin_memory(self) -> Batch:
        return self.received().pin_memory()


def check_room(batch: Batch) -> None:
    """Raise OSError where there is not enough shared memory for `batch`: some systems kill who finds that out late.

    Half of it is left to others, such as NCCL.
    """
    if not os.path.isdir(SHARED_MEMORY):
        return
    needed = sum(tensor.nbytes for pair in batch.tensors.values() for tensor in pair)
    memory = os.statvfs(SHARED_MEMORY)
    if needed > (memory.f_bavail - memory.f_blocks // 2) * memory.f_frsize:
        size, left = (blocks * memory.f_frsize / 1e6 for blocks in (memory.f_blocks, memory.f_bavail))
        text = f"a batch of {needed / 1e6:.0f} MB is too much for {SHARED_MEMORY}: {size:.0f} MB, {left:.0f} free"
        raise OSError(text)


def _start_worker(_worker: int) -> None:
    """Let this process end with the one that started it; Ctrl-C is that one's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_nobody_asks
    end_with_parent()


def _unless_nobody_asks(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook without a word of the thread that hands over shared memory to a process that has just ended."""
    if not isinstance(error, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def is_worker_error(error: BaseException) -> bool:
    """Whether `error` says that a data worker process has ended."""
    return isinstance(error, RuntimeError) and WORKER in str(error)
