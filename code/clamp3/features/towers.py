"""What computes an Embedder's features: a model's towers in PyTorch. `features.onnx` has the same of ONNX files."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clamp3.distributed import PRECISIONS, checked_precision, usable_device
from clamp3.errors import UserError
from clamp3.features.calls import Output
from clamp3.inputs.patchilizer import PAD_ID
from clamp3.inputs.tokenizer import load_tokenizer
from clamp3.modalities import MODALITIES, TEXT
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import is_packable, masked_mean
from clamp3.models.linear import multiply_by_onednn
from clamp3.models.m3 import M3Model, M3PatchEncoder
from clamp3.models.saving import save_model
from clamp3.models.text import check_vocabulary
from clamp3.models.weight_files import fingerprint
from clamp3.models.weights import source_of
from clamp3.sizes import ModelSizes

_preparing = threading.RLock()  # held while a tower, of several threads perhaps, gets ready
_first_process: int | None = None  # that has computed here; its forks inherit this, but not the threads of torch


def check_process() -> None:
    """Raise UserError where to compute would wait for ever: for threads that a fork of this process has lost."""
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise UserError(
            "this process was forked from one that had loaded a model, and the threads of torch are lost in it: start "
            'processes by spawn (multiprocessing.get_context("spawn")), or call torch.set_num_threads(1) in them'
        )


class Towers:
    """A model on a device, each of its towers prepared when it is first used. Threads may share it."""

    def __init__(self, model: CLaMP3Model | M3Model, device: str | torch.device | None, precision: str):
        """The model is taken over: it goes to the device and into evaluation mode, and loses its unused poolers."""
        self.device = usable_device(device)
        self.precision = checked_precision(precision)
        self.model = model.eval()
        self._ready: set[str] = set()

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower, and so a tokenizer."""
        return isinstance(self.model, CLaMP3Model)

    @property
    def for_listening(self) -> tuple[torch.device, str]:
        """Device and precision of the MERT that is loaded for this model."""
        return self.device, self.precision

    def fingerprint_of(self, weights: Path | None) -> str | None:
        """What identifies the weights, which are those of a file, if given; of the one that was loaded, as it was."""
        source = source_of(self.model)
        if source and source.path == weights:  # the file may be another one by now
            return source.fingerprint
        return fingerprint(weights) if weights else None

    @property
    def name_their_tokenizer(self) -> bool:
        """Whether the weights say themselves which tokenizer they take."""
        source = source_of(self.model)
        return bool(source and source.description)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's weights by their names in its file, but those that no feature needs."""
        return ((name, weight) for name, weight in self.model.named_parameters() if ".pooler." not in name)

    def own_weights(self) -> None:
        """Read all weights into memory that are mapped from a file."""
        if source := source_of(self.model):
            source.own_all(self.model)

    def save(
        self,
        sizes: ModelSizes,
        folder: Path,
        precision: str,
        fingerprint: str | None,
        mert: Path | None,
        name: str | None,
    ) -> None:
        """As `Embedder.save_pretrained`."""
        if self.precision != "fp32" and self._ready:
            raise UserError(f"the weights are rounded to {self.precision} by now: save an Embedder in fp32")
        save_model(self.model, sizes, folder, precision, None, fingerprint, mert, name)

    def check(self, modality: str) -> None:
        """Raise UserError where the model has no tower of this modality."""
        if modality in self.model.towers:
            return
        if isinstance(self.model, M3Model):
            raise UserError(f"M3 reads symbolic music alone, not {modality}; load CLaMP 3 for that")
        there = ", ".join(self.model.towers)
        raise UserError(f"this Embedder has no {modality} tower, since it was loaded with {there} alone")

    def load_tokenizer(self, name: str, weights_folder: Path | None) -> Any:
        """The text model's tokenizer. Raises UserError as `inputs.tokenizer.load_tokenizer`, or if it is another's."""
        self.check(TEXT.name)
        tokenizer = load_tokenizer(name, weights_folder)
        if isinstance(self.model, CLaMP3Model):
            check_vocabulary(self.model.text_model, tokenizer, name)
        return tokenizer

    def padding(self, modality: str) -> int:
        """What fills up sequences; masks keep it from having an effect."""
        config = getattr(self.model.towers[modality], "config", None)
        return getattr(config, "pad_token_id", None) or PAD_ID

    @torch.inference_mode()
    def forward(self, modality: str, padded: np.ndarray, masks: np.ndarray, output: Output) -> np.ndarray:
        """One padded batch through its tower -> (batch, …), as `Output` lists; lengths are those of the longest."""
        inputs, masks_there = torch.from_numpy(padded), torch.from_numpy(masks)
        if output.layers == "all":
            layers = self.model.get_hidden_states(modality, inputs, masks_there)
            states = torch.stack([masked_mean(one, masks_there) for one in layers] if output.pooled else layers, dim=1)
        else:
            states = self.model.get_features(modality, inputs, masks_there, get_global=output.pooled)
        if output.projected:
            states = self.model.project(modality, states.float())
        return states.float().cpu().numpy()

    def prepare(self, modality: str) -> None:
        """Bring a tower to the device and into the precision, once; leave out what features do not need.

        Raises UserError where there is none, or where this process cannot compute.
        """
        check_process()
        with _preparing:
            if modality in self._ready:
                return
            self.check(modality)
            parts: list[nn.Module]
            if isinstance(self.model, M3Model):
                parts = [self.model.encoder]
            else:
                names = (MODALITIES[modality].tower, MODALITIES[modality].projection)
                parts = [getattr(self.model, name) for name in names]
            network = self.model.towers[modality]
            if is_packable(network):
                network.pooler = None  # type: ignore[assignment]  # its output is not used
            for part in parts:
                if source := source_of(self.model):
                    source.own_all(part)
                if isinstance(part, M3PatchEncoder):
                    part.patch_embedding.store_by_character()
                part.to(self.device)
                multiply_by_onednn(part)
            if self.precision != "fp32":
                lower_precision(network, PRECISIONS[self.precision])
            self._ready.add(modality)


def lower_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of `network` compute in `dtype`, while its embeddings stay in float32.

    A network of another family than BERT and RoBERTa keeps its weights and computes under autocast.
    """
    if is_packable(network):
        network.encoder.to(dtype)
        network.embeddings.register_forward_hook(_Cast(dtype))
    else:
        network.forward = _Autocast(network, dtype)


@dataclass(frozen=True)
class _Cast:
    """A forward hook that brings a module's output into `dtype`; unlike a closure it can be pickled."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(self.dtype)


@dataclass(frozen=True)
class _Autocast:
    """The `forward` of `network` under autocast; unlike a closure it can be pickled."""

    network: nn.Module
    dtype: torch.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.network.parameters()).device.type, self.dtype):
            return type(self.network).forward(self.network, *args, **kwargs)
