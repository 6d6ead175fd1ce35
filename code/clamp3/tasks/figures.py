from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import UserError

MOST_COUNTED = 20  # classes for which a picture has room for counts


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
