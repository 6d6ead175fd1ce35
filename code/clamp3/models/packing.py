"""Batches without their padding: the positions that count alone, and attention among those of each item."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEADY_ROWS = 16  # of a matrix; a CPU's products of fewer round otherwise, by how many there are
FLASH_CAPABILITY, FLASH_HEAD_SIZE = (8, 0), 256  # what FlashAttention needs of a GPU, and how wide its heads may be


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for what the device is busy with."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


def is_steady(device: torch.device) -> bool:
    """Whether an item's states are to be the same to the last bit, whatever else is in its batch.

    They are on CPUs in inference mode, so that an extraction that was ended and goes on writes the same files.
    """
    return device.type == "cpu" and torch.is_inference_mode_enabled()


class GatherUniqueRows(torch.autograd.Function):
    """Selected rows of (rows, hidden), none of them twice: `backward` can copy gradients, where indexing adds them."""

    @staticmethod
    def forward(context: Any, rows: Tensor, chosen: Tensor) -> Tensor:
        context.save_for_backward(chosen)
        context.shape = rows.shape
        return rows.index_select(0, chosen)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(context.shape).index_copy_(0, context.saved_tensors[0], gradient), None


def scatter(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """(rows, width) -> (count, width): each row at its place, and zeros elsewhere."""
    return rows.new_zeros(count, rows.shape[-1]).index_copy_(0, places, rows)


def attend_with_dropout(
    heads: Sequence[Tensor], attended: Tensor | None, is_causal: bool, dropout: nn.Dropout
) -> Tensor:
    """What `F.scaled_dot_product_attention` computes; it has nothing fast with dropout on CPUs."""
    query, key, value = heads
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT  # (rows, heads, length, length)
    if is_causal:
        attended = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attended is not None:
        scores.masked_fill_(~attended, -math.inf)
    return dropout(scores.softmax(-1)) @ value


@dataclass(frozen=True)
class Packing:
    """The unmasked positions of a padded batch (batch, length).

    Packed tensors (positions, …) hold these alone, item after item, so that layers do no work on padding; behind them
    are rows of zeros where there are fewer than STEADY_ROWS.

    Attention takes a layout of its own, (rows, length), of which a row holds an item or more.
    """

    shape: tuple[int, int]
    layout: tuple[int, int]
    is_causal: bool = False
    real: Tensor | None = None  # (positions,): indices into the flattened padded batch; None without padding
    slots: Tensor | None = None  # (positions,): indices into the flattened layout
    attended: Tensor | None = None  # (rows, 1, 1 or length, length): attention mask for all heads
    starts: Tensor | None = None  # (batch + 1,): offsets of the items among packed positions, and the end
    longest: int = 0  # length of the longest item
    runs: tuple[tuple[int, int], ...] = ()  # (items, length) of neighbours of one length; where states are steady
    filling: int = 0  # rows of zeros

    @classmethod
    def of(cls, masks: Tensor, device: torch.device, is_causal: bool = False) -> "Packing":
        """The packing that `masks` (batch, length) describe, for tensors on `device`.

        With masks on the CPU, nothing has to wait for the device. With `is_causal`, positions attend to themselves and
        to those before, which relies on padding being at the end of an item.
        """
        shape, steady = (masks.shape[0], masks.shape[1]), is_steady(device)
        if masks.all() and not (steady and masks.numel() < STEADY_ROWS):
            return cls(shape, shape, is_causal)
        masks = masks.bool()
        lengths = masks.sum(1)
        real = masks.flatten().nonzero().squeeze(1)
        if steady:
            runs = tuple((len(list(run)), length) for length, run in groupby(lengths.tolist()))
            return cls(shape, shape, is_causal, real, runs=runs, filling=max(0, STEADY_ROWS - len(real)))
        if device.type == "cpu":
            layout, slots, attended = share_rows(lengths, is_causal)
            return cls(shape, layout, is_causal, real, slots, attended)
        real = to_device(real, device)
        return cls(
            shape,
            shape,
            is_causal,
            real,
            slots=real,
            attended=None if is_causal else to_device(masks[:, None, None, :], device),
            starts=to_device(F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), device),
            longest=int(lengths.max()),
        )

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, length, …) -> (positions, …)."""
        rows = padded.flatten(0, 1)
        return self._filled(rows if self.real is None else GatherUniqueRows.apply(rows, self.real))

    def unpack(self, packed: Tensor) -> Tensor:
        """(positions, hidden) -> (batch, length, hidden), zero where there is padding."""
        if self.real is None:
            return packed.unflatten(0, self.shape)
        batch, length = self.shape
        return scatter(packed[: len(self.real)], self.real, batch * length).unflatten(0, self.shape)

    def attend(self, projected: Sequence[Tensor], num_heads: int, dropout: nn.Dropout) -> Tensor:
        """Multi-head self-attention of packed positions (positions, hidden), each within its own item.

        `projected` holds queries, keys and values.
        """
        dropout_p = dropout.p if dropout.training else 0.0
        if self.starts is not None and _attends_packed(projected[0], num_heads):
            heads = [part.unflatten(-1, (num_heads, -1)) for part in projected]  # (positions, heads, head size)
            items = (self.starts, self.starts, self.longest, self.longest)
            found = torch.ops.aten._flash_attention_forward(*heads, *items, dropout_p, self.is_causal, False)
            return found[0].flatten(1)
        if self.runs:
            return self._attend_by_length(projected, num_heads)
        places = self._places(num_heads)
        heads = [self._heads(part, num_heads, places) for part in projected]
        is_causal = self.is_causal and self.attended is None
        if dropout_p and projected[0].device.type == "cpu" and not torch.compiler.is_compiling():
            context = attend_with_dropout(heads, self.attended, is_causal, dropout)
        else:
            context = F.scaled_dot_product_attention(*heads, self.attended, dropout_p, is_causal)  # type: ignore[call-arg]
        if places is None:
            return context.transpose(1, 2).flatten(2).flatten(0, 1)
        return GatherUniqueRows.apply(context.flatten(0, 2), places).view_as(projected[0])

    def _places(self, num_heads: int) -> Tensor | None:
        """Where each head of each position is among the layout's (rows * heads * length): (positions * heads,)."""
        if self.slots is None:
            return None
        length = self.layout[1]
        heads = torch.arange(num_heads, device=self.slots.device) + self.slots[:, None] // length * num_heads
        return (heads * length + self.slots[:, None] % length).flatten()

    def _heads(self, part: Tensor, num_heads: int, places: Tensor | None) -> Tensor:
        """(positions, hidden) -> (rows, heads, length, head size)."""
        rows, length = self.layout
        if places is None:
            return part.view(rows, length, num_heads, -1).transpose(1, 2)
        return scatter(part.reshape(len(places), -1), places, rows * num_heads * length).view(
            rows, num_heads, length, -1
        )

    def _attend_by_length(self, projected: Sequence[Tensor], num_heads: int) -> Tensor:
        """`attend` for items of one length at a time: the length of a padded batch would show in the last bits."""
        context = torch.zeros_like(projected[0])
        start = 0
        for count, length in self.runs:
            stop = start + count * length
            parts = [part[start:stop].unflatten(0, (count, length)) for part in projected]
            query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
            context[start:stop].unflatten(0, (count, length)).copy_(attended.transpose(1, 2).flatten(2))
            start = stop
        return context

    def _filled(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(self.filling, *rows.shape[1:])]) if self.filling else rows


def share_rows(lengths: Tensor, is_causal: bool) -> tuple[tuple[int, int], Tensor, Tensor]:
    """A layout (rows, length) with room for items of `lengths` (batch,) and little else: several items share a row.

    Returns it, each position's index in it (positions,), and its attention mask (rows, 1, length, length): positions
    attend to those of their own item and, with `is_causal`, not to later ones.
    """
    begins, (rows, length) = first_slots(lengths.tolist())
    ends = lengths.cumsum(0)
    slots = torch.arange(int(ends[-1])) + (torch.tensor(begins) - ends + lengths).repeat_interleave(lengths)
    items = torch.full((rows * length,), -1)
    items[slots] = torch.arange(len(lengths)).repeat_interleave(lengths)
    items = items.view(rows, 1, length)
    attended = items.mT == items  # of padding too, which is an item of its own: no row of scores may be empty
    if is_causal:
        attended &= torch.ones(length, length, dtype=torch.bool).tril()
    return (rows, length), slots, attended[:, None]


def first_slots(lengths: list[int]) -> tuple[list[int], tuple[int, int]]:
    """Where each item begins in a layout (rows, longest) of which none is cut, and that layout.

    Each row takes the longest item that is left, then the shortest ones as far as there is room.
    """
    order = deque(sorted(range(len(lengths)), key=lengths.__getitem__))
    begins, rows, longest = [0] * len(lengths), 0, max(lengths)
    while order:
        item = order.pop()
        place = begins[item] = rows * longest
        place += lengths[item]
        rows += 1
        while order and place + lengths[order[0]] <= rows * longest:
            item = order.popleft()
            begins[item] = place
            place += lengths[item]
    return begins, (rows, longest)


def _attends_packed(projected: Tensor, num_heads: int) -> bool:
    """Whether FlashAttention can attend within packed items: on NVIDIA GPUs, in half precision.

    The only public interface to it that supports dropout is nested tensors, which cost more to prepare than they save.
    `torch.backends.cuda.enable_flash_sdp(False)` turns it off.
    """
    if not projected.is_cuda or torch.version.hip or not torch.backends.cuda.flash_sdp_enabled():
        return False
    head_size = projected.shape[-1] // num_heads
    return (
        projected.dtype in (torch.bfloat16, torch.float16)
        and head_size % 8 == 0
        and head_size <= FLASH_HEAD_SIZE
        and torch.cuda.get_device_capability(projected.device) >= FLASH_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
    )
