"""HuBERT's layers, computed faster with the same values."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import HubertModel

CPU_FRAMES = 94  # which `Front` computes at once on a CPU: activations of 12 MB, which stay in its caches


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
        self.others = [
            Convolution(layer.conv.weight.detach().to(device, dtype), layer.conv.stride[0]) for layer in others
        ]

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
        result: Tensor | None = None
        for number, matrix in enumerate(self.matrices):
            # A view: each row is the taps that one frame sees, side by side in memory; rows do not overlap.
            start = number * self.stride
            taps = hidden[start:].flatten().unfold(0, len(matrix), self.stride * channels)[:frames]
            result = taps @ matrix if result is None else result.addmm_(taps, matrix)
        assert result is not None
        return result


class SpectralPosition:
    """HuBERT's convolution that tells positions, (batch, frames, hidden) -> the same: as products of spectra, float32.

    With its 128 taps, that is a small part of the arithmetic, and far less time than CPUs take for it in groups.
    """

    def __init__(self, conv: nn.Conv1d, frames: int):
        """For up to so many `frames`."""
        assert conv.bias is not None
        self.groups, self.bias = conv.groups, conv.bias.detach().float()
        self.padding = int(conv.padding[0])
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
