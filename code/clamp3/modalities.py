"""The modalities of CLaMP 3: one row for each, which everything else asks."""

from dataclasses import dataclass

from clamp3.sizes import ModelSizes

SAMPLING_RATE = 24_000  # Hz of sound, where no other is asked for: MERT's


@dataclass(frozen=True)
class Modality:
    """A kind of input with a tower of its own."""

    name: str
    tower: str  # attribute of CLaMP3Model: a network (batch, length, …) -> hidden states (batch, length, hidden)
    projection: str  # attribute of CLaMP3Model: from the tower's width into the shared space
    encode: str  # method of InputEncoder: an input -> its sequence (length, …)
    max_length_field: str  # of ModelSizes: the longest sequence that the tower takes
    input_name: str | None = None  # the tower's argument, of a transformers model; None: its `forward` takes masks too
    resource: str | None = None  # attribute of InputEncoder that `encode` needs, loaded before the first file is read

    @property
    def parts(self) -> tuple[str, str]:
        """What the model has for it, by name. Two modalities may share them."""
        return self.tower, self.projection

    def max_length(self, sizes: ModelSizes) -> int:
        """The longest sequence, in tokens, patches or frames; longer ones are cut into segments."""
        return getattr(sizes, self.max_length_field)


TEXT = Modality("text", "text_model", "text_proj", "encode_text", "max_text_length", "input_ids", "tokenizer")
SYMBOLIC = Modality("symbolic", "symbolic_model", "symbolic_proj", "encode_symbolic", "patch_length")
AUDIO = Modality("audio", "audio_model", "audio_proj", "encode_audio_features", "max_audio_length", "inputs_embeds")

MODALITIES = {modality.name: modality for modality in (TEXT, SYMBOLIC, AUDIO)}
