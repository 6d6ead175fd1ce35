"""Texts, symbolic music and audio features -> the sequences that the towers read, and batches of them."""

from functools import cached_property

import numpy as np

from clamp3.errors import LONG_BARS, WAS_STANDARD, Note, ignore
from clamp3.formats.abc import has_notes, interleave, is_interleaved
from clamp3.formats.midi import is_mtf
from clamp3.inputs.patchilizer import FIELD, M3Patchilizer, has_music
from clamp3.inputs.tokenizer import Tokenizer, load_tokenizer, token_ids
from clamp3.modalities import MODALITIES
from clamp3.sizes import ModelSizes


class InputEncoder:
    """Encodes inputs as their towers' sequences. Each method raises ValueError for what has no feature."""

    def __init__(self, sizes: ModelSizes, as_is: bool = False):
        """With `as_is`, symbolic text is cut into patches as it stands, interleaved or not, as the original does."""
        self.sizes = sizes
        self.as_is = as_is
        self.patchilizer = M3Patchilizer(sizes.patch_size)
        self.max_lengths = {name: modality.max_length(sizes) for name, modality in MODALITIES.items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The text model's tokenizer. Raises UserError as `load_tokenizer` does."""
        return load_tokenizer(self.sizes.text_model_name)

    def encode_text(self, text: str, note: Note = ignore) -> np.ndarray:
        """The distinct non-empty lines of `text`, joined by the separator token -> token ids (tokens,)."""
        lines = [line for line in dict.fromkeys(text.split("\n")) if line]
        if not any(line.strip() for line in lines):
            raise ValueError("empty: no line of text")
        return token_ids(self.tokenizer, self.tokenizer.sep_token.join(lines))

    def encode_symbolic(self, text: str, note: Note = ignore) -> np.ndarray:
        """ABC or MTF -> patches with special patches (patches, patch_size).

        ABC that is not interleaved is interleaved first. `note` is told that, and how much of a patch that is too
        long is not read; without it nobody is.
        """
        text = text.removeprefix("\ufeff")
        if not (self.as_is or is_mtf(text) or is_interleaved(text)) and has_notes(text):
            text = interleave(text, note)
            note(WAS_STANDARD)
        patches = self.patchilizer.split(text)
        self._note_long_bars(patches, note)
        if not has_music(patches):
            raise ValueError("no bars of ABC and no MIDI messages in it")
        return self.patchilizer.encode(patches, add_special_patches=True)

    def _note_long_bars(self, patches: list[str], note: Note) -> None:
        """Tell `note` of the bars that are longer than a patch, which also holds two special ids."""
        room = self.patchilizer.patch_size - 2
        too_long = [len(patch) - room for patch in patches if len(patch.rstrip()) > room and not FIELD.match(patch)]
        if too_long:
            unread = f"{sum(too_long)} of their characters are not read"
            note(f"{LONG_BARS} {room} characters of a patch: {len(too_long)}; {unread}")

    def encode_audio_features(self, features: np.ndarray, note: Note = ignore) -> np.ndarray:
        """MERT features (…, frames, hidden) -> float32 (frames + 2, hidden): a zero vector before and after."""
        features = np.asarray(features)
        width = self.sizes.audio_hidden_size
        if not np.issubdtype(features.dtype, np.floating):
            raise ValueError(f"audio features must be floating-point numbers, not {features.dtype}")
        if features.ndim < 2 or features.shape[-1] != width:
            raise ValueError(f"audio features must have the shape (…, frames, {width}), not {features.shape}")
        if not features.size:
            raise ValueError("empty: no frames of audio")
        frames = np.zeros((features.size // width + 2, width), np.float32)
        frames[1:-1] = features.reshape(-1, width)
        if not np.isfinite(frames).all():
            raise ValueError("audio features hold NaN or infinite values")
        return frames
