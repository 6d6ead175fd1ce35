"""Memory: computing in batches that it allows, and giving back what lies in a file too."""

import mmap
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from clamp3.errors import is_out_of_memory

T = TypeVar("T")
R = TypeVar("R")


def as_memory_allows(compute: Callable[[list[T]], Iterable[R]], batch: list[T]) -> list[R | None]:
    """What `compute` makes of a batch, one result for each item; halved and tried again where memory runs out.

    None stands for an item for which it does not suffice alone.
    """
    try:
        return list(compute(batch))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Here the error is gone, and what it held with it.
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        return [None]
    middle = len(batch) // 2
    return [*as_memory_allows(compute, batch[:middle]), *as_memory_allows(compute, batch[middle:])]


def forget(array: np.ndarray) -> None:
    """Give the memory of an array that lies in a file back; what is needed of it again is read again."""
    owner = getattr(array.base, "obj", None)
    if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise"):  # not on Windows
        owner.madvise(mmap.MADV_DONTNEED)
