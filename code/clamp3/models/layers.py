from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, RobertaModel, XLMRobertaModel
from transformers.modeling_outputs import BaseModelOutput

HEAD_SIZE = 64
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


def masked_mean(hidden_states: Tensor, masks: Tensor) -> Tensor:
    """Mean over the unmasked positions: (batch, length, hidden), (batch, length) -> (batch, hidden), in float32."""
    weights = to_device(masks.unsqueeze(-1).float(), hidden_states.device)  # (batch, length, 1)
    return (hidden_states.float() * weights).sum(dim=1) / weights.sum(dim=1)


class GatherUniqueRows(torch.autograd.Function):
    """Some rows of (rows, hidden), none of them twice: gradients are copied back, where indexing would add them up."""

    @staticmethod
    def forward(context, rows: Tensor, chosen: Tensor) -> Tensor:
        context.save_for_backward(chosen)
        context.shape = rows.shape
        return rows.index_select(0, chosen)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(context.shape).index_copy_(0, context.saved_tensors[0], gradient), None


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a batch (batch, length) are: packed tensors hold these alone, item after item."""

    shape: tuple[int, int]
    real: Tensor | None = None  # (positions,): their numbers in the padded batch; None where nothing is padding
    attended: Tensor | None = None  # (batch, 1, 1, length): by every head and every query
    starts: Tensor | None = None  # (batch + 1,): where each item begins among the packed, and where the last one ends
    longest: int = 0  # item's length

    @classmethod
    def of(cls, masks: Tensor, device: torch.device) -> "Packing":
        """For tensors on `device`, by masks (batch, length); where these are on the CPU, nothing waits for it."""
        shape = (masks.shape[0], masks.shape[1])
        if masks.all():
            return cls(shape)
        masks = masks.bool()
        lengths = masks.sum(1, dtype=torch.int32)
        return cls(
            shape,
            real=to_device(masks.flatten().nonzero().squeeze(1), device),
            attended=to_device(masks[:, None, None, :], device),
            starts=to_device(F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), device),
            longest=int(lengths.max()),
        )

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, length, hidden) -> (positions, hidden)."""
        rows = padded.flatten(0, 1)
        return rows if self.real is None else GatherUniqueRows.apply(rows, self.real)

    def unpack(self, packed: Tensor) -> Tensor:
        """(positions, hidden) -> (batch, length, hidden), zero where there is padding."""
        if self.real is None:
            return packed.unflatten(0, self.shape)
        padded = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[-1])
        return padded.index_copy_(0, self.real, packed).unflatten(0, self.shape)

    def attend(self, projected: Sequence[Tensor], num_heads: int, dropout: nn.Dropout, is_causal: bool) -> Tensor:
        """Multi-head self-attention of packed positions (positions, hidden), each within its own item.

        `projected` holds queries, keys and values. Causal attention takes it that padding comes last in an item.
        """
        dropout_p = dropout.p if dropout.training else 0.0
        if self.real is not None and _attends_packed(projected[0], num_heads):
            heads = [part.unflatten(-1, (num_heads, -1)) for part in projected]  # (positions, heads, head size)
            items = (self.starts, self.starts, self.longest, self.longest)
            return torch.ops.aten._flash_attention_forward(*heads, *items, dropout_p, is_causal, False)[0].flatten(1)
        heads = [self.unpack(part).unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected]
        attended = None if is_causal else self.attended
        context = F.scaled_dot_product_attention(*heads, attended, dropout_p, is_causal)
        return self.pack(context.transpose(1, 2).flatten(2))


def _attends_packed(projected: Tensor, num_heads: int) -> bool:
    """Whether there is a kernel for items of different lengths: FlashAttention's, for NVIDIA's GPUs in half precision.

    It has no public name that drops out, but for nested tensors, which take longer to prepare than they save.
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


def is_packable(tower: nn.Module) -> bool:
    """Whether `encode` knows the layers of `tower`, so that they see real positions alone."""
    return isinstance(tower, BertModel | RobertaModel | XLMRobertaModel)


def encode(tower: nn.Module, masks: Tensor, **inputs: Tensor) -> BaseModelOutput:
    """What `tower` makes of `input_ids` or `inputs_embeds`: hidden states (batch, length, hidden), zero where masked.

    The same as the tower's own `forward`, but a BERT's layers see real positions alone: padding costs nothing there.
    Inputs and masks (batch, length) may be on the CPU; then nothing has to wait for the device.
    """
    inputs = {name: to_device(tensor, tower.device) for name, tensor in inputs.items()}
    if not is_packable(tower):
        return tower(**inputs, attention_mask=to_device(masks.long(), tower.device))
    embeddings = tower.embeddings(**inputs)  # (batch, length, hidden)
    packing = Packing.of(masks, embeddings.device)
    hidden_states = packing.pack(embeddings)  # (positions, hidden)
    run_layer = getattr(tower, "run_layer", encode_layer)  # training may compile it, or recompute what it keeps
    for layer in tower.encoder.layer:
        hidden_states = run_layer(layer, hidden_states, packing)
    return BaseModelOutput(last_hidden_state=packing.unpack(hidden_states))


def encode_layer(layer: nn.Module, hidden_states: Tensor, packing: Packing) -> Tensor:
    """One BERT layer over packed positions (positions, hidden)."""
    attention = layer.attention.self
    projected = [projection(hidden_states) for projection in (attention.query, attention.key, attention.value)]
    context = packing.attend(projected, attention.num_attention_heads, attention.dropout, is_causal=False)
    hidden_states = layer.attention.output(context, hidden_states)
    return layer.output(layer.intermediate(hidden_states), hidden_states)


def prepare_layers(towers: Iterable[nn.Module], compile_layers: bool, recompute_layers: bool) -> None:
    """Let training compile the layers of `towers`, or keep their inputs alone and compute the rest again."""
    run_layer = torch.compile(encode_layer, dynamic=True) if compile_layers else encode_layer
    if recompute_layers:
        run_layer = partial(checkpoint, run_layer, use_reentrant=False)
    for tower in towers:
        tower.run_layer = run_layer


def decode_layer(layer: nn.Module, hidden_states: Tensor, packing: Packing) -> Tensor:
    """One GPT-2 layer over packed positions (positions, hidden)."""
    attention = layer.attn
    projected = attention.c_attn(layer.ln_1(hidden_states)).chunk(3, dim=-1)
    context = packing.attend(projected, attention.num_heads, attention.attn_dropout, is_causal=True)
    hidden_states = hidden_states + attention.resid_dropout(attention.c_proj(context))
    return hidden_states + layer.mlp(layer.ln_2(hidden_states))
