"""Extraction and training as the original does them, in our own words: what the benchmarks measure against.

Everything is read by the one process and padded to its tower's maximum, patches are one-hot vectors made on the CPU,
and there is a pooler whose output nobody uses. Extraction takes one item at a time. The batched loop is the same but
for batches, and for padding no further than to the longest item of a batch.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clamp3.inputs.patchilizer import VOCAB_SIZE, M3Patchilizer
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.sizes import ModelSizes
from clamp3.training.data import Example
from transformers_twins import with_twins


def mean(states: Tensor, masks: Tensor) -> Tensor:
    """Over the positions that are not masked: (batch, length, hidden), (batch, length) -> (batch, hidden)."""
    return (states * masks[..., None]).sum(dim=1) / masks.sum(dim=1, keepdim=True)


class PlainLoop:
    """Global features of the files of a folder, one after the other, by transformers' own classes."""

    def __init__(self, model: CLaMP3Model, sizes: ModelSizes, tokenizer):
        self.model = with_twins(model)
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.patchilizer = M3Patchilizer(sizes.patch_size)
        self.max_lengths = {
            "symbolic": sizes.patch_length,
            "text": sizes.max_text_length,
            "audio": sizes.max_audio_length,
        }

    @torch.no_grad()
    def extract(self, modality: str, input_dir: Path, output_dir: Path) -> None:
        """Write OUTPUT_DIR/name.npy, (1, clamp3_hidden_size), for each file of INPUT_DIR."""
        read = getattr(self, f"read_{modality}")
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
        encode = getattr(self, f"{modality}_states")
        max_length = self.max_lengths[modality]
        project = getattr(self.model, f"{modality}_proj")
        features, weights = [], []
        for start in range(0, len(sequence), max_length):
            weights.append(len(sequence[start : start + max_length]))
            # The last segment reaches back, so that it is full where the sequence is long enough.
            segment = sequence[min(start, max(0, len(sequence) - max_length)) :][:max_length]
            states, masks = encode([segment])  # (1, max_length, hidden), (1, max_length)
            features.append(project(mean(states, masks)))
        return torch.einsum("sbh,s->bh", torch.stack(features), torch.tensor(weights) / len(sequence))

    def symbolic_states(self, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
        tower = self.model.symbolic_model
        padded, masks = self.padded("symbolic", sequences, 0)
        one_hot = F.one_hot(padded, VOCAB_SIZE).float().flatten(2)  # (batch, patches, patch_size * vocabulary)
        embedded = F.linear(one_hot, tower.patch_embedding.weight, tower.patch_embedding.bias)
        return tower.base(inputs_embeds=embedded, attention_mask=masks).last_hidden_state, masks

    def text_states(self, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
        padded, masks = self.padded("text", sequences, self.tokenizer.pad_token_id)
        return self.model.text_model(input_ids=padded, attention_mask=masks).last_hidden_state, masks

    def audio_states(self, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
        padded, masks = self.padded("audio", sequences, 0)
        return self.model.audio_model(inputs_embeds=padded, attention_mask=masks).last_hidden_state, masks

    def padded(self, modality: str, sequences: list[Tensor], value: int) -> tuple[Tensor, Tensor]:
        """Sequences (length, …) -> (batch, padded length, …), and masks (batch, padded length)."""
        length = self.padded_length(modality, sequences)
        padded = sequences[0].new_full((len(sequences), length, *sequences[0].shape[1:]), value)
        masks = torch.zeros(len(sequences), length)
        for row, mask, sequence in zip(padded, masks, sequences, strict=True):
            row[: len(sequence)] = sequence
            mask[: len(sequence)] = 1
        return padded, masks

    def padded_length(self, modality: str, sequences: list[Tensor]) -> int:
        """To which `sequences` are padded."""
        return self.max_lengths[modality]


class BatchedLoop(PlainLoop):
    """What a good engineer makes of it: batches of files of about one length, padded to the longest of them."""

    BATCH = 32

    @torch.inference_mode()
    def extract(self, modality: str, input_dir: Path, output_dir: Path) -> None:
        """As the plain loop's, for sequences that fit the tower."""
        read = getattr(self, f"read_{modality}")
        encode, project = getattr(self, f"{modality}_states"), getattr(self.model, f"{modality}_proj")
        found = [(path.stem, read(path)[: self.max_lengths[modality]]) for path in sorted(input_dir.iterdir())]
        found.sort(key=lambda one: len(one[1]))
        for start in range(0, len(found), self.BATCH):
            names, sequences = zip(*found[start : start + self.BATCH], strict=True)
            states, masks = encode(list(sequences))
            features = project(mean(states, masks))
            for name, feature in zip(names, features, strict=True):
                np.save(output_dir / f"{name}.npy", feature[None].numpy())

    def padded_length(self, modality: str, sequences: list[Tensor]) -> int:
        return max(map(len, sequences))


class PlainTraining:
    """Steps of CLaMP 3 with symbolic music, by the networks of a loop, which pads as it does in extraction."""

    def __init__(self, loop: PlainLoop, learning_rate: float, warm_up: int):
        self.loop = loop
        weights = [weight for weight in loop.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warm_up))

    def step(self, examples: list[Example]) -> int:
        """One step on a batch; returns how many items it had."""
        model = self.loop.model
        self.optimizer.zero_grad()
        features = []
        for modality, name in (("text", "text"), ("symbolic", "music")):
            sequences = [torch.from_numpy(example.sequences[name].astype(np.int64)) for example in examples]
            states, masks = getattr(self.loop, f"{modality}_states")(sequences)
            features.append(getattr(model, f"{modality}_proj")(mean(states, masks)))
        model.loss(*features).backward()
        self.optimizer.step()
        self.scheduler.step()
        return len(examples)
