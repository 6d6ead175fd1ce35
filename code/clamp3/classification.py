"""Classes from features: by the likeness to texts (zero-shot) or by a linear probe; and how good they are.

Features are rows (n, hidden); classes are labels, one a row.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import UserError
from clamp3.files import atomic_write
from clamp3.recipe import Recipe
from clamp3.retrieval import normalized

MOST_COUNTED = 20  # classes for which a picture has room for counts
CONSTANT = 1e-6  # a spread, relative to the mean, that is rounding's


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows (n, classes) of logits as probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def zero_shot(
    features: np.ndarray, prompts: Sequence[np.ndarray], logit_scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """How alike each row and each label are, and how probable that makes the label: two arrays (n, labels).

    `prompts` are each label's text features (prompts, hidden); cosines are with the mean of the normalised ones.
    Training compares dot products of features as they are. So the softmax takes the cosines times the lengths, of the
    row's feature and of a prompt's on average, and `logit_scale`: it is meaningless for features of length one.
    """
    means = normalized(np.stack([normalized(rows).mean(axis=0) for rows in prompts]))  # (labels, hidden)
    cosines = normalized(features) @ means.T
    length = np.linalg.norm(np.concatenate(prompts), axis=1).mean()
    lengths = np.linalg.norm(features, axis=1, keepdims=True) * length
    return cosines, softmax(logit_scale * lengths * cosines)


# ---------- how good ----------


@dataclass(frozen=True)
class Figures:
    """How often which class was taken for which."""

    labels: list[str]
    confusion: np.ndarray  # (classes, classes) counts; a row for each true class, a column for each predicted one

    @property
    def support(self) -> np.ndarray:
        """How many rows are of each class."""
        return self.confusion.sum(axis=1)

    @property
    def precision(self) -> np.ndarray:
        """The share of those taken for a class that are of it; 0 where there are none."""
        return np.diag(self.confusion) / np.maximum(self.confusion.sum(axis=0), 1)

    @property
    def recall(self) -> np.ndarray:
        """The share of a class's rows that are taken for it; 0 where there are none."""
        return np.diag(self.confusion) / np.maximum(self.support, 1)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, by class."""
        return 2 * np.diag(self.confusion) / (self.support + self.confusion.sum(axis=0))

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def macro_f1(self) -> float:
        """The plain mean of the classes' F1."""
        return float(self.f1.mean())

    @property
    def majority(self) -> float:
        """The accuracy of always saying the largest class."""
        return float(self.support.max() / self.support.sum())


def figures(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Figures:
    """The Figures over those of `labels`, in their order, that are true or predicted anywhere, as scikit-learn does.

    Raises ValueError for nothing to score and for a class that is not among `labels`.
    """
    occurring = {*truth, *predicted}
    if not truth or not occurring.issubset(labels):
        raise ValueError(f"nothing to score, or unknown classes: {sorted(occurring.difference(labels))}")
    labels = [label for label in labels if label in occurring]
    index = {label: number for number, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, ([index[label] for label in truth], [index[label] for label in predicted]), 1)
    return Figures(labels, confusion)


def pooled(parts: Sequence[Figures]) -> Figures:
    """The Figures over the rows of all `parts`."""
    labels = sorted({label for part in parts for label in part.labels})
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    for part in parts:
        places = [labels.index(label) for label in part.labels]
        confusion[np.ix_(places, places)] += part.confusion
    return Figures(labels, confusion)


def draw_confusion(result: Figures, picture: Path) -> None:
    """Draw the confusion as a square of shares of each true class, with counts where there is room for them.

    Raises UserError where `picture` cannot be written, or its extension names no kind of picture.
    """
    from matplotlib.figure import Figure

    count = len(result.labels)
    shares = result.confusion / np.maximum(result.support, 1)[:, None]
    side = min(3 + 0.5 * count, 20)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), result.labels, rotation=90)
    axes.set_yticks(range(count), result.labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"accuracy {result.accuracy:.3f}, macro-F1 {result.macro_f1:.3f}")
    if count <= MOST_COUNTED:
        for (row, column), number in np.ndenumerate(result.confusion):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(number), ha="center", va="center", color=color)
    figure.colorbar(image, label="share of the true class")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{picture} cannot be drawn: {error}") from None


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
