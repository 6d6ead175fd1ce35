"""Folders of ONNX files, as `clamp3 export` writes them: found, read without trust, and run by onnxruntime.

onnx.json     format, precision, sizes, and of each file its SHA-256; what the files were exported from
text.onnx symbolic.onnx audio.onnx    a tower each: inputs and masks -> features, hidden_states
mert.onnx     what listens to sound, where it was at hand: waves -> features
text/         the text tower's tokenizer, whose SHA-256 is in onnx.json too
parity.json parity.md    how near the features are to those of the original
"""

import hashlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import NO_MEMORY, UserError
from clamp3.io.files import parse_json
from clamp3.io.workers import own_cores
from clamp3.io.wrong_files import AGAIN, problem_of_text_file
from clamp3.modalities import MODALITIES
from clamp3.models.releases import is_name
from clamp3.models.verification import file_state, verified_digest
from clamp3.sizes import ModelSizes

ONNX_FILE = "onnx.json"
FORMAT = 2  # 1 had another int8, whose items had an effect on each other in a batch
FP32, INT8 = "fp32", "int8"
INPUTS, MASKS, FEATURES, STATES, WAVES = "inputs", "masks", "features", "hidden_states", "waves"  # of the graphs
MERT_KEY, TEXT_FOLDER = "mert", "text"
_loading = threading.RLock()
_first_process: int | None = None  # that has opened a file here; its forks inherit this, but not onnxruntime's threads


def is_onnx(weights: str | Path) -> bool:
    """Whether weights are given as a folder of ONNX files."""
    return not is_name(weights) and Path(weights, ONNX_FILE).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """What onnx.json says of its folder. Raises UserError where it is damaged, or of a later version."""
    path = folder / ONNX_FILE
    try:
        described = parse_json(path.read_text(encoding="utf-8"))
        files = [*described["towers"].values(), *([described[MERT_KEY]] if MERT_KEY in described else [])]
        if not described["towers"] or set(described["towers"]) - set(MODALITIES):
            raise ValueError(f"towers {', '.join(described['towers'])}")
        if any(Path(one["file"]).name != one["file"] or not isinstance(one["sha256"], str) for one in files):
            raise ValueError("files")
        if described["precision"] not in (FP32, INT8):
            raise ValueError(f"precision {described['precision']!r}")
        ModelSizes.from_knobs(described["sizes"])
        written = int(described["format"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = problem_of_text_file(path) or f"it describes no ONNX files of this library ({error!r})"
        raise UserError(f"{path} cannot be used: {reason}") from None
    if written > FORMAT:
        raise UserError(f"{path} was written by a later version of clamp3: update this one")
    if written < FORMAT and described["precision"] == INT8:
        raise UserError(f"{path} was written by an earlier version of clamp3, whose int8 was another: export it again")
    return described


def fingerprint_of(described: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that identify the towers of a description, by the content of their files."""
    digests = [f"{name} {entry['sha256']}" for name, entry in sorted(described["towers"].items())]
    return hashlib.sha256(" ".join(["onnx", *digests]).encode()).hexdigest()[:16]


class Session:
    """A file of ONNX, opened when it is first used. Threads may share it, and it can be pickled."""

    def __init__(self, path: Path, sha256: str, threads: int | None = None):
        self.path, self.sha256, self.threads = path, sha256, threads
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def open(self) -> Any:
        """onnxruntime's session. Raises UserError where the file is missing, not the one that was exported, or bad.

        Also in a fork of a process that has opened one, where to compute would wait for ever.
        """
        global _first_process
        _first_process = _first_process or os.getpid()
        if _first_process != os.getpid():
            raise UserError(
                "this process was forked from one that had opened ONNX files, and the threads of onnxruntime are lost "
                'in it: start processes by spawn (multiprocessing.get_context("spawn"))'
            )
        with _loading:
            if self._session is None:
                self._session = self._opened()
            return self._session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs. Raises MemoryError where the memory does not suffice."""
        session = self.open()
        try:
            return session.run(list(outputs), dict(inputs))
        except Exception as error:  # onnxruntime's own kinds, which derive from Exception alone
            if NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from None
            raise

    def _opened(self) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise UserError('ONNX files need onnxruntime: pip install "clamp3[onnx]"') from None
        try:
            before = file_state(os.stat(self.path))
            if verified_digest(self.path) != self.sha256:
                raise UserError(f"{self.path} is damaged or another file: its SHA-256 is not the one in {ONNX_FILE}")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors alone
            torch = sys.modules.get("torch")
            options.intra_op_num_threads = self.threads or (torch.get_num_threads() if torch else own_cores())
            session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            if file_state(os.stat(self.path)) != before:
                raise UserError(f"{self.path} is being written: try again when it is whole")
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; export it again") from None
        except UserError:
            raise
        except Exception as error:  # onnxruntime's own kinds
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.path} cannot be used by onnxruntime ({reason}); {AGAIN}") from None
        return session
