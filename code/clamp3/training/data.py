"""Training data: checked before the first step, indexed by position, read and encoded in worker processes.

What is random about an item (its words, its file, its window) follows from the seed, the epoch and the item's index,
not from what was drawn before: the number of workers and processes and restarts change nothing.
"""

import json
import multiprocessing
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from clamp3.errors import ItemError, UserError
from clamp3.formats.registry import extensions, model_inputs
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, crop, remove_instrument_info
from clamp3.inputs.segments import pad
from clamp3.io.files import load_array, read_text
from clamp3.modalities import AUDIO, SYMBOLIC

NOT_TEXT = ("id", "filepaths", "language", "translations")
WITHOUT_INSTRUMENTS = 0.9  # share of the symbolic training items that lose their instruments' names and programs
MASKED, SHUFFLED = 0.8, 0.1  # shares of the pieces whose selected patches are masked, or shuffled (else: kept)
SHOWN_ERRORS = 20


class JsonLines:
    """The objects of a JSONL file by position. Memory grows with 16 bytes a line."""

    def __init__(self, path: Path):
        self.path = path
        starts, numbers, position = array("q"), array("q"), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
        self.starts = np.array(starts, np.int64)
        self.numbers = np.array(numbers, np.int64)  # from 1, blank lines counted

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            return json.loads(file.readline())

    def place(self, index: int) -> str:
        """Where an object stands, as people look for it."""
        return f"{self.path}:{self.numbers[index]}"


# ---------- texts and files of an item ----------


def texts_of(fields: dict) -> list[str]:
    """The strings among the values of `fields`, and in their lists; null and empty ones are left out."""
    values = (value if isinstance(value, list) else [value] for value in fields.values())
    return [text for group in values for text in group if isinstance(text, str) and text.strip()]


def lines_of(item: dict, translated: bool) -> list[str]:
    """The distinct lines of an item's own texts, or of its translations where there are any."""
    translations = item.get("translations") or {}
    texts = texts_of({name: value for name, value in translations.items() if name != "language"}) if translated else []
    texts = texts or texts_of({name: value for name, value in item.items() if name not in NOT_TEXT})
    return list(dict.fromkeys(line for text in texts for line in text.split("\n") if line.strip()))


def training_text(item: dict, rng: np.random.Generator, separator: str) -> str:
    """Half of the lines of an item, shuffled; every second time those of its translations."""
    lines = lines_of(item, translated=rng.random() < 0.5)
    kept = [line for line in lines if rng.random() < 0.5] or lines
    return separator.join(rng.permutation(np.array(kept, object)))


def evaluation_text(item: dict, separator: str) -> str:
    """The item's analysis; where there is none, all its lines."""
    analysis = item.get("analysis")
    if isinstance(analysis, str) and analysis.strip():
        return analysis
    return separator.join(lines_of(item, translated=False))


def evaluation_file(filepaths: list[str]) -> str:
    """The first file, or the second where the first is neither ABC nor audio."""
    first, *others = filepaths
    return others[0] if others and not first.lower().endswith((".abc", ".npy")) else first


# ---------- checks ----------


def check_pairs(lines: JsonLines, modality: str, audio_hidden_size: int, show: bool = True) -> None:
    """Raise a UserError that lists what is wrong with the items of `lines`, with file and line, if anything is."""
    errors = []
    for index in tqdm(range(len(lines)), desc=f"checking {lines.path}", unit="item", delay=2, disable=not show):
        try:
            check_pair(lines[index], lines.path.parent, modality, audio_hidden_size)
        except (ValueError, OSError) as error:
            errors.append(f"{lines.place(index)}: {error}")
    refuse(errors if len(lines) else [f"{lines.path}: there is no item in it"])


def check_pair(item, folder: Path, modality: str, audio_hidden_size: int) -> None:
    """Raise ValueError or OSError for an item that cannot be trained on."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if not isinstance(item.get("translations") or {}, dict):
        raise ValueError('"translations" must be an object')
    if not lines_of(item, translated=False) and not lines_of(item, translated=True):
        raise ValueError("no text in any of its fields")
    filepaths = item.get("filepaths")
    if not isinstance(filepaths, list) or not filepaths or not all(isinstance(path, str) for path in filepaths):
        raise ValueError('"filepaths" must be a list of one path or more')
    for name in filepaths:
        path = folder / name
        if path.suffix.lower() not in (taken := extensions(model_inputs(modality))):
            raise ValueError(f"{name}: {modality} training takes {' '.join(taken)} files")
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty")
        if modality == AUDIO.name:
            check_frames(path, audio_hidden_size)


def check_frames(path: Path, hidden_size: int) -> None:
    """Raise ValueError where `path` does not hold audio features of that width; its numbers are not read."""
    try:
        frames = load_array(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if frames.ndim < 2 or frames.shape[-1] != hidden_size or not frames.size or frames.dtype.kind != "f":
        raise ValueError(
            f"{path}: {frames.dtype} of shape {frames.shape}, not floats of shape (…, frames, {hidden_size})"
        )


def find_pieces(folders: list[Path]) -> list[Path]:
    """The .abc and .mtf files under `folders`, in a fixed order. Raises UserError where an item is empty or unfit."""
    taken = extensions(model_inputs(SYMBOLIC.name))
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in taken)
    if folders and not paths:
        raise UserError(f"there is no {' '.join(taken)} file under {', '.join(map(str, folders))}")
    if empty := [path for path in paths if not path.stat().st_size]:
        refuse([f"{path}: is empty" for path in empty])
    return paths


def check_examples(examples: "Examples") -> None:
    """Read and encode all that the items hold. Raises a UserError that lists those that cannot be."""
    errors = []
    for index in tqdm(range(len(examples)), desc="reading", unit="item", delay=2):
        try:
            examples.check(index)
        except ItemError as error:
            errors.append(str(error))
    refuse(errors)


def refuse(errors: list[str]) -> None:
    """Raise a UserError that lists `errors`, the first of them at least, if there are any."""
    if errors:
        more = [f"… and {len(errors) - SHOWN_ERRORS} more"] * (len(errors) > SHOWN_ERRORS)
        listed = "\n  ".join([*errors[:SHOWN_ERRORS], *more])
        raise UserError(f"{len(errors)} items cannot be trained on:\n  {listed}")


# ---------- data sets ----------


@dataclass(frozen=True)
class Example:
    """An item at an epoch, ready to be put into a batch."""

    name: str
    sequences: dict[str, np.ndarray]  # by the name of the model's input; each is as long as it happens to be


class Examples(Dataset):
    """Items by index, seen through an epoch: `self[epoch, index]`. `rng` is None in evaluation.

    An item that cannot be read comes as the ItemError that says why: raised in a worker process, it would lose its
    form on the way.
    """

    def __init__(self, seed: int, training: bool):
        self.seed = seed
        self.training = training

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
        varied = rng is not None and self.text_dropout
        text = training_text(item, rng, separator) if varied else evaluation_text(item, separator)
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


# ---------- batches ----------


@dataclass(frozen=True)
class Batch:
    """Examples of one process, stacked: by sequence, a tensor (batch, longest, …) and masks (batch, longest).

    They are on the CPU, where the model can count what masks select without waiting for its device.
    """

    names: list[str]
    tensors: dict[str, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.names)

    def pin_memory(self) -> "Batch":
        pinned = {name: tuple(tensor.pin_memory() for tensor in pair) for name, pair in self.tensors.items()}
        return Batch(self.names, pinned)

    def pieces(self, size: int) -> Iterator["Batch"]:
        """Consecutive parts of at most `size` examples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Batch(self.names[part], {name: tuple(t[part] for t in pair) for name, pair in self.tensors.items()})


class Collate:
    """Stacks examples, each sequence padded to the batch's longest."""

    def __init__(self, pad_values: dict[str, int]):
        """`pad_values` holds what fills up a sequence, by name; 0 for those that it does not name."""
        self.pad_values = pad_values

    def __call__(self, examples: list[Example | ItemError]) -> Batch | ItemError:
        if errors := [example for example in examples if isinstance(example, ItemError)]:
            return errors[0]
        tensors = {}
        for name in examples[0].sequences if examples else ():
            stacked, masks = pad([example.sequences[name] for example in examples], self.pad_values.get(name, PAD_ID))
            tensors[name] = torch.from_numpy(stacked), torch.from_numpy(masks)
        return Batch([example.name for example in examples], tensors)


class ShareOfBatches(Sampler):
    """One process's parts of the global batches of an epoch, as keys of `Examples`; `set` chooses where to begin.

    With a `seed` (training), in an order of the epoch's own and without the remainder, since a short batch has few
    negatives; a set smaller than one batch is one batch of as many as the processes can share evenly. Without
    (evaluation), in order and with the remainder.
    """

    def __init__(self, size: int, batch_size: int, processes: int, rank: int, seed: int | None):
        self.size, self.processes, self.rank, self.seed = size, processes, rank, seed
        self.step = batch_size * processes  # items in a global batch
        if seed is not None:
            self.step = min(self.step, size // processes * processes)
        self.epoch = self.first = 0

    def set(self, epoch: int, first: int = 0) -> None:
        """Go to batch `first` of `epoch`."""
        self.epoch, self.first = epoch, first

    @property
    def batches(self) -> int:
        """How many global batches an epoch has."""
        return self.size // self.step if self.seed is not None else -(-self.size // self.step)

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for number in range(self.first, self.first + len(self)):
            batch = order[number * self.step : (number + 1) * self.step]
            yield [(self.epoch, int(index)) for index in np.array_split(batch, self.processes)[self.rank]]


def loader(
    examples: Examples, share: ShareOfBatches, collate: Collate, workers: int, device: torch.device
) -> DataLoader:
    """Batches read and encoded by `workers` processes (0: by this one), which live as long as the loader."""
    return DataLoader(
        examples,
        batch_sampler=share,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=end_with_parent if workers else None,
        multiprocessing_context="spawn" if workers else None,  # forks of a process with threads may hang
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its own, so that training's random numbers do not depend on restarts
    )


def end_with_parent(_worker: int) -> None:
    """Let this worker process end when the one that started it does, even if that is killed."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def checked(batches: Iterable[Batch | ItemError]) -> Iterator[Batch]:
    """The batches of a loader. Raises the ItemError of an item that could not be read."""
    for batch in batches:
        if isinstance(batch, ItemError):
            raise ItemError(str(batch))  # not itself: in a cycle with this frame, it would keep workers alive
        yield batch


def split(size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for evaluation, the latter a `share` of all, at least one; the same in any process."""
    order = np.random.default_rng(seed).permutation(size)
    held_out = max(1, round(size * share))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
