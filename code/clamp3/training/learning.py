"""Whether a run learns: how far its weights have moved, and whether its evaluation tells epochs apart."""

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from clamp3.training.lora import merged_weights

SAMPLED = 1024  # values of each matrix
LEAST_MOVE = 1e-3  # relative change below which weights have hardly moved
LEAST_DIFFERENCE = 1e-4  # of losses, relative to those above 1
FEWEST_ITEMS = 50  # of an evaluation set whose figures mean something


class Learning:
    """What a run notes of itself to say, at its end, whether it has learned. It is part of the checkpoints.

    Of each matrix that is trained, some values are kept as they were at the start: enough to tell how far it moved.
    """

    def __init__(self, init_weights: str = ""):
        """`init_weights` names the weights that the run starts with."""
        self.init_weights = init_weights
        self.start: dict[str, Tensor] = {}
        self.evaluations: list[dict[str, float]] = []  # of each epoch

    def begin(self, model: nn.Module) -> None:
        """Note the weights at the start of a run, or of a stage of it."""
        self.start, self.evaluations = sample(model), []

    def state_dict(self) -> dict[str, Any]:
        return {"init_weights": self.init_weights, "start": self.start, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over all but the name of the weights, which is the new process's own."""
        self.start, self.evaluations = state["start"], state["evaluations"]

    def moved(self, model: nn.Module) -> float | None:
        """The relative change since the start, |change| / |start|, a median over matrices; None if it is not known."""
        now = sample(model)
        changes = [
            float((now[name] - before).norm() / before.norm())
            for name, before in self.start.items()
            if name in now and now[name].shape == before.shape and before.any()
        ]
        return median(changes) if changes else None

    def tells_epochs_apart(self) -> bool:
        """Whether the evaluations differ by more than rounding; a single one counts as such."""
        if len(self.evaluations) < 2:
            return True
        losses = [figures["eval_loss"] for figures in self.evaluations]
        ranks = [{name: value for name, value in f.items() if name.endswith("MRR")} for f in self.evaluations]
        same_losses = max(losses) - min(losses) <= LEAST_DIFFERENCE * max(1.0, *map(abs, losses))
        return not same_losses and (not ranks[0] or any(found != ranks[0] for found in ranks))

    def complaints(self, model: nn.Module, steps: int, items: int) -> list[str]:
        """What to say at the end of a run of so many steps, evaluated on so many items; nothing if all is well."""
        found, moved = [], self.moved(model)
        if moved is not None and moved < LEAST_MOVE:
            found.append(
                f"the weights have hardly moved: by {moved:.1g} of their size, in {steps} steps. Train more "
                "epochs, in smaller batches, or at a higher learning rate"
            )
        if not self.tells_epochs_apart():
            losses = [figures["eval_loss"] for figures in self.evaluations]
            found.append(
                f"the evaluation cannot tell the {len(losses)} epochs apart: {items} items, losses from "
                f"{min(losses):.4g} to {max(losses):.4g}{self._ranks()}. Which epoch is the best is not known; "
                "evaluate on more items (EVAL_SPLIT, CLAMP3_EVAL_JSONL, M3_EVAL_FOLDERS)"
            )
        return found

    def _ranks(self) -> str:
        figures = self.evaluations[-1]
        found = [f"{name} {value:.3g}" for name, value in figures.items() if name.endswith("MRR")]
        return f", {' and '.join(found)} at the end" if found else ""


@torch.no_grad()
def sample(model: nn.Module) -> dict[str, Tensor]:
    """Some values, evenly spaced, of each trained matrix (float32, on the CPU), by its name."""
    trained = merged_weights(model)  # where there are adapters, it is these that count
    if not trained:
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    found = {}
    for name, matrix in sorted(trained.items()):
        flat = matrix.flatten()
        found[name] = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu().clone()
    return found
