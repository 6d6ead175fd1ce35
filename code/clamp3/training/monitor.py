"""How far a run has come, for those who watch it: a library says so to whoever asks, and shows nothing itself."""

from types import TracebackType
from typing import Any, Protocol


class Bar(Protocol):
    """What shows the progress of a loop; a tqdm bar is one."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...

    def update(self, n: float, /) -> Any:
        """So many more items are done."""

    def set_postfix(self, **figures: str) -> Any:
        """Figures of the newest items."""


class MakeBar(Protocol):
    """Makes the bar of a loop over `total` items, of which some are done."""

    def __call__(self, title: str, total: int, done: int = 0, /) -> Bar: ...


class NoBar:
    """A Bar that nobody sees."""

    def __init__(self, title: str, total: int, done: int = 0, /):
        pass

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: float, /) -> None:
        pass

    def set_postfix(self, **figures: str) -> None:
        pass
