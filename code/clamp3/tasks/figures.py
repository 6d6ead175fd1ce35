"""How good a classifier is: accuracy, macro-F1, precision and recall of each class; and pictures of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clamp3.errors import UserError
from clamp3.io.reports import printable
from clamp3.search.collection import Collection
from clamp3.search.comparison import best_rank_densities
from clamp3.search.metrics import Measured
from clamp3.search.ranking import Relevant, normalized
from clamp3.tasks.extras import needs_classify
from clamp3.tasks.maps import Map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COUNTED = 20  # classes for which a picture has room for counts, and files for which it has room for names
MOST_DRAWN = 200  # files of a side of which a picture shows all cosines
RANK_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10_001, 20_001, 50_001, 100_001)


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
    save_picture(figure, picture)


def draw_ranks(
    measured: Mapping[str, Mapping[str, Measured]],
    queries: Collection,
    references: Collection,
    relevant: Relevant,
    picture: Path,
) -> None:
    """Draw how many queries have which rank, in both directions, and the cosines of all pairs where they are few.

    `measured` is what `measure_both` gives, by the name of each set of features. The cosines are those of `queries`
    and `references`, of which `relevant` says the pairs. Raises UserError as `draw_confusion`.
    """
    with needs_classify():
        from matplotlib.figure import Figure

    directions = list(next(iter(measured.values())))
    has_matrix = max(len(queries.files), len(references.files)) <= MOST_DRAWN
    figure = Figure(figsize=(6 * (len(directions) + has_matrix), 5), layout="constrained")
    axes = figure.subplots(1, len(directions) + has_matrix)
    for direction, own in zip(directions, axes, strict=False):
        _draw_histogram(own, {name: both[direction] for name, both in measured.items()})
        own.set_title(direction.replace("_", " "))
    if has_matrix:
        _draw_cosines(axes[-1], queries, references, relevant)
    save_picture(figure, picture)


def _draw_histogram(axes: "Axes", measured: Mapping[str, Measured]) -> None:
    """The share of queries in each range of ranks, beside what chance would give."""
    total = next(iter(measured.values())).references
    edges = np.array([edge for edge in RANK_EDGES if edge <= total] + [total + 1])
    places = np.arange(len(edges) - 1)
    width = 0.8 / len(measured)
    for number, (name, one) in enumerate(measured.items()):
        shares = np.histogram(one.ranks, edges)[0] / len(one.ranks)
        bars = axes.bar(places + (number + 0.5) * width - 0.4, shares, width, label=name)
        axes.bar_label(bars, [f"{share:.0%}" if share else "" for share in shares], fontsize=8)
    density = best_rank_densities(next(iter(measured.values())))
    by_chance = [density[low - 1 : high - 1].sum() for low, high in zip(edges, edges[1:], strict=False)]
    axes.plot(places, by_chance, "k_", markersize=18, label="chance")
    shown = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    axes.set_xticks(places, shown, rotation=45)
    axes.set_xlabel(f"rank of the best relevant one among {total}")
    axes.set_ylabel("share of the queries")
    axes.legend()


def _draw_cosines(axes: "Axes", queries: Collection, references: Collection, relevant: Relevant) -> None:
    """All cosines; references in the order of the queries to which they are relevant, so that pairs lie diagonally."""
    partners = dict.fromkeys(int(index) for indices in relevant for index in indices)
    order = [*partners, *(index for index in range(len(references.files)) if index not in partners)]
    column_of = {index: column for column, index in enumerate(order)}
    cosines = normalized(queries.features) @ normalized(references.features)[order].T
    image = axes.imshow(cosines, cmap="viridis", aspect="auto")
    pairs = [(column_of[int(index)], row) for row, indices in enumerate(relevant) for index in indices]
    axes.plot(*zip(*pairs, strict=True), "r.", markersize=4, label="relevant")
    axes.legend(loc="upper right")
    axes.set_title("cosines")
    for name, files, axis in (("query", queries.files, axes.yaxis), ("reference", references.files, axes.xaxis)):
        axis.set_label_text(name)
        if len(files) <= MOST_COUNTED:
            shown = files if axis is axes.yaxis else [files[index] for index in order]
            axis.set_ticks(range(len(files)), [as_label(file) for file in shown])
    axes.tick_params(axis="x", rotation=90)
    axes.figure.colorbar(image, ax=axes)


def draw_map(chart: Map, title: str, picture: Path) -> None:
    """Draw a map. Raises UserError as `draw_confusion`."""
    with needs_classify():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(20_000 / len(chart.points), 4, 60))
    for index, (name, colour) in enumerate(zip(chart.groups, chart.colours, strict=True)):
        across, up = chart.points[np.asarray(chart.group) == index].T
        axes.scatter(across, up, size, colour, label=f"{as_label(name)} ({len(up)})", linewidths=0, alpha=0.75)
    axes.set_title(as_label(title, most=120))
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=float(np.sqrt(40 / size)))
    save_picture(figure, picture)


def as_label(text: str, most: int = 30) -> str:
    """A file's name for a picture: no mathematics between dollars, nothing that cannot be printed, not too long."""
    plain = printable(text if len(text) <= most else f"…{text[1 - most :]}")
    return plain.replace("$", r"\$")


def save_picture(figure: "Figure", picture: Path) -> None:
    """Raises UserError where `picture` cannot be written, or its extension is no image format."""
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{picture} cannot be drawn: {error}") from None
