"""Training data: sets of examples by index, each read and encoded when it is asked for, and how they are split.

What is random about an item (its words, its file, its window) follows from the seed, the epoch and the item's index,
not from what was drawn before: the numbers of workers, of processes and of restarts change nothing. So does what is
read in place of an item that cannot be read.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from clamp3.errors import LONG_BARS, WAS_STANDARD, Note, ignore
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, crop, remove_instrument_info
from clamp3.io.files import load_array, read_text
from clamp3.io.folders import refuse_special
from clamp3.io.reports import FileIssue, describe_error
from clamp3.modalities import AUDIO
from clamp3.training.texts import (
    JsonLines,
    checked_item,
    evaluation_file,
    evaluation_text,
    lines_of,
    training_text,
)

COUNTED = (WAS_STANDARD, LONG_BARS)  # how remarks begin whose items training counts
SUBSTITUTES = 100  # items that are tried in place of one that cannot be read
WITHOUT_INSTRUMENTS = 0.9  # share of the symbolic training items that lose their instruments' names and programs
MASKED, SHUFFLED = 0.8, 0.1  # shares of the pieces whose selected patches are masked, or shuffled (else: kept)


@dataclass(frozen=True)
class Example:
    """An item at an epoch, ready to be put into a batch."""

    name: str
    sequences: dict[str, np.ndarray]  # by the name of the model's input; each is as long as it happens to be
    remarks: frozenset[str] = frozenset()  # what `counted` makes of the input encoder's
    skipped: tuple[FileIssue, ...] = ()  # items that could not be read, in whose place this one is


class Examples(Dataset[Example]):
    """Items by index, seen through an epoch: `self[epoch, index]`. `rng` is None in evaluation.

    In training, an item that cannot be read is replaced by another of the set, drawn at random: so batches stay as
    large as they are, and everything else in the epoch stays as it is, whether the item was bad from the start or goes
    bad between two epochs. In evaluation it is left out: it comes as an example without sequences.
    """

    encoder: InputEncoder

    def __init__(self, seed: int, training: bool):
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index]) if self.training else None
        skipped: dict[int, FileIssue] = {}
        for attempt in range(1, SUBSTITUTES + 1):
            try:
                example = self.example(index, rng)
                return replace(example, skipped=tuple(skipped.values())) if skipped else example
            except Exception as error:  # a file can make what reads it fail in any way
                skipped[index] = self.issue(index, error)
            if not self.training:
                return Example(self.place(index), {}, skipped=tuple(skipped.values()))
            rng = np.random.default_rng([self.seed, *key, attempt])
            index = int(rng.integers(len(self)))
        # Beyond any share that may be skipped: the run will end when these are counted.
        return Example("", {}, skipped=tuple(skipped.values()))

    def issue(self, index: int, error: Exception) -> FileIssue:
        """Why the item cannot be read."""
        return FileIssue(self.place(index), describe_error(error))

    def place(self, index: int) -> str:
        """Where the item is, as people look for it."""
        raise NotImplementedError

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """The item as a training (or evaluation) example. Raises an error of whatever kind if it cannot be read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these items from others, as far as lists of them tell."""
        raise NotImplementedError

    def check(self, index: int) -> frozenset[str]:
        """Read all that any epoch could read of the item; returns the remarks, as an `Example` has them.

        Raises an error of whatever kind if part of it cannot be read.
        """
        return self.example(index, None).remarks


def counted(remarks: Iterable[str]) -> frozenset[str]:
    """Those of the input encoder's `remarks` that begin as one of `COUNTED`, without their figures."""
    return frozenset(remark.partition(":")[0] for remark in remarks if remark.startswith(COUNTED))


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

    def place(self, index: int) -> str:
        return self.lines.place(self.indices[index])

    def fingerprint(self) -> str:
        """Of the JSONL file's content and the places in it; not of the music files."""
        places = np.ascontiguousarray(self.indices, "<i8").tobytes()
        return hashlib.sha256(self.lines.sha256.encode() + places).hexdigest()[:16]

    def item(self, index: int) -> dict:
        """The object of the item's line. Raises ValueError where nothing can be made of it."""
        return checked_item(self.lines[self.indices[index]], self.modality)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        item, remarks = self.item(index), list[str]()
        filepaths = item["filepaths"]
        name = evaluation_file(filepaths) if rng is None else filepaths[rng.integers(len(filepaths))]
        sequences = {"text": self.text(item, rng), "music": self.music(name, rng, remarks.append)}
        shown = self.place(index) if item.get("id") is None else str(item["id"])
        return Example(shown, sequences, counted(remarks))

    def check(self, index: int) -> frozenset[str]:
        item, remarks = self.item(index), list[str]()
        separator = self.encoder.tokenizer.sep_token
        every_line = (separator.join(lines_of(item, translated)) for translated in (False, True))
        for text in (evaluation_text(item, separator), *every_line):
            self.token_ids(text, None)
        for name in item["filepaths"]:
            for without_instruments in {False, self.training and self.modality != AUDIO.name}:
                self.sequence(name, without_instruments, remarks.append)
        return counted(remarks)

    def text(self, item: dict, rng: np.random.Generator | None) -> np.ndarray:
        """Token ids (tokens,)."""
        separator = self.encoder.tokenizer.sep_token
        if rng is not None and self.text_dropout:
            return self.token_ids(training_text(item, rng, separator), rng)
        return self.token_ids(evaluation_text(item, separator), rng)

    def token_ids(self, text: str, rng: np.random.Generator | None) -> np.ndarray:
        ids = np.array(self.encoder.tokenizer(text, verbose=False)["input_ids"], np.int64)
        return crop(ids, self.encoder.max_lengths["text"], rng)

    def music(self, name: str, rng: np.random.Generator | None, note: Note = ignore) -> np.ndarray:
        """Patches (patches, patch_size) or frames (frames, hidden) of the file `name`."""
        is_symbolic = self.modality != AUDIO.name
        without_instruments = is_symbolic and rng is not None and rng.random() < WITHOUT_INSTRUMENTS
        sequence = self.sequence(name, without_instruments, note)
        return crop(sequence, self.encoder.max_lengths[self.modality], rng)

    def sequence(self, name: str, without_instruments: bool, note: Note) -> np.ndarray:
        """All patches or frames of the file `name`. Raises ValueError, with its path, where it cannot be read."""
        path = self.lines.path.parent / name
        try:
            refuse_special(path)
            if self.modality == AUDIO.name:
                return self.encoder.encode_audio_features(load_array(path))
            text = read_text(path)
            return self.encoder.encode_symbolic(remove_instrument_info(text) if without_instruments else text, note)
        except Exception as error:
            raise ValueError(f"{path}: {describe_error(error)}") from None


class Pieces(Examples):
    """Symbolic files whose patches are to be reconstructed (CLaMP 2 paper, M3)."""

    def __init__(self, paths: list[Path], encoder: InputEncoder, mask_ratio: float, seed: int, training: bool):
        super().__init__(seed, training)
        self.paths, self.encoder, self.mask_ratio = paths, encoder, mask_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def place(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Of the files' names and sizes."""
        files = (f"{path.name} {path.stat().st_size if path.is_file() else None}\n" for path in self.paths)
        return hashlib.sha256("".join(files).encode(errors="surrogateescape")).hexdigest()[:16]

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        path, remarks = self.paths[index], list[str]()
        refuse_special(path)
        patches = self.encoder.encode_symbolic(read_text(path), remarks.append)
        patches = crop(patches, self.encoder.max_lengths["symbolic"], rng)
        # In evaluation what is selected depends on the piece alone.
        chosen = rng or np.random.default_rng([self.seed, index])
        selected = np.zeros(len(patches), np.int64)
        selected[chosen.permutation(len(patches))[: int(np.ceil(self.mask_ratio * len(patches)))]] = 1
        inputs = patches if rng is None else corrupt_patches(patches, selected.astype(bool), rng)
        sequences = {"inputs": inputs, "selected": selected, "targets": patches}
        return Example(str(path), sequences, counted(remarks))


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
