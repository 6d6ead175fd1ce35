"""MERT, the network that listens: windows of sound -> features, each layer's hidden states averaged over time.

MERT-v1-95M is a plain HuBERT, so its weights go into transformers' HubertModel, and none of its own code is run.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import parametrize

from clamp3.audio.mert_layers import Front, SpectralPosition
from clamp3.audio.windows import BATCH_SECONDS, WINDOW, each_whole, windows
from clamp3.distributed import PRECISIONS, checked_precision, usable_device
from clamp3.errors import Note, UserError, warn
from clamp3.io.files import parse_json
from clamp3.io.wrong_files import AGAIN, problem_of_text_file
from clamp3.modalities import SAMPLING_RATE
from clamp3.models.linear import multiply_by_onednn
from clamp3.models.weights import build_with_weights, fingerprint, read_weights

if TYPE_CHECKING:
    from transformers import HubertConfig, HubertModel

RELEASED = "m-a-p/MERT-v1-95M"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
# What of a MERT's configuration makes its network; the rest is about training it.
ARCHITECTURE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("conv_dim", "conv_kernel", "conv_stride", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
    *("feat_proj_layer_norm", "mask_time_prob", "mask_feature_prob"),
)
# What it must say, or leave unsaid, for the network to be the HuBERT that is computed here.
REQUIRED = {
    "sample_rate": SAMPLING_RATE,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_bias": False,
    "do_stable_layer_norm": False,
    "feature_extractor_cqt": False,
    "deepnorm": False,
    "attention_relax": -1.0,
}
# The positional convolution's weights, as PyTorch named them before 2.0 and as it names them since.
RENAMED = {"conv.weight_g": "conv.parametrizations.weight.original0"}
RENAMED["conv.weight_v"] = "conv.parametrizations.weight.original1"


class Mert:
    """An AudioEncoder: turns sound into MERT features, float32. They do not depend on what else is in a call."""

    rate = SAMPLING_RATE
    window = WINDOW / SAMPLING_RATE

    def __init__(
        self,
        model: "HubertModel",
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_seconds: float | None = None,
        identity: str | None = None,
    ):
        """The model is taken over. `batch_seconds` bounds a batch; None takes what suits the device.
        `identity` tells the weights from others.

        In bf16 and fp16 the network computes in that precision, but for the first convolution with its norm, and for
        the means over time.
        """
        self.device = usable_device(device)
        self.precision = checked_precision(precision)
        self.batch_seconds = batch_seconds or BATCH_SECONDS["cpu" if self.device.type == "cpu" else "other"]
        self.width: int = model.config.hidden_size
        self.identity = identity
        dtype = PRECISIONS[precision]
        self._front = Front(model, self.device, dtype)
        self._projection = model.feature_projection.eval().to(self.device, dtype)
        self._encoder = model.encoder.eval().to(self.device)
        # Made once, not at each use.
        parametrize.remove_parametrizations(self._encoder.pos_conv_embed.conv, "weight")
        self._position = self._encoder.pos_conv_embed
        if self.device.type == "cpu":
            self._position = SpectralPosition(self._position.conv, frames=WINDOW // self._front.hop)
        self._encoder.to(dtype)
        for part in (self._projection, self._encoder):
            multiply_by_onednn(part)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = RELEASED,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_seconds: float | None = None,
    ) -> "Mert":
        """Load a folder with config.json and the weights, or a hub's model from its cache or, once, from the hub."""
        model = build_hubert(find_mert(str(name_or_path)))
        return cls(model, device, precision, batch_seconds, mert_identity(name_or_path))

    def prepare(self, waveform: np.ndarray, note: Note = warn) -> Iterator[np.ndarray]:
        """The windows of a waveform (samples,) at 24 kHz, as `windows` normalizes and cuts it, warns and raises."""
        return windows(waveform, note)

    def extract(self, sounds: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """`extract_layers`, averaged over the layers: frames (windows, hidden), what the audio tower reads."""
        return ((index, layers.mean(axis=0)) for index, layers in self.extract_layers(sounds))

    def extract_layers(self, sounds: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, features (layers, windows, hidden)) of each of `sounds`, what `prepare` returns, once whole.

        They are taken one by one, as the network gets to them.
        """
        for index, layers in each_whole(sounds, self.forward, self.batch_seconds):
            yield index, np.stack(layers, axis=1)

    @torch.inference_mode()
    def forward(self, waves: np.ndarray) -> np.ndarray:
        """Normalized windows of one length, 5 s at most (batch, samples) -> (batch, layers, hidden)."""
        hidden = self._projection(self._front(torch.from_numpy(waves)))  # (batch, frames, hidden)
        hidden = self._encoder.layer_norm(hidden + self._position(hidden))
        means = [hidden.mean(1, dtype=torch.float32)]
        for layer in self._encoder.layers:
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5
            means.append(hidden.mean(1, dtype=torch.float32))
        return torch.stack(means, dim=1).cpu().numpy()


# ---------- finding and loading ----------


def mert_identity(name_or_path: str | Path) -> str:
    """What tells a MERT from others: the content of a folder, or its name on the hub."""
    return fingerprint(Path(name_or_path)) if Path(name_or_path).is_dir() else str(name_or_path)


def find_mert(name_or_path: str) -> Path:
    """The folder that holds a model: `name_or_path`, or the hub's cache of the model so named, downloaded if need be.

    Nothing is asked of the network where the cache has it. Raises UserError where the model cannot be had.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    complaint = "it has neither model.safetensors nor pytorch_model.bin"
    for cached in (True, False):
        for weights in WEIGHTS_FILES:
            try:
                patterns = ["config.json", weights]
                folder = Path(snapshot_download(name_or_path, allow_patterns=patterns, local_files_only=cached))
            except Exception as error:  # the hub's client raises many kinds; none is the user's to read as a traceback
                complaint = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            if all((folder / name).is_file() for name in patterns):
                return folder
    raise UserError(
        f"no model {name_or_path}: it is no folder here, and the Hugging Face hub does not give it ({complaint}).\n"
        f"  get:  config.json and model.safetensors (or pytorch_model.bin) from https://huggingface.co/{RELEASED}\n"
        "  put:  them into a folder, and name that folder as the model's path"
    )


def build_hubert(folder: Path) -> "HubertModel":
    """The HubertModel of a MERT folder, with weights of its own. Raises UserError unless they fit exactly."""
    from transformers import HubertModel

    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {' and no '.join(WEIGHTS_FILES)}")
    weights = {_present_name(name): tensor for name, tensor in read_weights(path, mapped=False).items()}
    config = _hubert_config(folder / "config.json")
    advice = f"it is not the network that {folder / 'config.json'} describes"
    return build_with_weights(lambda: HubertModel(config), weights, path, advice)


def _present_name(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _hubert_config(path: Path) -> "HubertConfig":
    """What a MERT's config.json says about its network. Raises UserError where that is none that we compute."""
    from transformers import HubertConfig

    try:
        said = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or not said.keys() & set(ARCHITECTURE):
            raise ValueError(f"it describes no network; {AGAIN}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {problem_of_text_file(path) or error}") from None
    for key, value in REQUIRED.items():
        if said.get(key, value) != value:
            raise UserError(f"{path} says {key} = {said[key]}, where {RELEASED} has {value}: CLaMP 3 needs that model")
    return HubertConfig(**{key: said[key] for key in ARCHITECTURE if key in said})
