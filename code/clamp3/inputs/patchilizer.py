"""Symbolic text <-> patches: a bar of ABC, or a run of MIDI messages (MTF), is one patch of at most 64 characters."""

import re
from typing import Any, TypeVar

import numpy as np
from unidecode import unidecode

from clamp3.formats.midi import is_mtf
from clamp3.sizes import PATCH_SIZE

PAD_ID, BOS_ID, EOS_ID, MASK_ID = 0, 1, 2, 3
VOCAB_SIZE = 128  # ASCII
BARLINES = re.compile(r"(\|:|::|:\||\[\||\|\||\|\]|\|)")
FIELD = re.compile(r"[A-Za-z]:|%%")
Cropped = TypeVar("Cropped", bound=Any)  # a sequence: a list or an array


def crop(sequence: Cropped, max_length: int, rng: np.random.Generator | None = None) -> Cropped:
    """`sequence` cut to `max_length`: its head, or with `rng` (training) its head, its tail or a window between."""
    if len(sequence) <= max_length:
        return sequence
    last_start = len(sequence) - max_length
    start = 0 if rng is None else rng.choice(np.array([0, last_start, rng.integers(1, last_start, endpoint=True)]))
    return sequence[start : start + max_length]


class M3Patchilizer:
    """Cuts ABC and MTF into patches of character codes (CLaMP 2 paper, section on M3)."""

    def __init__(self, patch_size: int = PATCH_SIZE):
        self.patch_size = patch_size

    def split(self, text: str) -> list[str]:
        """The patches of `text` as strings, neither cut to size nor framed by special ids.

        Raises ValueError where `text` is empty.
        """
        text = unidecode(text.replace("L:1/8\n", ""))
        if not text:
            raise ValueError("empty: there is no text to cut into patches")
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        return self._merge_messages(lines) if is_mtf(text) else self._split_bars(lines)

    def _merge_messages(self, lines: list[str]) -> list[str]:
        """Join consecutive MTF messages of one type: `note_on 0 0 60 64\\t0 0 64 64\\n`."""
        patches: list[str] = []
        patch_type = None
        for line in lines:
            message_type, _, arguments = line.partition(" ")
            if message_type == patch_type and len(patches[-1]) + len(arguments) <= self.patch_size - 2:
                patches[-1] = f"{patches[-1][:-1]}\t{arguments}"
            else:
                patches.append(line)
                patch_type = message_type
        return patches

    @staticmethod
    def _split_bars(lines: list[str]) -> list[str]:
        """Cut ABC's music lines behind each barline; fields and directives stay whole."""
        patches = []
        for line in lines:
            if len(line) > 1 and FIELD.match(line):
                patches.append(line)
                continue
            pieces = [piece for piece in BARLINES.split(line) if piece]  # notes and barlines in turn
            if len(pieces) > 1 and BARLINES.fullmatch(pieces[0]):
                pieces[:2] = [pieces[0] + pieces[1]]
            bars = [notes + barline for notes, barline in zip(pieces[::2], pieces[1::2], strict=False)]
            if bars:
                bars[-1] += "\n"
            patches += bars
        return patches

    def encode(
        self,
        text: str | list[str],
        add_special_patches: bool = False,
        max_patches: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The patches of `text` (or of what `split` made of it) as ids, uint8 (patches, patch_size).

        With special patches, one of all-bos opens and one of bos and all-eos closes the sequence. `max_patches` crops
        it (see `crop` for `rng`). Raises ValueError where `text` is empty.
        """
        bos, eos, size = bytes([BOS_ID]), bytes([EOS_ID]), self.patch_size
        patches = self.split(text) if isinstance(text, str) else text
        framed = [bos + patch.encode("ascii") + eos for patch in patches]
        if add_special_patches:
            framed = [bos * size, *framed, bos + eos * (size - 1)]
        if max_patches is not None:
            framed = crop(framed, max_patches, rng)
        ids = b"".join(patch[:size].ljust(size, bytes([PAD_ID])) for patch in framed)
        return np.frombuffer(ids, np.uint8).reshape(-1, size)

    def decode(self, patches: np.ndarray) -> str:
        """The text of `patches` (…, patch_size): the inverse of `encode`, without special ids and special patches."""
        ids = np.asarray(patches).ravel()
        return bytes(ids[ids > MASK_ID].astype(np.uint8)).decode("ascii")


def has_music(patches: list[str]) -> bool:
    """Whether `M3Patchilizer.split` found a bar of ABC, or a MIDI message behind MTF's first line."""
    if patches and is_mtf(patches[0]):
        return len(patches) > 1
    return not all(FIELD.match(patch) for patch in patches)


def remove_instrument_info(text: str) -> str:
    """Take the instruments out of symbolic text: names from ABC's `V:` lines, programs from MTF (they become 0)."""
    if is_mtf(text):
        return re.sub(r"^(program_change .*) .*$", r"\1 0", text, flags=re.MULTILINE)
    return re.sub(r"^(V:.*?) s?nm=.*\n?", r"\1\n", text, flags=re.MULTILINE)
