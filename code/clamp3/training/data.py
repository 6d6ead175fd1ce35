"""Training data: sets of examples by index, each read and encoded when it is asked for, and how they are split.

What is random about an item (its words, its file, its window) follows from the seed, the epoch and the item's index,
not from what was drawn before: the numbers of workers, of processes and of restarts change nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from clamp3.errors import ItemError
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, crop, remove_instrument_info
from clamp3.io.files import load_array, read_text
from clamp3.modalities import AUDIO
from clamp3.training.texts import JsonLines, evaluation_file, evaluation_text, training_text

WITHOUT_INSTRUMENTS = 0.9  # share of the symbolic training items that lose their instruments' names and programs
MASKED, SHUFFLED = 0.8, 0.1  # shares of the pieces whose selected patches are masked, or shuffled (else: kept)


@dataclass(frozen=True)
class Example:
    """An item at an epoch, ready to be put into a batch."""

    name: str
    sequences: dict[str, np.ndarray]  # by the name of the model's input; each is as long as it happens to be


class Examples(Dataset[Example | ItemError]):
    """Items by index, seen through an epoch: `self[epoch, index]`. `rng` is None in evaluation.

    An item that cannot be read comes as the ItemError that says why: raised in a worker process, it would lose its
    form on the way.
    """

    def __init__(self, seed: int, training: bool):
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> Example | ItemError:
        epoch, index = key
        try:
            return self.example(index, np.random.default_rng([self.seed, epoch, index]) if self.training else None)
        except ItemError as error:
            return error

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """The item as a training (or evaluation) example. Raises ItemError where it cannot be read."""
        raise NotImplementedError

    def check(self, index: int) -> None:
        """Raise ItemError where any file of the item cannot be read."""
        self.example(index, None)


class Pairs(Examples):
    """Text and music of the items of a JSONL file (CLaMP 3 paper, section 4)."""

    def __init__(
        self,
        lines: JsonLines,
        indices: np.ndarray,
        encoder: InputEncoder,
        modality: str,
        seed: int,
        training: bool,
        text_dropout: bool = True,
    ):
        """`indices` says which items of `lines` this set holds; `text_dropout` whether training texts vary."""
        super().__init__(seed, training)
        self.lines, self.indices, self.encoder, self.modality = lines, indices, encoder, modality
        self.text_dropout = text_dropout

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        place = self.lines.place(self.indices[index])
        item = self.lines[self.indices[index]]
        filepaths = item["filepaths"]
        name = evaluation_file(filepaths) if rng is None else filepaths[rng.integers(len(filepaths))]
        try:
            sequences = {"text": self.text(item, rng), "music": self.music(name, rng)}
        except (ValueError, OSError) as error:
            raise ItemError(f"{place}: {error}") from None
        return Example(place if item.get("id") is None else str(item["id"]), sequences)

    def check(self, index: int) -> None:
        try:
            for name in self.lines[self.indices[index]]["filepaths"]:
                self.music(name, None)
        except (ValueError, OSError) as error:
            raise ItemError(f"{self.lines.place(self.indices[index])}: {error}") from None

    def text(self, item: dict, rng: np.random.Generator | None) -> np.ndarray:
        """Token ids (tokens,)."""
        separator = self.encoder.tokenizer.sep_token
        if rng is not None and self.text_dropout:
            text = training_text(item, rng, separator)
        else:
            text = evaluation_text(item, separator)
        ids = np.array(self.encoder.tokenizer(text, verbose=False)["input_ids"], np.int64)
        return crop(ids, self.encoder.max_lengths["text"], rng)

    def music(self, name: str, rng: np.random.Generator | None) -> np.ndarray:
        """Patches (patches, patch_size) or frames (frames, hidden) of the file `name`."""
        path = self.lines.path.parent / name
        try:
            if self.modality == AUDIO.name:
                sequence = self.encoder.encode_audio_features(load_array(path))
            else:
                text = read_text(path)
                if rng is not None and rng.random() < WITHOUT_INSTRUMENTS:
                    text = remove_instrument_info(text)
                sequence = self.encoder.encode_symbolic(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return crop(sequence, self.encoder.max_lengths[self.modality], rng)


class Pieces(Examples):
    """Symbolic files whose patches are to be reconstructed (CLaMP 2 paper, M3)."""

    def __init__(self, paths: list[Path], encoder: InputEncoder, mask_ratio: float, seed: int, training: bool):
        super().__init__(seed, training)
        self.paths, self.encoder, self.mask_ratio = paths, encoder, mask_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        path = self.paths[index]
        try:
            patches = self.encoder.encode_symbolic(read_text(path))
        except (ValueError, OSError) as error:
            raise ItemError(f"{path}: {error}") from None
        patches = crop(patches, self.encoder.max_lengths["symbolic"], rng)
        # In evaluation what is selected depends on the piece alone.
        chosen = rng or np.random.default_rng([self.seed, index])
        selected = np.zeros(len(patches), np.int64)
        selected[chosen.permutation(len(patches))[: int(np.ceil(self.mask_ratio * len(patches)))]] = 1
        inputs = patches if rng is None else corrupt_patches(patches, selected.astype(bool), rng)
        return Example(str(path), {"inputs": inputs, "selected": selected, "targets": patches})


def corrupt_patches(patches: np.ndarray, selected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of `patches` (patches, patch_size) whose `selected` ones are masked, or shuffled, or left, all alike."""
    patches, draw = patches.copy(), rng.random()
    if draw < MASKED:
        patches[selected] = MASK_ID
    elif draw < MASKED + SHUFFLED:
        patches[selected] = [shuffled(patch, rng) for patch in patches[selected]]
    return patches


def shuffled(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of `patch` with its characters, but not the special ids, in another order."""
    patch = patch.copy()
    characters = np.flatnonzero(~np.isin(patch, (PAD_ID, BOS_ID, EOS_ID)))
    patch[characters] = patch[rng.permutation(characters)]
    return patch


def split(size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for evaluation, the latter a `share` of all, at least one; the same in any process."""
    order = np.random.default_rng(seed).permutation(size)
    held_out = max(1, round(size * share))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
