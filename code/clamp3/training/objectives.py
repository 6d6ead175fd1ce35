"""What is minimized, one class for each: the contrastive loss of CLaMP 3 and the reconstruction loss of M3.

An objective is a module: its forward pass is what DistributedDataParallel wraps, and its model's weights are those of
`model` alone.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clamp3.distributed import gather, on_main
from clamp3.errors import UserError
from clamp3.inputs.patchilizer import PAD_ID
from clamp3.modalities import MODALITIES, TEXT
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.models.packing import to_device
from clamp3.training.batches import Batch
from clamp3.training.distributed import (
    RandomState,
    gather_rows_on_main,
    gradient_sync,
    mean_over_processes,
    random_state,
    set_random_state,
)
from clamp3.training.evaluation import retrieval_figures

if TYPE_CHECKING:
    from accelerate import PartialState

NOTHING_HELD_OUT = "no item of the evaluation set can be read; hold out others, by EVAL_SPLIT or SEED"
SIDES = ("text", "music")  # of a pair, by the names of its sequences


class Contrastive(nn.Module):
    """CLaMP 3's objective: texts and music of a batch find each other."""

    project = "clamp3"
    less_memory = "Set CLAMP3_MICRO_BATCH (at most so many at once, with the same result), RECOMPUTE_LAYERS = True"

    def __init__(self, model: CLaMP3Model, modality: str, micro_batch: int = 0):
        """`micro_batch` bounds what goes through the towers at once; 0: the whole batch. The loss is the same."""
        super().__init__()
        self.model, self.modality, self.micro_batch = model, modality, micro_batch

    def forward(self, batch: Batch, sides: tuple[str, ...] = SIDES) -> tuple[Tensor, ...]:
        """Global features (batch, hidden) of each of `sides`."""
        modalities = {"text": TEXT.name, "music": self.modality}
        return tuple(
            self.model.get_features(modalities[side], *batch.tensors[side], get_global=True) for side in sides
        )

    def trained_sides(self) -> tuple[str, ...]:
        """Those of SIDES whose tower or projection is not frozen."""
        rows = {"text": TEXT, "music": MODALITIES[self.modality]}
        parts = {
            side: [getattr(self.model, name) for name in (row.tower, row.projection)] for side, row in rows.items()
        }
        return tuple(s for s in SIDES if any(p.requires_grad for part in parts[s] for p in part.parameters()))

    def backward(
        self, batch: Batch, autocast: Callable, scale: Callable[[Tensor], Tensor], module: nn.Module | None = None
    ) -> Tensor:
        """Add the gradients of this process's share of the global loss, and return that share.

        Averaged over the processes, gradients and shares are those of the global batch. `module` is what runs the
        forward passes: this objective, or what `data_parallel` has made of it. With `micro_batch`, the features are
        computed piece by piece without a graph; then, for each piece again and with the same dropout, the gradients of
        the loss with respect to them go on into the towers that are trained (GradCache, arXiv 2101.06983).
        """
        module = module or self
        if not 0 < self.micro_batch < len(batch):
            with autocast():
                text, music = module(batch)
            loss = self.model.loss(text.float(), music.float())
            scale(loss).backward()
            return loss.detach()

        pieces, device = list(batch.pieces(self.micro_batch)), self.model.text_proj.weight.device
        states, features = self.features_without_graph(pieces, autocast)
        trained = self.trained_sides()
        for side in trained:
            features[side].requires_grad_()
        loss = self.model.loss(features["text"], features["music"])
        scale(loss).backward()
        after = random_state(device)
        gradients = zip(*(_gradient(features[side]).split(self.micro_batch) for side in trained), strict=True)
        for number, (piece, state, piece_gradients) in enumerate(zip(pieces, states, gradients, strict=True), 1):
            set_random_state(state, device)
            with gradient_sync(module, enabled=number == len(pieces)):
                with autocast():
                    outputs = module(piece, trained)
                torch.autograd.backward([output.float() for output in outputs], list(piece_gradients))
        set_random_state(after, device)
        return loss.detach()

    @torch.no_grad()
    def features_without_graph(
        self, pieces: list[Batch], autocast: Callable
    ) -> tuple[list[RandomState], dict[str, Tensor]]:
        """The features (batch, hidden) of each of SIDES, and the random state that each piece began with."""
        states, found = [], []
        for piece in pieces:
            states.append(random_state(self.model.text_proj.weight.device))
            with autocast():
                found.append(self(piece))
        return states, {
            side: torch.cat(parts).float() for side, parts in zip(SIDES, zip(*found, strict=True), strict=True)
        }

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], state: "PartialState") -> dict[str, float]:
        """The loss of global batches, a mean over all items, and how well texts and music find each other among all.

        The main process gathers all features and computes the figures; each process returns them.
        """
        projection = self.model.text_proj.weight
        own, counts = [projection.new_zeros(0, len(SIDES), len(projection), dtype=torch.float32)], []
        for batch in batches:
            counts.append(len(batch))
            if len(batch):
                own.append(torch.stack([features.float() for features in self(batch)], dim=1))  # (batch, 2, hidden)
        shares = gather(state, [counts])  # by process and batch
        gathered = gather_rows_on_main(torch.cat(own), [sum(share) for share in shares])

        def figures() -> dict[str, float]:
            parts = [rows.split(share) for rows, share in zip(gathered or (), shares, strict=True)]
            global_batches = [torch.cat(of_processes) for of_processes in zip(*parts, strict=True)]
            read = [rows for rows in global_batches if len(rows)]
            if not read:
                raise UserError(NOTHING_HELD_OUT)
            return retrieval_figures(read, self.model.loss.logit_scale)

        return on_main(state, figures)


def _gradient(features: Tensor) -> Tensor:
    assert features.grad is not None
    return features.grad


class Reconstruction(nn.Module):
    """M3's objective: patches are spelled from their hidden states."""

    modality, project = None, "m3"
    less_memory = "Set RECOMPUTE_LAYERS = True"

    def __init__(self, model: M3Model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over the characters of the selected patches."""
        (inputs, masks), (selected, _), (targets, _) = (batch.tensors[n] for n in ("inputs", "selected", "targets"))
        return self.model(inputs, masks, selected, targets)

    def backward(
        self, batch: Batch, autocast: Callable, scale: Callable[[Tensor], Tensor], module: nn.Module | None = None
    ) -> Tensor:
        """As Contrastive's. Processes hold different numbers of characters, so their means are weighted."""
        with autocast():
            loss = (module or self)(batch)
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
            own.append((len(batch), weight, weight and weight * float(self(batch))))
        sums = [np.sum(parts, axis=0) for parts in zip(*gather(state, [own]), strict=True)]  # of each global batch
        sums = [part for part in sums if part[0]]
        if not sums:
            raise UserError(NOTHING_HELD_OUT)
        return {"eval_loss": float(sum(n * loss / weight for n, weight, loss in sums) / sum(n for n, _, _ in sums))}


def characters_to_predict(batch: Batch) -> Tensor:
    """How many characters the loss of an M3 batch is the mean of, as a scalar."""
    selected, targets = batch.tensors["selected"][0], batch.tensors["targets"][0]
    return (targets[selected.bool()][:, 1:] != PAD_ID).sum().float()
