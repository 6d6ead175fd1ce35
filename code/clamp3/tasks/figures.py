"""How good a classifier is: accuracy, macro-F1, precision and recall of each class, and a picture of its confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import UserError
from clamp3.tasks.extras import needs_classify

MOST_COUNTED = 20  # classes for which a picture has room for counts


@dataclass(frozen=True)
class Figures:
    """Scores of predicted against true labels; the arrays (classes,) are in the order of `labels`."""

    truth: list[str]
    predicted: list[str]
    labels: list[str]
    confusion: np.ndarray  # (classes, classes) counts; a row for each true class, a column for each predicted one
    precision: np.ndarray  # 0 for a class that is never predicted
    recall: np.ndarray  # 0 for a class that is never true
    f1: np.ndarray
    support: np.ndarray  # rows of each true class

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def macro_f1(self) -> float:
        """The unweighted mean of the classes' F1."""
        return float(self.f1.mean())

    @property
    def majority(self) -> float:
        """The accuracy of always predicting the most frequent class."""
        return float(self.support.max() / self.support.sum())


def figures(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Figures:
    """Score `predicted` against `truth`, over those of `labels`, in their order, that occur in either.

    Raises ValueError where there is nothing to score or a class is not among `labels`, and UserError where
    scikit-learn is missing.
    """
    occurring = {*truth, *predicted}
    if not truth or not occurring.issubset(labels):
        raise ValueError(f"nothing to score, or unknown classes: {sorted(occurring.difference(labels))}")
    with needs_classify():
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, predicted, labels = list(truth), list(predicted), [label for label in labels if label in occurring]
    confusion = confusion_matrix(truth, predicted, labels=labels)
    by_class = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    return Figures(truth, predicted, labels, confusion, *by_class)


def pooled(parts: Sequence[Figures]) -> Figures:
    """The Figures over the rows of all `parts`."""
    truth = [label for part in parts for label in part.truth]
    predicted = [label for part in parts for label in part.predicted]
    return figures(truth, predicted, sorted({*truth, *predicted}))


def draw_confusion(result: Figures, picture: Path) -> None:
    """Draw the confusion matrix, normalized by true class, with counts where there is room for them.

    Raises UserError where `picture` cannot be written, its extension is no image format, or matplotlib is missing.
    """
    with needs_classify():
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
