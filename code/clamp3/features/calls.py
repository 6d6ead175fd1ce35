"""Calls of an Embedder's `embed_*` methods: what they ask for, the types they return, and how they name items."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, Protocol, TypeVar, cast, overload

import numpy as np
import torch

from clamp3.formats.abc import has_notes
from clamp3.formats.midi import is_mtf
from clamp3.io.reports import describe_error

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
KEY = re.compile(r"^K:", re.MULTILINE)  # the one field that all ABC has
Errors = Literal["raise", "skip", "return"]


@dataclass(frozen=True)
class Wanted:
    """What a call of an `embed_*` method asks for."""

    normalize: bool
    pooled: bool
    errors: Errors
    progress: bool

    def __post_init__(self) -> None:
        if self.errors not in ("raise", "skip", "return"):
            raise ValueError(f'errors must be "raise", "skip" or "return", not {self.errors!r}')


class EmbedMethod(Protocol[T_contra]):
    """What the types of most `embed_*` methods of an Embedder have in common; with errors="return", a pair."""

    @overload
    def __call__(
        self,
        items: Sequence[T_contra],
        /,
        normalize: bool = ...,
        pooled: Literal[True] = ...,
        *,
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self,
        items: Sequence[T_contra],
        /,
        normalize: bool = ...,
        *,
        pooled: Literal[False],
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> list[np.ndarray]: ...

    @overload
    def __call__(
        self,
        items: Sequence[T_contra],
        /,
        normalize: bool = ...,
        pooled: bool = ...,
        *,
        errors: Errors = ...,
        progress: bool = ...,
    ) -> Any: ...


class _Bound(Protocol[T_contra]):
    def __get__(self, embedder: Any, kind: Any = None) -> EmbedMethod[T_contra]: ...


def overloaded(method: "Callable[Concatenate[Any, Sequence[T], ...], Any]") -> _Bound[T]:
    """`method`, with the types of an EmbedMethod."""
    return cast(_Bound[T], method)


def as_list(method: str, items: Iterable[T]) -> list[T]:
    """The items of a call of `method`. Raises ValueError for one item in place of a list of them."""
    if isinstance(items, str | bytes | Path | np.ndarray | torch.Tensor) or not isinstance(items, Iterable):
        raise ValueError(f"give a list of items, {method}([item]), not one {type(items).__name__}")
    return list(items)


def kind_of(item: Any) -> str:
    """What `embed_any` takes `item` for: "file", "text", "symbolic", "midi", "musicxml" or "sound"."""
    if isinstance(item, Path):
        return "file"
    if isinstance(item, str):
        is_abc = KEY.search(item) is not None and has_notes(item)
        return "symbolic" if is_abc or is_mtf(item) else "text"
    if hasattr(item, "ticks_per_beat"):  # of mido
        return "midi"
    if isinstance(item, bytes):
        start = item.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
        if b"MThd" in item[:32]:  # of a RIFF file too
            return "midi"
        return "musicxml" if start == b"<" or item.startswith(b"PK") else "sound"
    return "sound"


def numbered(items: Sequence[Any]) -> list[str]:
    """What errors call items that have no name: paths are their own."""
    return [str(item) if isinstance(item, Path) else f"item {index}" for index, item in enumerate(items)]


def of_item(error: Exception, name: str) -> Exception:
    """`error` with the name of the item that has it, where it does not name it by itself."""
    if isinstance(error, OSError):
        return error
    named = ValueError(f"{name}: {describe_error(error)}")
    named.__cause__ = error
    return named
