"""Classes from features: by the likeness to texts (zero-shot) or by a linear probe; and how good they are.

Features are rows (n, hidden); classes are labels, one a row.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.tasks.figures import Figures, figures
from clamp3.tasks.recipe import Recipe
from clamp3.tasks.zero_shot import softmax

CONSTANT = 1e-6  # a spread, relative to the mean, that is rounding's


# ---------- the linear probe ----------


@dataclass(frozen=True)
class Probe:
    """A linear layer over standardised features."""

    labels: list[str]
    weight: np.ndarray  # (classes, hidden)
    bias: np.ndarray  # (classes,)
    mean: np.ndarray  # (hidden,) of the training features
    std: np.ndarray  # (hidden,) of the training features, but 1 where all are equal
    made_by: str = ""  # the weights that made the training features, if known

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Of each class for each row of features: (n, hidden) -> (n, classes). Raises ValueError for another width."""
        if features.shape[1:] != self.mean.shape:
            raise ValueError(f"the probe takes features of {self.mean.size} numbers, not of {features.shape[-1]}")
        return softmax((features - self.mean) / self.std @ self.weight.T + self.bias)

    def predict(self, features: np.ndarray) -> list[str]:
        """The most probable label of each row."""
        return [self.labels[index] for index in self.probabilities(features).argmax(axis=1)]

    def save(self, path: Path) -> None:
        """Write one safetensors file: the arrays by their names; labels, hidden and made_by as its metadata "probe".

        The latter is JSON: several entries would stand in any order, and the same probe would not give the same file.
        """
        from safetensors.numpy import save

        arrays = {name: getattr(self, name) for name in ("weight", "bias", "mean", "std")}
        about = {"labels": self.labels, "hidden": self.mean.size, "made_by": self.made_by}
        try:
            with atomic_write(path) as file:
                file.write(save(arrays, {"probe": json.dumps(about)}))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """The probe that `save` wrote. Raises UserError for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in ("weight", "bias", "mean", "std")}
                about = json.loads(file.metadata()["probe"])
            labels, made_by = about["labels"], about["made_by"]
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a probe that train_cls.py wrote: {error}") from None
        if not arrays["weight"].shape == (len(labels), arrays["mean"].size):
            raise UserError(f"{path}: {len(labels)} labels do not fit weights {arrays['weight'].shape}")
        return cls(labels, **arrays, made_by=made_by)


def fit_probe(features: np.ndarray, truth: Sequence[str], recipe: Recipe, made_by: str = "") -> Probe:
    """The probe of the classes in `truth`, in the order of their labels, trained by AdamW on cross-entropy.

    The same seed gives the same probe. Raises UserError for a single class, and where the training diverges.
    """
    labels = sorted(set(truth))
    if len(labels) < 2:
        raise UserError(f"all {len(truth)} files are of one class, {labels[0]}; to tell classes apart, it takes two")
    mean, std = (part.astype(np.float32) for part in (features.mean(0, np.float64), features.std(0, np.float64)))
    std[std <= CONSTANT * np.abs(mean)] = 1
    inputs = ((features - mean) / std).astype(np.float32)
    weight, bias = _fit_layer(inputs, np.searchsorted(labels, truth), recipe)
    if not np.isfinite(weight).all():
        raise UserError("the training diverged: take a lower learning rate")
    return Probe(labels, weight, bias, mean, std, made_by)


def _fit_layer(inputs: np.ndarray, classes: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, hidden) and bias of the linear layer that tells the classes (n,) of inputs (n, hidden)."""
    import torch
    from torch.nn import functional

    from clamp3.distributed import one_thread

    inputs, targets = torch.from_numpy(inputs), torch.from_numpy(classes)
    counts = torch.bincount(targets)
    class_weights = len(targets) / (len(counts) * counts) if recipe.balanced else None
    layer = torch.nn.Linear(inputs.shape[1], len(counts))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(inputs) // recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    generator = torch.Generator().manual_seed(recipe.seed)
    with one_thread():
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(inputs), generator=generator).split(recipe.batch_size):
                optimizer.zero_grad()
                functional.cross_entropy(layer(inputs[rows]), targets[rows], class_weights).backward()
                optimizer.step()
                scheduler.step()
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def held_out_figures(
    features: np.ndarray, truth: Sequence[str], held_out: np.ndarray, recipe: Recipe, made_by: str = ""
) -> tuple[Probe, Figures]:
    """The probe of the rows that are not `held_out` (n,) bool, and its figures on those that are.

    Raises UserError where a class is among the latter alone.
    """
    truth = np.asarray(truth)
    probe = fit_probe(features[~held_out], truth[~held_out].tolist(), recipe, made_by)
    right = truth[held_out].tolist()
    if unknown := sorted(set(right).difference(probe.labels)):
        raise UserError(f"files held out are of classes that no training file is of: {', '.join(unknown)}")
    return probe, figures(right, probe.predict(features[held_out]), probe.labels)


def deal(truth: Sequence[str], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each class, in the order of labels, and the indices of its rows in a random order."""
    rng = np.random.default_rng(seed)
    classes = np.asarray(truth)
    return ((str(label), rng.permutation(np.flatnonzero(classes == label))) for label in np.unique(classes))


def stratified_folds(truth: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """The fold (n,), from 0, in which each row is held out: folds differ by one row of each class at most.

    Raises UserError for a class with fewer rows than folds.
    """
    fold = np.zeros(len(truth), np.int64)
    first = 0  # so that the folds' sizes are even over all classes
    for label, rows in deal(truth, seed):
        if len(rows) < folds:
            raise UserError(f"the class {label} has {len(rows)} files, too few to be in {folds} parts")
        fold[rows] = (first + np.arange(len(rows))) % folds
        first += len(rows)
    return fold


def stratified_share(truth: Sequence[str], share: float, seed: int = 0) -> np.ndarray:
    """Which rows (n,) bool are held out: this share of each class, but at least one and not all.

    Raises UserError for a class of one row.
    """
    held_out = np.zeros(len(truth), bool)
    for label, rows in deal(truth, seed):
        if len(rows) < 2:
            raise UserError(f"the class {label} has 1 file, too few to be in 2 parts")
        held_out[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return held_out
