"""Batches: which process gets which items, how examples are stacked, and the worker processes that read them."""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from clamp3.errors import ItemError
from clamp3.inputs.patchilizer import PAD_ID
from clamp3.inputs.segments import pad
from clamp3.training.data import Example, Examples


@dataclass(frozen=True)
class Batch:
    """Examples of one process, stacked: by sequence, a tensor (batch, longest, …) and masks (batch, longest).

    They are on the CPU, where the model can count what masks select without waiting for its device.
    """

    names: list[str]
    tensors: dict[str, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.names)

    def pin_memory(self) -> "Batch":
        pinned = {name: (stacked.pin_memory(), masks.pin_memory()) for name, (stacked, masks) in self.tensors.items()}
        return Batch(self.names, pinned)

    def pieces(self, size: int) -> Iterator["Batch"]:
        """Consecutive parts of at most `size` examples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            tensors = {name: (stacked[part], masks[part]) for name, (stacked, masks) in self.tensors.items()}
            yield Batch(self.names[part], tensors)


class Collate:
    """Stacks examples, each sequence padded to the batch's longest."""

    def __init__(self, pad_values: dict[str, int]):
        """`pad_values` holds what fills up a sequence, by name; 0 for those that it does not name."""
        self.pad_values = pad_values

    def __call__(self, examples: list[Example | ItemError]) -> Batch | ItemError:
        read = []
        for example in examples:
            if isinstance(example, ItemError):
                return example
            read.append(example)
        tensors = {}
        for name in read[0].sequences if read else ():
            stacked, masks = pad([example.sequences[name] for example in read], self.pad_values.get(name, PAD_ID))
            tensors[name] = torch.from_numpy(stacked), torch.from_numpy(masks)
        return Batch([example.name for example in read], tensors)


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
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for number in range(self.first, self.first + len(self)):
            batch = order[number * self.global_batch_size : (number + 1) * self.global_batch_size]
            yield [(self.epoch, int(index)) for index in np.array_split(batch, self.processes)[self.rank]]


def loader(
    examples: Examples, sampler: GlobalBatchSampler, collate: Collate, workers: int, device: torch.device
) -> DataLoader:
    """Batches read and encoded by `workers` processes (0: by this one), which live as long as the loader."""
    return DataLoader(
        examples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=end_with_parent if workers else None,
        multiprocessing_context="spawn" if workers else None,  # forks of a process with threads may hang
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its own, so that training's random numbers do not depend on restarts
    )


def end_with_parent(_worker: int) -> None:
    """Let this worker process end when the one that started it does, even if that is killed."""

    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def without_errors(batches: Iterable[Batch | ItemError]) -> Iterator[Batch]:
    """The batches of a loader. Raises the ItemError of an item that could not be read."""
    for batch in batches:
        if isinstance(batch, ItemError):
            raise ItemError(str(batch))  # not itself: in a cycle with this frame, it would keep workers alive
        yield batch
