"""Requests that come at the same time share a batch of the model."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST = 64  # items in a batch


class Batcher(Generic[T, R]):
    """Calls `work` with all items that wait, in a thread of its own: none waits for more than the batch before it.

    `work` returns a result for each item, or the exception that its request is to raise.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], name: str, most: int = MOST):
        self._work, self._most = work, most
        self._waiting: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        self.batches = self.items = 0  # that were worked on
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def __call__(self, item: T) -> R:
        """What `work` makes of `item`."""
        future: Future[R] = Future()
        self._waiting.put((item, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread, once it has done what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._most and not self._waiting.empty():
                if (another := self._waiting.get()) is None:
                    self._waiting.put(None)  # the end comes after this batch
                    break
                batch.append(another)
            self._answer([(item, future) for item, future in batch if future.set_running_or_notify_cancel()])

    def _answer(self, batch: list[tuple[T, "Future[R]"]]) -> None:
        try:
            results = self._work([item for item, _ in batch]) if batch else []
        except Exception as error:  # told to whoever waits
            results = [error] * len(batch)
        self.batches += bool(batch)
        self.items += len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
