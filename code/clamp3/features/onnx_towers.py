"""A model's towers as ONNX files: `features.towers` without PyTorch, run by onnxruntime on the CPU.

Their fingerprint is of the files: features of an exported model are never taken for those of the original, with which
they agree to some digits alone.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clamp3.audio.onnx_mert import Cpu, OnnxMert
from clamp3.errors import UserError
from clamp3.features.calls import Output
from clamp3.inputs.tokenizer import TOKENIZER_FILE, read_serialized
from clamp3.io.files import content_hash
from clamp3.modalities import AUDIO, TEXT
from clamp3.models.onnx_files import (
    FEATURES,
    FP32,
    INPUTS,
    MASKS,
    MERT_KEY,
    ONNX_FILE,
    STATES,
    TEXT_FOLDER,
    Session,
    fingerprint_of,
    read_description,
)
from clamp3.sizes import ModelSizes

NOT_HERE = "ONNX files embed, and no more"


class OnnxTowers:
    """The towers of a folder of ONNX files, each opened when it is first used. Threads may share it."""

    name_their_tokenizer = True
    for_listening = ("cpu", FP32)  # device and precision of a MERT in PyTorch, where there is none of ONNX

    def __init__(self, path: Path, described: dict[str, Any], towers: Collection[str], threads: int | None = None):
        """Those of `towers` in the folder `path`, of which `described` is what `read_description` has read.

        Without `threads` they have as many as PyTorch, or as there are cores where that is not imported.
        """
        self.path, self.precision, self.device = path, described["precision"], Cpu()
        text_model = str(path / TEXT_FOLDER)
        self.sizes = replace(ModelSizes.from_knobs(described["sizes"]), text_model_name=text_model)
        self.fingerprint = fingerprint_of(described)
        self._entries = {name: described["towers"][name] for name in towers}
        self._sessions = {
            name: Session(path / one["file"], one["sha256"], threads) for name, one in self._entries.items()
        }
        self.mert: OnnxMert | None = None
        if MERT_KEY in described and AUDIO.name in towers:
            listener = Session(path / described[MERT_KEY]["file"], described[MERT_KEY]["sha256"], threads)
            self.mert = OnnxMert(listener, self.sizes.audio_hidden_size)

    @classmethod
    def load(
        cls, path: Path, device: Any, precision: str, towers: Collection[str] | None, threads: int | None = None
    ) -> "OnnxTowers":
        """Those of a folder, or the given ones. Raises UserError where it is damaged or cannot do what is asked."""
        described = read_description(path)
        if device is not None and str(device) not in ("cpu", "cpu:0"):
            raise UserError(f"ONNX files run on the CPU here, not on {device}")
        if precision not in (FP32, described["precision"]):
            raise UserError(f"{path} was exported in {described['precision']} and runs in that, not in {precision}")
        there = list(described["towers"])
        if isinstance(towers, str) or (towers is not None and not towers):
            raise UserError(f"towers must be a list of some of {', '.join(there)}, not {towers!r}")
        for tower in towers or ():
            if tower not in there:
                raise UserError(f"{path} has no {tower} tower; it has: {', '.join(there)}")
        return cls(path, described, [tower for tower in there if towers is None or tower in towers], threads)

    @property
    def model(self) -> NoReturn:
        raise UserError(f"{NOT_HERE}: there is no model in PyTorch, to be trained or saved, in {self.path}")

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower, and so a tokenizer."""
        return TEXT.name in self._entries

    def fingerprint_of(self, weights: Path | None) -> str:
        """What identifies the files, by their content."""
        return self.fingerprint

    def named_parameters(self) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{NOT_HERE}: their parameters have no names")

    def own_weights(self) -> None:
        """Nothing is mapped from a file."""

    def save(self, *args: Any) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{NOT_HERE}: copy the folder {self.path}, or save the model that it was exported from")

    def check(self, modality: str) -> None:
        """Raise UserError where there is no tower of this modality."""
        if modality not in self._entries:
            there = ", ".join(self._entries)
            raise UserError(f"this Embedder has no {modality} tower, since it was loaded with {there} alone")

    def load_tokenizer(self, name: str, weights_folder: Path | None) -> Any:
        """The text tower's tokenizer. Raises UserError where it is damaged, or not the one that was exported."""
        self.check(TEXT.name)
        entry = self._entries[TEXT.name]["tokenizer"]
        path = self.path / TEXT_FOLDER / TOKENIZER_FILE
        try:
            is_there = content_hash(path) == entry["sha256"]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; export it again") from None
        if not is_there:
            raise UserError(f"{path} is damaged or another file: its SHA-256 is not the one in {ONNX_FILE}")
        return read_serialized(path, entry["special_tokens"])

    def padding(self, modality: str) -> int:
        """What fills up sequences; masks keep it from having an effect."""
        return self._entries[modality]["padding"]

    def prepare(self, modality: str) -> None:
        """Open a tower's file, once. Raises UserError where there is none, or where it cannot be used."""
        self.check(modality)
        self._sessions[modality].open()

    def forward(self, modality: str, padded: np.ndarray, masks: np.ndarray, output: Output) -> np.ndarray:
        """One padded batch through its tower -> (batch, …), as `Output` lists; lengths are those of the longest."""
        if output.layers == "all" or output.projected:
            asked = 'layers="all"' if output.layers == "all" else "projected=True, which explanations take,"
            raise UserError(f"{NOT_HERE}: {asked} needs the weights that they were exported from")
        session, name = self._sessions[modality], FEATURES if output.pooled else STATES
        return session.run([name], {INPUTS: padded, MASKS: masks})[0]
