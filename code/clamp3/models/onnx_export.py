"""The towers, and MERT, as ONNX graphs: from what they read to features, for batches and lengths of any size.

The graphs are traced from the networks themselves, over padded batches in place of packed positions: padding is
masked, so that the features are those of `CLaMP3Model.get_features`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clamp3.errors import UserError
from clamp3.inputs.patchilizer import VOCAB_SIZE
from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC, TEXT
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import is_packable, masked_mean
from clamp3.models.m3 import PatchEmbedding
from clamp3.models.onnx_files import FEATURES, INPUTS, MASKS, STATES, WAVES
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:
    from transformers import HubertModel

OPSET = 20  # the first with Gelu; onnxruntime 1.17 and later run it
TOGETHER = 8  # characters of a patch that are looked up at once
LARGEST = 2_000_000_000  # bytes that a file of ONNX can hold


class TowerGraph(nn.Module):
    """A tower with what stands before and behind it, as a graph of plain operations over padded batches."""

    def __init__(self, model: CLaMP3Model, modality: str):
        super().__init__()
        row = MODALITIES[modality]
        self.tower, self.projection = getattr(model, row.tower), getattr(model, row.projection)
        self.input_name = row.input_name

    def forward(self, inputs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (batch, length, …), masks (batch, length) int64 -> features (batch, shared), states (…, hidden)."""
        if self.input_name is None:
            embedded: dict[str, Tensor] = {"inputs_embeds": embed_patches(self.tower.patch_embedding, inputs)}
            tower = self.tower.base
        else:
            embedded, tower = {self.input_name: inputs}, self.tower
        if is_packable(tower):
            states = run_bert(tower, masks, **embedded)
        else:
            states = tower(**embedded, attention_mask=masks).last_hidden_state
        return self.projection(masked_mean(states, masks)), states


def embed_patches(embedding: PatchEmbedding, patches: Tensor) -> Tensor:
    """`PatchEmbedding.forward` of ids (batch, length, patch_size), a few characters at a time to save memory."""
    rows = patches.long() + torch.arange(0, embedding.in_features, VOCAB_SIZE)  # (batch, length, patch_size)
    table = embedding.weight.t()
    parts = [F.embedding(part, table).sum(dim=2) for part in rows.split(TOGETHER, dim=-1)]
    return sum(parts, start=embedding.bias)  # (batch, length, hidden)


def run_bert(tower: Any, masks: Tensor, **embedded: Tensor) -> Tensor:
    """The last hidden states (batch, length, hidden) of a Bert; those of padding are of no use."""
    hidden_states = tower.embeddings(**embedded)
    attended = ((1 - masks)[:, None, None, :] * torch.finfo(torch.float32).min).to(hidden_states.dtype)
    for layer in tower.encoder.layer:
        attention = layer.attention.self
        heads = [
            projection(hidden_states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for projection in (attention.query, attention.key, attention.value)
        ]
        context = F.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], attended
        )  # (batch, heads, length, head size)
        hidden_states = layer.attention.output(context.transpose(1, 2).flatten(2), hidden_states)
        hidden_states = layer.output(layer.intermediate(hidden_states), hidden_states)
    return hidden_states


class MertGraph(nn.Module):
    """MERT as a graph, by the modules of transformers alone."""

    def __init__(self, model: "HubertModel"):
        super().__init__()
        nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
        self.front, self.projection, self.encoder = model.feature_extractor, model.feature_projection, model.encoder

    def forward(self, waves: Tensor) -> Tensor:
        """Normalized windows of one length (batch, samples) -> frames (batch, hidden): means over time and layers."""
        hidden = self.projection(self.front(waves).transpose(1, 2))  # (batch, time, hidden)
        hidden = self.encoder.layer_norm(hidden + self.encoder.pos_conv_embed(hidden))
        means = [hidden.mean(1)]
        for layer in self.encoder.layers:
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5
            means.append(hidden.mean(1))
        return torch.stack(means).mean(0)


def export_tower(model: CLaMP3Model, sizes: ModelSizes, modality: str, path: Path) -> None:
    """Write a tower's graph to `path`. Raises UserError where its network cannot be written as one."""
    batch, length = 2, min(5, MODALITIES[modality].max_length(sizes))
    examples = {
        TEXT.name: torch.ones(batch, length, dtype=torch.int64),
        SYMBOLIC.name: torch.ones(batch, length, sizes.patch_size, dtype=torch.uint8),
        AUDIO.name: torch.ones(batch, length, sizes.audio_hidden_size),
    }
    masks = torch.ones(batch, length, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in (INPUTS, MASKS, STATES)} | {FEATURES: {0: "batch"}}
    tower = TowerGraph(model, modality).eval()
    _export(tower, (examples[modality], masks), path, [INPUTS, MASKS], [FEATURES, STATES], axes)


def export_mert(model: "HubertModel", path: Path) -> None:
    """Write MERT's graph to `path`; the model is taken over. UserError as `export_tower`."""
    axes = {WAVES: {0: "batch", 1: "samples"}, FEATURES: {0: "batch"}}
    _export(MertGraph(model.eval()), (torch.zeros(2, 30_000),), path, [WAVES], [FEATURES], axes)


def _export(
    network: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    if size > LARGEST:
        raise UserError(f"{path.stem}: {size:,} bytes of weights are more than a file of ONNX holds (2 GB)")
    options: dict[str, Any] = {"dynamo": False, "opset_version": OPSET, "dynamic_axes": axes}
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(network, example, str(path), input_names=inputs, output_names=outputs, **options)
    except Exception as error:  # the tracer raises errors of many kinds for networks of others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path.stem}: its network cannot be written as ONNX ({reason})") from error
