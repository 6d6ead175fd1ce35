from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clamp3.distributed import gather, on_main
from clamp3.inputs.patchilizer import PAD_ID
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import to_device
from clamp3.models.losses import rows_loss
from clamp3.models.m3 import M3Model
from clamp3.search.metrics import metrics
from clamp3.search.ranking import ranks_of_pairs
from clamp3.training.data import Batch
from clamp3.training.distributed import mean_over_processes, random_state, set_random_state

if TYPE_CHECKING:
    from accelerate import PartialState


# ---------- what is minimized ----------


class Contrastive:
    """CLaMP 3's objective: texts and music of a batch find each other."""

    project = "clamp3"

    def __init__(self, model: CLaMP3Model, modality: str, micro_batch: int = 0):
        """`micro_batch` bounds what goes through the towers at once; 0: the whole batch. The loss is the same."""
        self.model, self.modality, self.micro_batch = model, modality, micro_batch

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(batch, hidden) of texts and of music."""
        text = self.model.get_text_features(*batch.tensors["text"], get_global=True)
        return text, self.model.get_features(self.modality, *batch.tensors["music"], get_global=True)

    def backward(self, batch: Batch, autocast: Callable, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the gradients of this process's share of the global loss, and return that share.

        Averaged over the processes, gradients and shares are those of the global batch. With `micro_batch`, the
        features are computed piece by piece without a graph; then, for each piece again and with the same dropout,
        the gradients that the loss has with respect to them go on into the towers (GradCache, arXiv 2101.06983).
        """
        if not 0 < self.micro_batch < len(batch):
            with autocast():
                text, music = self.features(batch)
            loss = self.model.loss(text.float(), music.float())
            scale(loss).backward()
            return loss.detach()

        pieces, states, cached = list(batch.pieces(self.micro_batch)), [], []
        for piece in pieces:
            states.append(random_state())
            with torch.no_grad(), autocast():
                cached.append(self.features(piece))
        text, music = (torch.cat(part).float().requires_grad_() for part in zip(*cached, strict=True))
        loss = self.model.loss(text, music)
        scale(loss).backward()
        after = random_state()
        gradients = zip(text.grad.split(self.micro_batch), music.grad.split(self.micro_batch), strict=True)
        for piece, state, piece_gradients in zip(pieces, states, gradients, strict=True):
            set_random_state(state)
            with autocast():
                features = self.features(piece)
            trained = [(f.float(), g) for f, g in zip(features, piece_gradients, strict=True) if f.requires_grad]
            torch.autograd.backward(*map(list, zip(*trained, strict=True)))
        set_random_state(after)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], state: "PartialState") -> dict[str, float]:
        """The loss of global batches, a mean over all items, and how well texts and music find each other among all.

        Each process returns the same figures.
        """
        own = []
        for batch in batches:
            features = self.features(batch) if len(batch) else ()
            own.append([feature.float().cpu().numpy() for feature in features])
        shares = gather(state, [own])  # by process and batch
        return on_main(state, lambda: self.figures(shares))

    def figures(self, shares: list[list[list[np.ndarray]]]) -> dict[str, float]:
        """What `evaluate` returns, from the features that it has gathered."""
        batches = [
            [np.concatenate(parts) for parts in zip(*filter(None, b), strict=True)] for b in zip(*shares, strict=True)
        ]
        total = 0.0
        for batch in batches:
            pair = [torch.from_numpy(features) for features in batch]
            total += float(rows_loss(*pair, *pair, logit_scale=self.model.loss.logit_scale)) * len(pair[0])
        texts, music = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        found = {"eval_loss": total / len(texts)}
        found |= {f"text_to_music_{name}": value for name, value in metrics(ranks_of_pairs(texts, music)).items()}
        found |= {f"music_to_text_{name}": value for name, value in metrics(ranks_of_pairs(music, texts)).items()}
        return found


class Reconstruction:
    """M3's objective: patches are spelled from their hidden states."""

    modality, project = None, "m3"

    def __init__(self, model: M3Model):
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the characters of the selected patches."""
        (inputs, masks), (selected, _), (targets, _) = (batch.tensors[n] for n in ("inputs", "selected", "targets"))
        return self.model(inputs, masks, selected, targets)

    def backward(self, batch: Batch, autocast: Callable, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """As Contrastive's. Processes hold different numbers of characters, so their means are weighted."""
        with autocast():
            loss = self.loss(batch)
        weight = characters_to_predict(batch)
        loss = loss * weight / mean_over_processes(to_device(weight, loss.device))
        scale(loss).backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], state: "PartialState") -> dict[str, float]:
        """The loss of global batches, a mean over all pieces; the same in each process."""
        own = []
        for batch in batches:
            weight = float(characters_to_predict(batch)) if len(batch) else 0.0
            own.append((len(batch), weight, weight and weight * float(self.loss(batch))))
        sums = [np.sum(parts, axis=0) for parts in zip(*gather(state, [own]), strict=True)]  # of each global batch
        return {"eval_loss": float(sum(n * loss / weight for n, weight, loss in sums) / sum(n for n, _, _ in sums))}


def characters_to_predict(batch: Batch) -> Tensor:
    """How many characters the loss of an M3 batch is the mean of, as a scalar."""
    selected, targets = batch.tensors["selected"][0], batch.tensors["targets"][0]
    return (targets[selected.bool()][:, 1:] != PAD_ID).sum().float()
