"""M3: the symbolic encoder, and the character decoder that trains it (CLaMP 2 paper)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clamp3.inputs.patchilizer import PAD_ID, VOCAB_SIZE
from clamp3.modalities import SYMBOLIC
from clamp3.models.bert import Bert
from clamp3.models.gpt2 import Gpt2
from clamp3.models.layers import HEAD_SIZE, Encoded, bert_config, decode_layer, encode, product
from clamp3.models.packing import Packing, to_device
from clamp3.sizes import ModelSizes

IGNORED_LABEL = -100


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
        embeddings = F.embedding_bag(to_device(rows, device), weight, to_device(starts, device), mode="sum")
        with torch.autocast(device.type, enabled=False):
            filler = to_device(~filled, device).to(weight.dtype)
            filling = product(lambda rows: rows @ weight[PAD_ID::VOCAB_SIZE], filler)
        return (embeddings + filling + self.bias).view(*patches.shape[:-1], -1)


class M3PatchEncoder(nn.Module):
    """Patches -> hidden states (CLaMP 2 paper, M3's encoder)."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.patch_size = sizes.patch_size
        self.patch_embedding = PatchEmbedding(sizes.patch_size, sizes.m3_hidden_size)
        self.base = Bert(bert_config(sizes.m3_hidden_size, sizes.patch_num_layers, sizes.patch_length))

    def forward(self, input_patches: Tensor, input_masks: Tensor, output_hidden_states: bool = False) -> Encoded:
        """The `encode` of ids (batch, length, patch_size) or (batch, length * patch_size), masks (batch, length)."""
        patches = input_patches.reshape(len(input_patches), -1, self.patch_size)
        return encode(self.base, input_masks, output_hidden_states, inputs_embeds=self.patch_embedding(patches))


class M3TokenDecoder(nn.Module):
    """Spells a patch, character by character, from its hidden state (CLaMP 2 paper, M3's decoder)."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.base = Gpt2(
            VOCAB_SIZE,
            max_length=sizes.patch_size,
            hidden_size=sizes.m3_hidden_size,
            num_layers=sizes.token_num_layers,
            num_heads=sizes.m3_hidden_size // HEAD_SIZE,
        )

    def forward(self, patch_features: Tensor, target_patches: Tensor) -> Tensor:
        """Mean cross-entropy of `target_patches` (patches, patch_size) given `patch_features` (patches, hidden).

        The same as GPT-2's own `forward`, but over characters alone: most patches are far shorter than they may be.
        Targets may stay on the CPU; then nothing has to wait for the device.
        """
        device, gpt = patch_features.device, self.base.transformer
        targets = target_patches.long()
        filled = targets != PAD_ID
        packing = Packing.of(filled, device, is_causal=True)
        following = F.pad(targets[:, 1:], (0, 1), value=PAD_ID)[filled]  # (characters,), as all below
        labels = to_device(following.masked_fill(following == PAD_ID, IGNORED_LABEL), device)
        characters = to_device(targets[filled], device)
        patches, places = (to_device(part, device) for part in filled.nonzero(as_tuple=True))
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
        features = hidden_states.flatten(0, 1)[to_device(selected, hidden_states.device)]
        return self.decoder(features, targets[selected.to(targets.device)])

    def get_symbolic_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Hidden states (batch, length, hidden) of patches (batch, length, patch_size); M3 has no global feature."""
        if get_global:
            raise ValueError("M3 has hidden states alone (pooled=False); CLaMP 3 has global features")
        return self.encoder(inputs, masks).last_hidden_state

    def get_features(self, modality: str, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """`get_symbolic_features`, under the name that CLaMP3Model has for it."""
        return self.get_symbolic_features(inputs, masks, get_global)

    def get_hidden_states(self, modality: str, inputs: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """The encoder's embeddings, then what each of its layers gives, each (batch, length, hidden)."""
        states = self.encoder(inputs, masks, output_hidden_states=True).hidden_states
        assert states is not None
        return states

    def project(self, modality: str, hidden_states: Tensor) -> Tensor:
        """Raises ValueError: M3 knows no shared space."""
        raise ValueError("M3 has no projection into a shared space (projected=True); CLaMP 3 has")

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The transformer of each modality."""
        return {SYMBOLIC.name: self.encoder.base}
