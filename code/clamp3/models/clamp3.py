"""The networks: M3 (symbolic encoder and its character decoder) and CLaMP 3 (text, symbolic and audio towers).

Parameter names are those of the released checkpoints.
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC, TEXT
from clamp3.models.bert import Bert
from clamp3.models.layers import bert_config, encode, masked_mean, product
from clamp3.models.losses import ClipLoss
from clamp3.models.m3 import M3PatchEncoder
from clamp3.models.text import build_text_model
from clamp3.sizes import ModelSizes


class CLaMP3Model(nn.Module):
    """Three towers, each with a projection into the shared space (CLaMP 3 paper, section 3).

    Made anew it holds random weights; `clamp3.models.weights` fills it.
    """

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.text_model = build_text_model(sizes)
        self.text_proj = nn.Linear(self.text_model.config.hidden_size, sizes.clamp3_hidden_size)
        self.symbolic_model = M3PatchEncoder(sizes)
        self.symbolic_proj = nn.Linear(sizes.m3_hidden_size, sizes.clamp3_hidden_size)
        self.audio_model = Bert(bert_config(sizes.audio_hidden_size, sizes.audio_num_layers, sizes.max_audio_length))
        self.audio_proj = nn.Linear(sizes.audio_hidden_size, sizes.clamp3_hidden_size)
        self.loss = ClipLoss(sizes.logit_scale)
        self.frozen: frozenset[str] = frozenset()

    def get_features(self, modality: str, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """Inputs (batch, length, …) of a modality's tower, masks (batch, length) -> (batch, length, hidden).

        Global: (batch, clamp3_hidden_size), the projected mean over the unmasked positions.
        """
        hidden_states = self._run_tower(modality, inputs, masks).last_hidden_state
        return self.project(modality, masked_mean(hidden_states, masks)) if get_global else hidden_states

    def get_hidden_states(self, modality: str, inputs: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """A tower's embeddings, then what each of its layers gives, each (batch, length, hidden)."""
        return self._run_tower(modality, inputs, masks, output_hidden_states=True).hidden_states

    def project(self, modality: str, hidden_states: Tensor) -> Tensor:
        """States of a modality's tower (…, hidden) in float32 -> the shared space (…, clamp3_hidden_size)."""
        return product(getattr(self, MODALITIES[modality].projection), hidden_states)

    def _run_tower(self, modality: str, inputs: Tensor, masks: Tensor, **options: bool) -> Any:
        row = MODALITIES[modality]
        tower = getattr(self, row.tower)
        if row.input_name is None:
            return tower(inputs, masks, **options)
        arguments: dict[str, Any] = {**options, row.input_name: inputs}
        return encode(tower, masks, **arguments)

    def get_text_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """`get_features` of token ids (batch, length)."""
        return self.get_features(TEXT.name, inputs, masks, get_global)

    def get_symbolic_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """`get_features` of patches (batch, length, patch_size)."""
        return self.get_features(SYMBOLIC.name, inputs, masks, get_global)

    def get_audio_features(self, inputs: Tensor, masks: Tensor, get_global: bool = False) -> Tensor:
        """`get_features` of frames (batch, length, audio_hidden_size)."""
        return self.get_features(AUDIO.name, inputs, masks, get_global)

    def forward(
        self, text_inputs: Tensor, text_masks: Tensor, music_inputs: Tensor, music_masks: Tensor, music_modality: str
    ) -> Tensor:
        """The contrastive loss of a batch of pairs; `music_modality` is "symbolic" or "audio"."""
        text_features = self.get_text_features(text_inputs, text_masks, get_global=True)
        music_features = self.get_features(music_modality, music_inputs, music_masks, get_global=True)
        return self.loss(text_features, music_features)

    def keep(self, modalities: Collection[str]) -> None:
        """Drop what serves none of `modalities`."""
        kept = {part for name in modalities for part in MODALITIES[name].parts}
        for part in {part for row in MODALITIES.values() for part in row.parts} - kept:
            delattr(self, part)

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The transformer of each modality that the model has."""
        towers = {name: getattr(self, row.tower) for name, row in MODALITIES.items() if hasattr(self, row.tower)}
        return {name: tower.base if isinstance(tower, M3PatchEncoder) else tower for name, tower in towers.items()}

    def train_on(self, modality: str, freeze_list: Sequence[str] = ()) -> None:
        """Freeze what a stage on text and `modality` ("symbolic" or "audio") does not use, and the named parts."""
        used = {part for name in (TEXT.name, modality) for part in MODALITIES[name].parts}
        unused = {part for row in MODALITIES.values() for part in row.parts} - used
        self.set_trainable([*sorted(unused), *freeze_list])

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
