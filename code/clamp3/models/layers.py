"""What the towers share: transformer layers that skip padding, means over positions, and how training runs layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clamp3.models.bert import Bert, BertConfig
from clamp3.models.packing import STEADY_ROWS, Packing, is_steady, to_device

HEAD_SIZE = 64


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
    packing = Packing.of(masks, tower.device)
    hidden_states = tower.embeddings(**inputs, pack=packing.pack)  # (positions, hidden)
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
    context = packing.attend(projected, attention.num_attention_heads, attention.dropout)
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
    context = packing.attend(projected, attention.num_heads, attention.attn_dropout)
    hidden_states = hidden_states + attention.resid_dropout(attention.c_proj(context))
    return hidden_states + layer.mlp(layer.ln_2(hidden_states))
