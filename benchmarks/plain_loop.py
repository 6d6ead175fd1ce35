"""Feature extraction the way the original does it, in our own words: what benchmarks/extraction.py measures against.

One item at a time, each segment padded to its tower's maximum, patches as one-hot vectors made on the CPU, and a
pooler whose output nobody uses.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clamp3.models import CLaMP3Model, ModelSizes
from clamp3.patchilizer import VOCAB_SIZE, M3Patchilizer


class PlainLoop:
    """Global features of the files of a folder, one after the other."""

    def __init__(self, model: CLaMP3Model, sizes: ModelSizes, tokenizer):
        self.model = model
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.patchilizer = M3Patchilizer(sizes.patch_size)

    @torch.no_grad()
    def extract(self, modality: str, input_dir: Path, output_dir: Path) -> None:
        """Write OUTPUT_DIR/name.npy, (1, clamp3_hidden_size), for each file of INPUT_DIR."""
        read = {"symbolic": self.read_symbolic, "text": self.read_text, "audio": self.read_audio}[modality]
        for path in sorted(input_dir.iterdir()):
            np.save(output_dir / f"{path.stem}.npy", self.feature(modality, read(path)).numpy())

    def read_symbolic(self, path: Path) -> Tensor:
        patches = self.patchilizer.encode(path.read_text(encoding="utf-8"), add_special_patches=True)
        return torch.from_numpy(patches.astype(np.int64))  # (patches, patch_size)

    def read_text(self, path: Path) -> Tensor:
        lines = dict.fromkeys(line for line in path.read_text(encoding="utf-8").split("\n") if line)
        return self.tokenizer(self.tokenizer.sep_token.join(lines), return_tensors="pt")["input_ids"][0]  # (tokens,)

    def read_audio(self, path: Path) -> Tensor:
        frames = torch.from_numpy(np.load(path)).reshape(-1, self.sizes.audio_hidden_size)
        silence = torch.zeros(1, self.sizes.audio_hidden_size)
        return torch.cat([silence, frames, silence])  # (frames + 2, hidden)

    def feature(self, modality: str, sequence: Tensor) -> Tensor:
        """The mean of the segments' features, each weighted by the positions that it adds: (1, hidden)."""
        encode, max_length = {
            "symbolic": (self.symbolic_states, self.sizes.patch_length),
            "text": (self.text_states, self.sizes.max_text_length),
            "audio": (self.audio_states, self.sizes.max_audio_length),
        }[modality]
        project = getattr(self.model, f"{modality}_proj")
        features, weights = [], []
        for start in range(0, len(sequence), max_length):
            weights.append(len(sequence[start : start + max_length]))
            # The last segment reaches back, so that it is full where the sequence is long enough.
            segment = sequence[min(start, max(0, len(sequence) - max_length)) :][:max_length]
            masks = torch.zeros(1, max_length)
            masks[0, : len(segment)] = 1
            states = encode(segment, masks)  # (1, max_length, hidden)
            features.append(project((states * masks[..., None]).sum(dim=1) / masks.sum(dim=1, keepdim=True)))
        return torch.einsum("sbh,s->bh", torch.stack(features), torch.tensor(weights) / len(sequence))

    def symbolic_states(self, patches: Tensor, masks: Tensor) -> Tensor:
        tower = self.model.symbolic_model
        padded = F.pad(patches, (0, 0, 0, masks.shape[1] - len(patches)))[None]
        one_hot = F.one_hot(padded, VOCAB_SIZE).float().flatten(2)  # (1, patches, patch_size * vocabulary)
        embedded = F.linear(one_hot, tower.patch_embedding.weight, tower.patch_embedding.bias)
        return tower.base(inputs_embeds=embedded, attention_mask=masks).last_hidden_state

    def text_states(self, ids: Tensor, masks: Tensor) -> Tensor:
        padded = F.pad(ids, (0, masks.shape[1] - len(ids)), value=self.tokenizer.pad_token_id)[None]
        return self.model.text_model(input_ids=padded, attention_mask=masks).last_hidden_state

    def audio_states(self, frames: Tensor, masks: Tensor) -> Tensor:
        padded = F.pad(frames, (0, 0, 0, masks.shape[1] - len(frames)))[None]
        return self.model.audio_model(inputs_embeds=padded, attention_mask=masks).last_hidden_state
