"""The contrastive loss, in one process or over the global batch of several."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class AllGatherRows(torch.autograd.Function):
    """The rows (batch, hidden) of all processes, in order of rank (processes * batch, hidden), with gradients.

    PyTorch's own `torch.distributed.nn.functional.all_gather` is deprecated, and what replaces it is not public yet.
    """

    @staticmethod
    def forward(_context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)  # every process has used the rows of every process
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class ClipLoss(nn.Module):
    """Symmetric cross-entropy of `logit_scale * text @ music.T` over a batch of pairs (CLaMP 3 paper, section 3).

    With several processes the features of all are gathered with gradients, and each process scores its own pairs
    against the whole global batch: rows, not the full square, so that memory grows with the local batch. The mean of
    the returned losses over the processes is the loss of the global batch, and averaging gradients (as
    DistributedDataParallel does) yields its gradient. All processes must hold equally many pairs.
    """

    def __init__(self, logit_scale: float = 1.0):
        super().__init__()
        self.logit_scale = logit_scale

    def forward(self, text_features: Tensor, music_features: Tensor) -> Tensor:
        """(batch, hidden) twice, row i of one belonging to row i of the other -> scalar."""
        all_text, all_music, first = text_features, music_features, 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            all_text = AllGatherRows.apply(text_features)  # (processes * batch, hidden)
            all_music = AllGatherRows.apply(music_features)
            first = dist.get_rank() * len(text_features)
        return rows_loss(text_features, music_features, all_text, all_music, first, self.logit_scale)


def rows_loss(
    text: Tensor, music: Tensor, all_text: Tensor, all_music: Tensor, first: int = 0, logit_scale: float = 1.0
) -> Tensor:
    """The loss of the rows (batch, hidden) that begin at row `first` of the global batch (global batch, hidden)."""
    labels = torch.arange(first, first + len(text), device=text.device)
    text_logits = logit_scale * text @ all_music.T  # (batch, global batch)
    music_logits = logit_scale * music @ all_text.T
    return (F.cross_entropy(text_logits, labels) + F.cross_entropy(music_logits, labels)) / 2
