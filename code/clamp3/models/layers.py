"""What the towers share: transformer layers that skip padding, means over positions, and how training runs layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clamp3.models.bert import Bert, BertConfig

HEAD_SIZE = 64
STEADY_ROWS = 16  # of a matrix; a CPU's products of fewer round otherwise, by how many there are
FLASH_CAPABILITY, FLASH_HEAD_SIZE = (8, 0), 256  # what FlashAttention needs of a GPU, and how wide its heads may be


def bert_config(hidden_size: int, num_layers: int, max_length: int) -> BertConfig:
    """A BERT that reads embeddings, so that its own vocabulary is a dummy of one word."""
    return BertConfig(
        vocab_size=1,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // HEAD_SIZE,
        intermediate_size=hidden_size * 4,
        max_position_embeddings=max_length,
    )


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


def product(multiply: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`multiply(rows)` of (…, width), a matrix product, with the same bits however few rows there are."""
    flat = rows.flatten(0, -2)
    lacking = STEADY_ROWS - len(flat) if is_steady(rows.device) else 0
    if lacking <= 0:
        return multiply(rows)
    return multiply(F.pad(flat, (0, 0, 0, lacking)))[: len(flat)].unflatten(0, rows.shape[:-1])


def masked_mean(hidden_states: Tensor, masks: Tensor) -> Tensor:
    """Mean over the unmasked positions: (batch, length, hidden), (batch, length) -> (batch, hidden), in float32."""
    weights = to_device(masks.unsqueeze(-1).float(), hidden_states.device)  # (batch, length, 1)
    return (hidden_states.float() * weights).sum(dim=1) / weights.sum(dim=1)


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


@dataclass(frozen=True)
class Packing:
    """The unmasked positions of a padded batch (batch, length).

    Packed tensors (positions, …) hold these alone, item after item, so that layers do no work on padding; behind them
    are rows of zeros where there are fewer than STEADY_ROWS.
    """

    shape: tuple[int, int]
    real: Tensor | None = None  # (positions,): indices into the flattened padded batch; None without padding
    attended: Tensor | None = None  # (batch, 1, 1, length): attention mask for all heads and queries
    starts: Tensor | None = None  # (batch + 1,): offsets of the items among packed positions, and the end
    longest: int = 0  # length of the longest item
    runs: tuple[tuple[int, int], ...] = ()  # (items, length) of neighbours of one length; where states are steady
    filling: int = 0  # rows of zeros

    @classmethod
    def of(cls, masks: Tensor, device: torch.device) -> "Packing":
        """The packing that `masks` (batch, length) describe, for tensors on `device`.

        With masks on the CPU, nothing has to wait for the device.
        """
        shape = (masks.shape[0], masks.shape[1])
        steady = is_steady(device)
        if masks.all() and not (steady and masks.numel() < STEADY_ROWS):
            return cls(shape)
        masks = masks.bool()
        lengths = masks.sum(1, dtype=torch.int32)
        real = masks.flatten().nonzero().squeeze(1)
        if steady:
            runs = tuple((len(list(run)), length) for length, run in groupby(lengths.tolist()))
            return cls(shape, real, runs=runs, filling=max(0, STEADY_ROWS - len(real)))
        return cls(
            shape,
            real=to_device(real, device),
            attended=to_device(masks[:, None, None, :], device),
            starts=to_device(F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), device),
            longest=int(lengths.max()),
        )

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, length, hidden) -> (positions, hidden)."""
        rows = padded.flatten(0, 1)
        if self.real is None:
            return rows
        packed = GatherUniqueRows.apply(rows, self.real)
        return F.pad(packed, (0, 0, 0, self.filling)) if self.filling else packed

    def unpack(self, packed: Tensor) -> Tensor:
        """(positions, hidden) -> (batch, length, hidden), zero where there is padding."""
        if self.real is None:
            return packed.unflatten(0, self.shape)
        padded = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[-1])
        return padded.index_copy_(0, self.real, packed[: len(self.real)]).unflatten(0, self.shape)

    def attend(self, projected: Sequence[Tensor], num_heads: int, dropout: nn.Dropout, is_causal: bool) -> Tensor:
        """Multi-head self-attention of packed positions (positions, hidden), each within its own item.

        `projected` holds queries, keys and values. Causal attention relies on padding being at the end of an item.
        """
        dropout_p = dropout.p if dropout.training else 0.0
        if self.real is not None and _attends_packed(projected[0], num_heads):
            heads = [part.unflatten(-1, (num_heads, -1)) for part in projected]  # (positions, heads, head size)
            items = (self.starts, self.starts, self.longest, self.longest)
            return torch.ops.aten._flash_attention_forward(*heads, *items, dropout_p, is_causal, False)[0].flatten(1)
        if self.runs:
            return self._attend_by_length(projected, num_heads, is_causal)
        heads = [self.unpack(part).unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected]
        attended = None if is_causal else self.attended
        context = F.scaled_dot_product_attention(*heads, attended, dropout_p, is_causal)  # type: ignore[call-arg]
        return self.pack(context.transpose(1, 2).flatten(2))

    def _attend_by_length(self, projected: Sequence[Tensor], num_heads: int, is_causal: bool) -> Tensor:
        """`attend` for items of one length at a time: the length of a padded batch would show in the last bits."""
        context = torch.zeros_like(projected[0])
        start = 0
        for count, length in self.runs:
            stop = start + count * length
            parts = [part[start:stop].unflatten(0, (count, length)) for part in projected]
            query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
            context[start:stop].unflatten(0, (count, length)).copy_(attended.transpose(1, 2).flatten(2))
            start = stop
        return context


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


def is_packable(tower: nn.Module) -> TypeGuard[Bert]:
    """Whether `encode` can run the layers of `tower` on packed positions: those of BERT and RoBERTa."""
    return isinstance(tower, Bert)


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of a batch, by the names that transformers has for it."""

    last_hidden_state: Tensor  # (batch, length, hidden)
    hidden_states: tuple[Tensor, ...] | None = None  # the embeddings, then what each layer gives; where asked for


def encode(tower: Any, masks: Tensor, output_hidden_states: bool = False, **inputs: Tensor) -> Encoded:
    """The hidden states (batch, length, hidden) of `input_ids` or `inputs_embeds`; of all layers too where asked for.

    Equal to transformers' own `forward` at unmasked positions; BERT's and RoBERTa's layers skip the others, which are
    zero. Inputs and masks (batch, length) may be on the CPU; then nothing has to wait for the device.
    """
    inputs = {name: to_device(tensor, tower.device) for name, tensor in inputs.items()}
    if not is_packable(tower):
        attention_mask = to_device(masks.long(), tower.device)
        return tower(**inputs, attention_mask=attention_mask, output_hidden_states=output_hidden_states)
    embeddings = tower.embeddings(**inputs)  # (batch, length, hidden)
    packing = Packing.of(masks, embeddings.device)
    hidden_states = packing.pack(embeddings)  # (positions, hidden)
    run_layer = getattr(tower, "run_layer", encode_layer)  # see `prepare_layers`
    all_states = [hidden_states]  # the embeddings, then what each layer gives
    for layer in tower.encoder.layer:
        hidden_states = run_layer(layer, hidden_states, packing)
        if output_hidden_states:
            all_states.append(hidden_states)
    unpacked = tuple(map(packing.unpack, all_states)) if output_hidden_states else None
    return Encoded(packing.unpack(hidden_states), unpacked)


def encode_layer(layer: Any, hidden_states: Tensor, packing: Packing) -> Tensor:
    """One BERT layer over packed positions (positions, hidden)."""
    attention = layer.attention.self
    projected = [projection(hidden_states) for projection in (attention.query, attention.key, attention.value)]
    context = packing.attend(projected, attention.num_attention_heads, attention.dropout, is_causal=False)
    hidden_states = layer.attention.output(context, hidden_states)
    return layer.output(layer.intermediate(hidden_states), hidden_states)


def prepare_layers(towers: Iterable[nn.Module], compile_layers: bool, recompute_layers: bool) -> None:
    """Let training compile the layers of `towers`, or recompute their activations (gradient checkpointing)."""

    def prepared(run: Callable[..., Any]) -> Callable[..., Any]:
        run = torch.compile(run, dynamic=True) if compile_layers else run
        return partial(checkpoint, run, use_reentrant=False) if recompute_layers else run

    if not (compile_layers or recompute_layers):
        return
    run_layer = prepared(encode_layer)
    for tower in towers:
        if is_packable(tower):
            tower.run_layer = run_layer  # type: ignore[assignment]
        else:
            for layer in outer_layers(tower):
                layer.forward = prepared(layer.forward)


def outer_layers(tower: nn.Module) -> list[nn.Module]:
    """The layers of a transformer of any family: what its outermost lists of modules hold, or else itself."""

    def found(module: nn.Module) -> list[nn.Module]:
        return [
            layer
            for child in module.children()
            for layer in (_flat(child) if isinstance(child, nn.ModuleList) else found(child))
        ]

    return found(tower) or [tower]


def _flat(layers: nn.ModuleList) -> list[nn.Module]:
    return [part for layer in layers for part in (_flat(layer) if isinstance(layer, nn.ModuleList) else [layer])]


def decode_layer(layer: Any, hidden_states: Tensor, packing: Packing) -> Tensor:
    """One GPT-2 layer over packed positions (positions, hidden)."""
    attention = layer.attn
    projected = attention.c_attn(layer.ln_1(hidden_states)).chunk(3, dim=-1)
    context = packing.attend(projected, attention.num_heads, attention.attn_dropout, is_causal=True)
    hidden_states = hidden_states + attention.resid_dropout(attention.c_proj(context))
    return hidden_states + layer.mlp(layer.ln_2(hidden_states))
