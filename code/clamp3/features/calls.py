"""Calls of an Embedder's `embed_*` methods: what they ask for, the types they return, and how they name items."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, Concatenate, Literal, Protocol, TypeVar, cast, overload

import numpy as np

from clamp3.formats.abc import has_notes
from clamp3.formats.midi import is_mtf
from clamp3.inputs.segments import Segment
from clamp3.io.reports import describe_error

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
KEY = re.compile(r"^K:", re.MULTILINE)  # the one field that all ABC has
SHORTEST_SOUND = 2400  # samples: a tenth of a second
ONE_ITEM = (str, bytes, bytearray, memoryview, PathLike, Mapping)  # which are or may be iterable
SOUNDS = (bytearray, memoryview, np.ndarray, tuple, list, Mapping)
Errors = Literal["raise", "skip", "return"]
Layers = Literal["last", "all"]


@dataclass(frozen=True)
class Positions:
    """What a tower reads of one item, position by position, projected into the shared space.

    An item longer than its tower takes is read in segments, of which the last overlaps with the one before: positions
    that both hold have two rows, with the states that each segment gives them.
    """

    states: np.ndarray  # (positions, clamp3_hidden_size) float32
    weights: np.ndarray  # (positions,) float32, which sum to 1: each one's share in the item's global feature
    segments: np.ndarray  # (positions,) int: the number of the segment that a row comes from
    indices: np.ndarray  # (positions,) int: its place in the item's whole sequence, of tokens, patches or frames

    @property
    def feature(self) -> np.ndarray:
        """The item's global feature (clamp3_hidden_size,): the weighted sum of its states."""
        return self.weights @ self.states

    @classmethod
    def of(cls, parts: Sequence[np.ndarray], segments: Sequence[Segment]) -> "Positions":
        """From the projected states (length or more, clamp3_hidden_size) of each segment."""
        total = sum(segment.weight for segment in segments)
        return cls(
            np.concatenate([part[: segment.length] for part, segment in zip(parts, segments, strict=True)]),
            np.concatenate([np.full(one.length, one.weight / one.length / total, np.float32) for one in segments]),
            np.repeat(np.arange(len(segments)), [segment.length for segment in segments]),
            np.concatenate([np.arange(segment.start, segment.stop) for segment in segments]),
        )


@dataclass(frozen=True)
class Output:
    """What is made of a tower's hidden states, for each item.

    | pooled | layers | projected | |
    |---|---|---|---|
    | True | "last" | | the global feature (clamp3_hidden_size,) |
    | True | "all" | | the mean over positions of each layer (layers + 1, hidden) |
    | False | "last" | False | the last layer's states (length, hidden) |
    | False | "all" | False | the states of each layer (layers + 1, length, hidden), the first of them the embeddings |
    | False | "last" | True | Positions |
    """

    pooled: bool = True
    layers: Layers = "last"
    projected: bool = False

    def __post_init__(self) -> None:
        if self.layers not in ("last", "all"):
            raise ValueError(f'layers must be "last" or "all", not {self.layers!r}')
        if self.projected and (self.pooled or self.layers == "all"):
            raise ValueError('projected=True is for the positions of the last layer: pooled=False, layers="last"')

    @property
    def is_global(self) -> bool:
        """Whether it is the global feature, which is as long for all items."""
        return self.pooled and self.layers == "last"

    def join(self, parts: Sequence[np.ndarray], segments: Sequence[Segment]) -> "np.ndarray | Positions":
        """An item's output from those of its segments: (…, length or more, hidden) where they are not pooled."""
        if self.projected:
            return Positions.of(parts, segments)
        if self.pooled:
            return np.average(parts, axis=0, weights=[one.weight for one in segments]).astype(np.float32)
        pairs = zip(parts, segments, strict=True)
        return np.concatenate([part[..., one.covered : one.length, :] for part, one in pairs], axis=-2)


@dataclass(frozen=True)
class Wanted:
    """What a call of an `embed_*` method asks for."""

    normalize: bool
    output: Output
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
        layers: Literal["last"] = ...,
        projected: Literal[False] = ...,
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
        layers: Layers = ...,
        projected: Literal[False] = ...,
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
        layers: Layers = ...,
        projected: bool = ...,
        errors: Errors = ...,
        progress: bool = ...,
    ) -> Any: ...


class _Bound(Protocol[T_contra]):
    def __get__(self, embedder: Any, kind: Any = None) -> EmbedMethod[T_contra]: ...


def overloaded(method: "Callable[Concatenate[Any, Sequence[T], ...], Any]") -> _Bound[T]:
    """`method`, with the types of an EmbedMethod."""
    return cast(_Bound[T], method)


def is_tensor(item: Any) -> bool:
    """Whether it is one of PyTorch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Tensor)


def as_list(method: str, items: Iterable[T]) -> list[T]:
    """The items of a call of `method`. Raises ValueError for one item in place of a list of them."""
    is_list = isinstance(items, Iterable) and not isinstance(items, ONE_ITEM) and not is_tensor(items)
    if isinstance(items, np.ndarray):  # a column of strings or objects, but no samples
        is_list = items.ndim == 1 and items.dtype.kind in "OU"
    elif isinstance(items, tuple):  # samples and their rate
        is_list = not (len(items) == 2 and isinstance(items[1], Number))
    if not is_list or any(hasattr(items, name) for name in ("read", "ticks_per_beat", "columns")):
        raise ValueError(f"give a list of items, {method}([item]), not one {type(items).__name__}")
    return list(items)


def as_array(item: Any) -> Any:
    """`item`; in place of a tensor, an array of its values."""
    return item.detach().cpu().float().numpy() if is_tensor(item) else item


def as_features(items: Any) -> np.ndarray | None:
    """Features (n, hidden) in place of items: an array, a tensor, or a list of their rows; None for anything else.

    A row is no longer than SHORTEST_SOUND, which has too few samples to be heard.
    """
    if isinstance(items, list | tuple) and items:
        rows = all((isinstance(item, np.ndarray) or is_tensor(item)) and item.ndim == 1 for item in items)
        if not rows or len({len(item) for item in items}) > 1 or len(items[0]) >= SHORTEST_SOUND:
            return None
        return np.stack([as_array(item) for item in items])
    items = as_array(items)
    return items if isinstance(items, np.ndarray) and items.ndim == 2 else None


def checked_count(name: str, value: Any, least: int) -> int:
    """`value`. Raises ValueError where it is no whole number, or under `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if index(value) < least:
        raise ValueError(f"{name} must be {least} or more, not {value!r}")
    return index(value)


def checked_text(item: Any) -> str:
    """`item`, a text or music in text. Raises ValueError for anything else."""
    if not isinstance(item, str):
        advice = "; embed_files reads files" if isinstance(item, Path) else ""
        raise ValueError(f"a str is needed, not {type(item).__name__}{advice}")
    return item


def as_sound(item: Any) -> Any:
    """`item`; of a row of sound as `datasets` has it, what it holds: samples and their rate, bytes or a path."""
    if not isinstance(item, Mapping):
        return item
    if "array" in item and "sampling_rate" in item:
        return item["array"], item["sampling_rate"]
    found = item.get("bytes") or item.get("path")
    if found is None:
        raise ValueError("sound in a dict has an array and a sampling_rate, or bytes, or a path")
    return found


def kind_of(item: Any) -> str:
    """What `embed_any` takes `item` for: "file", "text", "symbolic", "midi", "musicxml" or "sound"; else "unknown"."""
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
    return "sound" if isinstance(item, SOUNDS) or is_tensor(item) or hasattr(item, "read") else "unknown"


def numbered(items: Sequence[Any], noun: str = "item") -> list[str]:
    """What errors call items that have no name: paths are their own."""
    return [str(item) if isinstance(item, Path) else f"{noun} {place}" for place, item in enumerate(items)]


def of_item(error: Exception, name: str) -> Exception:
    """`error` with the name of the item that has it, where it does not name it by itself."""
    if isinstance(error, OSError) and error.filename is not None:
        return error
    kind = OSError if isinstance(error, OSError) else ValueError
    named = kind(f"{name}: {describe_error(error)}")
    named.__cause__ = error
    return named
