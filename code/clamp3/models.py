"""The networks: M3 (symbolic encoder and its character decoder) and CLaMP 3 (text, symbolic and audio towers).

Parameter names are those of the released checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.modeling_outputs import BaseModelOutput

from clamp3.errors import UserError
from clamp3.losses import ClipLoss
from clamp3.patchilizer import PAD_ID, VOCAB_SIZE
from clamp3.sizes import XLM_R_BASE, ModelSizes

HEAD_SIZE = 64
IGNORED_LABEL = -100
FLASH_CAPABILITY, FLASH_HEAD_SIZE = (8, 0), 256  # what FlashAttention needs of a GPU, and how wide its heads may be


def text_config(name: str):
    """The configuration of the text model `name`. XLM-R base's is known here, so that it needs no network.

    Raises UserError where there is none.
    """
    if name == XLM_R_BASE:
        return XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"no configuration of the text model {name}: {str(error).strip().splitlines()[0]}") from error


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


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for what the device is busy with."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


def masked_mean(hidden_states: Tensor, masks: Tensor) -> Tensor:
    """Mean over the unmasked positions: (batch, length, hidden), (batch, length) -> (batch, hidden), in float32."""
    weights = copied(masks.unsqueeze(-1).float(), hidden_states.device)  # (batch, length, 1)
    return (hidden_states.float() * weights).sum(dim=1) / weights.sum(dim=1)


class RowsOnce(torch.autograd.Function):
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
            real=copied(masks.flatten().nonzero().squeeze(1), device),
            attended=copied(masks[:, None, None, :], device),
            starts=copied(F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), device),
            longest=int(lengths.max()),
        )

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, length, hidden) -> (positions, hidden)."""
        rows = padded.flatten(0, 1)
        return rows if self.real is None else RowsOnce.apply(rows, self.real)

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


def encode(tower: nn.Module, masks: Tensor, **inputs: Tensor) -> BaseModelOutput:
    """What `tower` makes of `input_ids` or `inputs_embeds`: hidden states (batch, length, hidden), zero where masked.

    The same as the tower's own `forward`, but a BERT's layers see real positions alone: padding costs nothing there.
    Inputs and masks (batch, length) may be on the CPU; then nothing has to wait for the device.
    """
    inputs = {name: copied(tensor, tower.device) for name, tensor in inputs.items()}
    if not isinstance(tower, BertModel | RobertaModel | XLMRobertaModel):
        return tower(**inputs, attention_mask=copied(masks.long(), tower.device))
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


def decode_layer(layer: nn.Module, hidden_states: Tensor, packing: Packing) -> Tensor:
    """One GPT-2 layer over packed positions (positions, hidden)."""
    attention = layer.attn
    projected = attention.c_attn(layer.ln_1(hidden_states)).chunk(3, dim=-1)
    context = packing.attend(projected, attention.num_heads, attention.attn_dropout, is_causal=True)
    hidden_states = hidden_states + attention.resid_dropout(attention.c_proj(context))
    return hidden_states + layer.mlp(layer.ln_2(hidden_states))


class PatchEmbedding(nn.Linear):
    """`Linear` over the concatenated one-hot codes of a patch, as the sum of the rows that the ones select."""

    def __init__(self, patch_size: int, hidden_size: int):
        super().__init__(patch_size * VOCAB_SIZE, hidden_size)
        self.patch_size = patch_size
        self.store_by_character()

    def store_by_character(self) -> None:
        """Lay the weight out in memory with one row per character, so that `forward` needs no transposed copy.

        Shape, values and names stay. Call it again after a load that replaces the parameter.
        """
        self.weight.data = self.weight.data.t().contiguous().t()

    def forward(self, patches: Tensor) -> Tensor:
        """(…, patch_size) ids -> (…, hidden). Patches may stay on the CPU; then nothing has to wait for the device.

        Most patches are far shorter than they may be, and what fills them up is the same everywhere: those rows are
        added as a product, and only characters are looked up.
        """
        device, weight = self.weight.device, self.weight.t().contiguous()
        ids = patches.reshape(-1, self.patch_size)
        filled = ids != PAD_ID
        offsets = torch.arange(0, self.in_features, VOCAB_SIZE, device=ids.device, dtype=torch.int32)
        rows = (ids.int() + offsets)[filled]
        ends = filled.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        starts = F.pad(ends[:-1], (1, 0))
        embeddings = F.embedding_bag(copied(rows, device), weight, copied(starts, device), mode="sum")
        with torch.autocast(device.type, enabled=False):
            filling = copied(~filled, device).to(weight.dtype) @ weight[PAD_ID::VOCAB_SIZE]
        return (embeddings + filling + self.bias).view(*patches.shape[:-1], -1)


class M3PatchEncoder(nn.Module):
    """Patches -> hidden states (CLaMP 2 paper, M3's encoder)."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.patch_size = sizes.patch_size
        self.patch_embedding = PatchEmbedding(sizes.patch_size, sizes.m3_hidden_size)
        self.base = BertModel(bert_config(sizes.m3_hidden_size, sizes.patch_num_layers, sizes.patch_length))

    def forward(self, input_patches: Tensor, input_masks: Tensor):
        """Ids (batch, length, patch_size) or (batch, length * patch_size), masks (batch, length) -> BERT's output."""
        patches = input_patches.reshape(len(input_patches), -1, self.patch_size)
        return encode(self.base, input_masks, inputs_embeds=self.patch_embedding(patches))


class M3TokenDecoder(nn.Module):
    """Spells a patch, character by character, from its hidden state (CLaMP 2 paper, M3's decoder)."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.base = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB_SIZE,
                n_positions=sizes.patch_size,
                n_embd=sizes.m3_hidden_size,
                n_layer=sizes.token_num_layers,
                n_head=sizes.m3_hidden_size // HEAD_SIZE,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def forward(self, patch_features: Tensor, target_patches: Tensor) -> Tensor:
        """Mean cross-entropy of `target_patches` (patches, patch_size) given `patch_features` (patches, hidden).

        The same as GPT-2's own `forward`, but over characters alone: most patches are far shorter than they may be.
        Targets may stay on the CPU; then nothing has to wait for the device.
        """
        device, gpt = patch_features.device, self.base.transformer
        targets = target_patches.long()
        filled = targets != PAD_ID
        packing = Packing.of(filled, device)
        following = F.pad(targets[:, 1:], (0, 1), value=PAD_ID)[filled]  # (characters,), as all below
        labels = copied(following.masked_fill(following == PAD_ID, IGNORED_LABEL), device)
        characters = copied(targets[filled], device)
        patches, places = (copied(part, device) for part in filled.nonzero(as_tuple=True))
        embeddings = torch.where((places == 0)[:, None], patch_features[patches], gpt.wte(characters))
        hidden_states = gpt.drop(embeddings + gpt.wpe(places))  # (characters, hidden)
        for layer in gpt.h:
            hidden_states = decode_layer(layer, hidden_states, packing)
        logits = self.base.lm_head(gpt.ln_f(hidden_states))
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL)


class M3Model(nn.Module):
    """The symbolic encoder with the decoder that trains it: patches are reconstructed from their hidden states."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.encoder = M3PatchEncoder(sizes)
        self.decoder = M3TokenDecoder(sizes)

    def forward(
        self, input_patches: Tensor, input_masks: Tensor, selected_indices: Tensor, target_patches: Tensor
    ) -> Tensor:
        """The loss over the patches that `selected_indices` (batch, length) marks; `target_patches` is clean."""
        hidden_states = self.encoder(input_patches, input_masks).last_hidden_state
        selected = selected_indices.flatten().nonzero().squeeze(1)  # (patches,)
        targets = target_patches.reshape(len(selected_indices.flatten()), -1)  # (…, patch_size)
        features = hidden_states.flatten(0, 1)[copied(selected, hidden_states.device)]
        return self.decoder(features, targets[selected.to(targets.device)])

    def get_symbolic_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Hidden states (batch, length, hidden) of patches (batch, length, patch_size); M3 has no global feature."""
        if get_global:
            raise ValueError("M3 has hidden states alone (pooled=False); CLaMP 3 has global features")
        return self.encoder(inputs, masks).last_hidden_state


class CLaMP3Model(nn.Module):
    """Three towers, each with a projection into the shared space (CLaMP 3 paper, section 3).

    Made anew it holds random weights; `clamp3.checkpoints` fills it.
    """

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.text_model = AutoModel.from_config(text_config(sizes.text_model_name))
        self.text_proj = nn.Linear(self.text_model.config.hidden_size, sizes.clamp3_hidden_size)
        self.symbolic_model = M3PatchEncoder(sizes)
        self.symbolic_proj = nn.Linear(sizes.m3_hidden_size, sizes.clamp3_hidden_size)
        self.audio_model = BertModel(
            bert_config(sizes.audio_hidden_size, sizes.audio_num_layers, sizes.max_audio_length)
        )
        self.audio_proj = nn.Linear(sizes.audio_hidden_size, sizes.clamp3_hidden_size)
        self.loss = ClipLoss(sizes.logit_scale)
        self.frozen: frozenset[str] = frozenset()

    def get_text_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Token ids (batch, length) -> (batch, length, hidden); global: (batch, clamp3_hidden_size)."""
        output = encode(self.text_model, masks, input_ids=inputs)
        return self._features(output, masks, self.text_proj, get_global)

    def get_symbolic_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Patches (batch, length, patch_size) -> (batch, length, hidden); global: (batch, clamp3_hidden_size)."""
        output = self.symbolic_model(inputs, masks)
        return self._features(output, masks, self.symbolic_proj, get_global)

    def get_audio_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Frames (batch, length, hidden) -> (batch, length, hidden); global: (batch, clamp3_hidden_size)."""
        output = encode(self.audio_model, masks, inputs_embeds=inputs)
        return self._features(output, masks, self.audio_proj, get_global)

    @staticmethod
    def _features(output, masks: Tensor, projection: nn.Linear, get_global: bool) -> Tensor:
        hidden_states = output.last_hidden_state
        return projection(masked_mean(hidden_states, masks)) if get_global else hidden_states

    def forward(
        self, text_inputs: Tensor, text_masks: Tensor, music_inputs: Tensor, music_masks: Tensor, music_modality: str
    ) -> Tensor:
        """The contrastive loss of a batch of pairs; `music_modality` is "symbolic" or "audio"."""
        get_music_features = {"symbolic": self.get_symbolic_features, "audio": self.get_audio_features}[music_modality]
        text_features = self.get_text_features(text_inputs, text_masks, get_global=True)
        music_features = get_music_features(music_inputs, music_masks, get_global=True)
        return self.loss(text_features, music_features)

    @property
    def towers(self) -> dict[str, nn.Module]:
        """By modality."""
        return {"text": self.text_model, "symbolic": self.symbolic_model.base, "audio": self.audio_model}

    def train_on(self, modality: str, freeze_list: Sequence[str] = ()) -> None:
        """Freeze what a stage on text and `modality` ("symbolic" or "audio") does not use, and the named parts."""
        other = {"symbolic": "audio", "audio": "symbolic"}[modality]
        self.set_trainable([f"{other}_model", f"{other}_proj", *freeze_list])

    def set_trainable(self, freeze_list: list[str]) -> None:
        """Freeze the named parts ("text_model", "text_proj", …): no gradients, no dropout. All others train."""
        parts = dict(self.named_children())
        unknown = set(freeze_list) - set(parts)
        if unknown:
            raise ValueError(f"no such part of CLaMP3Model to freeze: {sorted(unknown)}; there are {sorted(parts)}")
        self.frozen = frozenset(freeze_list)
        for name, part in parts.items():
            part.requires_grad_(name not in self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CLaMP3Model":
        """As any module's, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self
