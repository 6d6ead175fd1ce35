"""MERT, the network that listens: windows of sound -> features, each layer's hidden states averaged over time.

MERT-v1-95M is a plain HuBERT, so its weights go into transformers' HubertModel, and none of its own code is run.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clamp3.checkpoints import check_weights, read_weights
from clamp3.convert.audio import SAMPLING_RATE, WINDOW, windows
from clamp3.distributed import PRECISIONS, checked_precision, usable_device
from clamp3.errors import UserError

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
# Enough to keep the arithmetic units busy; more makes no CPU faster, since activations then leave its caches.
BATCH_SECONDS = {"cpu": 20, "other": 160}
WAITING_BATCHES = 4  # bounds, in batches, what waits for more windows of its length
CPU_FRAMES = 94  # which `Front` computes at once on a CPU: activations of 12 MB, which stay in its caches
PAIRED_CHANNELS = 256  # from which on a saved product is worth the sums that save it


@dataclass(frozen=True)
class Window:
    """A stretch of a track that the network takes at once."""

    track: int
    position: int
    samples: np.ndarray


def batches(items: Iterable[Window], batch_samples: float) -> Iterator[list[Window]]:
    """Windows of one length together, without padding, which would change the norm over time in the first layer."""
    waiting: dict[int, list[Window]] = {}  # by length
    total = 0
    for item in items:
        length = len(item.samples)
        batch = waiting.setdefault(length, [])
        batch.append(item)
        total += length
        if (len(batch) + 1) * length > batch_samples:
            total -= len(batch) * length
            yield waiting.pop(length)
        elif total > WAITING_BATCHES * batch_samples:
            yield from waiting.values()
            waiting, total = {}, 0
    yield from waiting.values()


class Mert:
    """Turns sound into MERT features, float32. They do not depend on what else is in a call."""

    def __init__(
        self,
        model: "HubertModel",
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_seconds: float | None = None,
    ):
        """The model is taken over. `batch_seconds` bounds a batch; None takes what suits the device.

        In bf16 and fp16 the network computes in that precision, but for the first convolution with its norm, and for
        the means over time.
        """
        self.device = usable_device(device)
        self.precision = checked_precision(precision)
        self.batch_seconds = batch_seconds or BATCH_SECONDS["cpu" if self.device.type == "cpu" else "other"]
        self.hidden_size: int = model.config.hidden_size
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

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = RELEASED,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_seconds: float | None = None,
    ) -> "Mert":
        """Load a folder with config.json and the weights, or a hub's model from its cache or, once, from the hub."""
        return cls(build_hubert(find_mert(str(name_or_path))), device, precision, batch_seconds)

    def extract(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, features (layers, windows, hidden)) of each waveform (samples,) at 24 kHz, once it is whole.

        Waveforms are taken one by one, as the network gets to them; `windows` says how each is normalized and cut,
        and what it warns of and raises.
        """
        return self.extract_windows(windows(waveform) for waveform in waveforms)

    def extract_windows(self, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """The same for tracks that are given as their windows (samples,)."""
        lengths: dict[int, int] = {}  # in windows, of the tracks that have been taken to their end
        parts: dict[int, dict[int, np.ndarray]] = {}

        def items() -> Iterator[Window]:
            for track, cut in enumerate(tracks):
                parts[track], position = {}, -1
                for position, samples in enumerate(cut):
                    yield Window(track, position, samples)
                lengths[track] = position + 1

        def whole() -> Iterator[tuple[int, np.ndarray]]:
            for track in [track for track, length in lengths.items() if len(parts[track]) == length]:
                done = parts.pop(track)
                yield track, np.stack([done[position] for position in range(lengths.pop(track))], axis=1)

        for batch in batches(items(), self.batch_seconds * SAMPLING_RATE):
            features = self.forward(np.stack([window.samples for window in batch]))
            for window, feature in zip(batch, features, strict=True):
                parts[window.track][window.position] = feature
            yield from whole()
        yield from whole()

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


class Front:
    """HuBERT's convolutions: sound (batch, samples) -> (batch, frames, channels), 75 frames a second.

    The values are those of its feature_extractor; three things make them come faster. Activations are (time,
    channels), so that a convolution is a few products of matrices that are there already. The first layer's norm,
    over time, is known before its convolution is computed: mean and variance of its output follow from those of the
    sound it slides over, and go into its weights. And on a CPU, frames are computed in blocks that its caches hold.
    """

    def __init__(self, model: "HubertModel", device: torch.device, dtype: torch.dtype):
        first, *others = model.feature_extractor.conv_layers
        self.device, self.dtype = device, dtype
        self.kernels, self.strides = model.config.conv_kernel, model.config.conv_stride
        self.hop = math.prod(self.strides)  # samples from frame to frame
        self.field = 1  # samples that a frame depends on
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            self.field = (self.field - 1) * stride + kernel
        # The statistics need float64, which not all devices have, and little arithmetic: they stay on the CPU.
        self.first = first.conv.weight.detach()[:, 0].double()  # (channels, kernel)
        self.norm = first.layer_norm
        self.others = [self._convolution(layer.conv) for layer in others]

    def _convolution(self, conv: nn.Conv1d) -> "Convolution | PairedConvolution":
        weight, (stride,) = conv.weight.detach().to(self.device, self.dtype), conv.stride
        in_pairs = weight.shape[2] == 3 and stride == 2 and weight.shape[1] >= PAIRED_CHANNELS
        if in_pairs and self.device.type == "cpu" and self.dtype == torch.float32:
            return PairedConvolution(weight)
        return Convolution(weight, stride)

    def __call__(self, waves: Tensor) -> Tensor:
        weights, shifts = (folded.to(self.device) for folded in self._normalized_first(waves))
        waves = waves.to(self.device)
        frames = (waves.shape[1] - self.field) // self.hop + 1
        step = CPU_FRAMES if self.device.type == "cpu" else frames
        windows = []
        for wave, weight, shift in zip(waves, weights, shifts, strict=True):
            blocks = []
            for start in range(0, frames, step):
                last = min(start + step, frames) - 1
                blocks.append(self._block(wave[start * self.hop : last * self.hop + self.field], weight, shift))
            windows.append(torch.cat(blocks))
        return torch.stack(windows)

    def _normalized_first(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution with its norm: weights (batch, kernel, channels), shifts (batch, channels)."""
        patches = waves.double().unfold(1, self.kernels[0], self.strides[0])  # (batch, time, kernel)
        mean = patches.mean(1, keepdim=True)  # (batch, 1, kernel)
        patches = patches - mean
        covariance = patches.mT @ patches / patches.shape[1]  # (batch, kernel, kernel)
        variance = ((self.first @ covariance) * self.first).sum(-1).clamp(min=0)  # (batch, channels)
        scale = self.norm.weight.double() * torch.rsqrt(variance + self.norm.eps)
        weights = self.first.t() * scale[:, None]
        return weights.float(), (self.norm.bias.double() - mean @ weights).float().squeeze(1)

    def _block(self, sound: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        hidden = torch.addmm(shift, sound.unfold(0, self.kernels[0], self.strides[0]), weight)
        hidden = F.gelu(hidden.to(self.dtype))  # (time, channels), likewise below
        for convolution in self.others:
            hidden = F.gelu(convolution(hidden))
        return hidden


class Convolution:
    """A convolution over time of (time, channels), without copies of what it slides over."""

    def __init__(self, weight: Tensor, stride: int):
        """`weight` is (channels out, channels in, kernel)."""
        self.kernel, self.stride = weight.shape[2], stride
        # As matrices (taps x channels in, channels out), each of as many taps as the stride at most.
        self.matrices = [taps.flatten(1).contiguous().t() for taps in weight.permute(0, 2, 1).split(stride, dim=1)]

    def __call__(self, hidden: Tensor) -> Tensor:
        time, channels = hidden.shape
        frames = (time - self.kernel) // self.stride + 1
        result = None
        for number, matrix in enumerate(self.matrices):
            # A view: each row is the taps that one frame sees, side by side in memory; rows do not overlap.
            start = number * self.stride
            taps = hidden[start:].flatten().unfold(0, len(matrix), self.stride * channels)[:frames]
            result = taps @ matrix if result is None else result.addmm_(taps, matrix)
        return result


class PairedConvolution:
    """The same for a kernel of 3 and a stride of 2, in 5 products for two frames instead of 6 (as Winograd's F(2,2)).

    The frames 0, 2, 4, … of what it slides over meet the kernel's taps 0 and 2: one output is a·x0 + c·x2, the next
    a·x2 + c·x4. Both are (a + c)·x2 plus a product of a difference: a·(x0 - x2), and c·(x4 - x2).
    """

    def __init__(self, weight: Tensor):
        """`weight` is (channels out, channels in, 3)."""
        self.plain = Convolution(weight, stride=2)
        self.first, self.middle, self.last = (taps.contiguous().t() for taps in weight.unbind(2))
        self.both = self.first + self.last

    def __call__(self, hidden: Tensor) -> Tensor:
        frames = (len(hidden) - 3) // 2 + 1
        pairs = frames // 2
        x0, x1, x2, x3, x4 = (hidden[start::4][:pairs] for start in range(5))
        shared = x2 @ self.both
        one = torch.addmm(shared, x1, self.middle).addmm_(x0 - x2, self.first)
        other = shared.addmm_(x3, self.middle).addmm_(x4 - x2, self.last)
        result = hidden.new_empty(frames, shared.shape[1])
        torch.stack([one, other], dim=1, out=result[: 2 * pairs].unflatten(0, (pairs, 2)))
        if frames % 2:
            result[-1] = self.plain(hidden[2 * frames - 2 :])
        return result


class SpectralPosition:
    """HuBERT's convolution that tells positions, (batch, frames, hidden) -> the same: as products of spectra, float32.

    With its 128 taps, that is a small part of the arithmetic, and far less time than CPUs take for it in groups.
    """

    def __init__(self, conv: nn.Conv1d, frames: int):
        """For up to so many `frames`."""
        self.groups, self.padding, self.bias = conv.groups, conv.padding[0], conv.bias.detach().float()
        kernel = conv.kernel_size[0]
        self.length = 1 << (frames + kernel - 2).bit_length()  # so that what wraps around is padding
        spectrum = torch.fft.rfft(conv.weight.detach().float(), self.length, dim=2).conj()  # (out, in, frequencies)
        self.spectrum = spectrum.unflatten(0, (self.groups, -1)).permute(3, 0, 2, 1).resolve_conj().contiguous()

    def __call__(self, hidden: Tensor) -> Tensor:
        padded = F.pad(hidden.float(), (0, 0, self.padding, 0))
        spectrum = torch.fft.rfft(padded, self.length, dim=1).unflatten(2, (self.groups, -1))
        product = spectrum.permute(1, 2, 0, 3) @ self.spectrum  # (frequencies, groups, batch, channels of a group)
        summed = torch.fft.irfft(product.permute(2, 0, 1, 3).flatten(2), self.length, dim=1)
        return F.gelu(summed[:, : hidden.shape[1]] + self.bias).to(hidden.dtype)


# ---------- finding and loading ----------


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
    """The HubertModel of a MERT folder, its weights mapped from the file. Raises UserError unless they fit exactly."""
    from accelerate import init_empty_weights
    from transformers import HubertModel

    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {' and no '.join(WEIGHTS_FILES)}")
    weights = {_present_name(name): tensor for name, tensor in read_weights(path).items()}
    with init_empty_weights(include_buffers=False):
        model = HubertModel(_hubert_config(folder / "config.json"))
    check_weights(model, weights, path, advice=f"it is not the network that {folder / 'config.json'} describes")
    model.load_state_dict(weights, assign=True)
    return model


def _present_name(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _hubert_config(path: Path) -> "HubertConfig":
    """What a MERT's config.json says about its network. Raises UserError where that is none that we compute."""
    from transformers import HubertConfig

    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for key, value in REQUIRED.items():
        if said.get(key, value) != value:
            raise UserError(f"{path} says {key} = {said[key]}, where {RELEASED} has {value}: CLaMP 3 needs that model")
    return HubertConfig(**{key: said[key] for key in ARCHITECTURE if key in said})
