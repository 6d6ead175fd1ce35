"""What the classification commands share: the label options, and how predictions and scores are printed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clamp3.cli.options import positive
from clamp3.cli.output import print_issues, print_table

if TYPE_CHECKING:
    import numpy as np

    from clamp3.io.reports import FileIssue
    from clamp3.tasks.figures import Figures


def add_label_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        metavar="{name,folder,FILE.csv}",
        default="name",
        help='where labels come from: a file\'s "name" before the first underscore (the default), its top-level '
        '"folder", or a CSV file of lines "file,label"',
    )


def add_shown_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top_k", type=positive, default=3, help="labels to show for each file; default: %(default)s")


def ranked(
    files: Sequence[str],
    truth: Sequence[str | None],
    labels: Sequence[str],
    scores: dict[str, "np.ndarray"],
    top_k: int,
) -> list[dict]:
    """A record for each file: its best label and the `top_k` best, by the first of the `scores` (n, labels)."""
    decisive = next(iter(scores.values()))
    order = (-decisive).argsort(axis=1, kind="stable")
    records = []
    for row, (file, label, best) in enumerate(zip(files, truth, order, strict=True)):
        top = [
            {"label": labels[index], **{name: float(values[row, index]) for name, values in scores.items()}}
            for index in best[:top_k]
        ]
        margin = float(decisive[row, best[0]] - decisive[row, best[1]])
        records.append({"file": file, **top[0], "margin": margin, "truth": label, "top": top})
    return records


def print_predictions(records: Sequence[dict]) -> None:
    """Print a row for each file: its best label with the scores, the true label where known, and the runners-up."""
    names = [name for name in records[0] if name not in ("truth", "top")]
    if any(record["truth"] for record in records):
        names.append("truth")
    rows = []
    for record in records:
        runners_up = ", ".join(f"{label['label']} {label['probability']:.3f}" for label in record["top"][1:])
        rows.append([*(record[name] for name in names), runners_up])
    print_table((*names, "next, with probability"), rows)


def print_figures(result: "Figures") -> None:
    """Print a row for each class, and accuracy and macro-F1."""
    columns = (result.labels, result.precision, result.recall, result.f1, result.support)
    table = [(label, *map(float, values), int(count)) for label, *values, count in zip(*columns, strict=True)]
    print_table(("class", "precision", "recall", "F1", "files"), table)
    print(
        f"{result.support.sum()} files scored: accuracy {result.accuracy:.4f}, macro-F1 {result.macro_f1:.4f}; "
        f"always saying the largest class: accuracy {result.majority:.4f}"
    )


def print_score(records: Sequence[dict], labels: Sequence[str], issues: "list[FileIssue]") -> "Figures | None":
    """Print and return the figures over the files with a known label, and print `issues`, those of the others.

    None, with a sentence, where no label is known or scikit-learn is missing: predictions need neither.
    """
    from clamp3.errors import UserError
    from clamp3.tasks.figures import figures

    scored = [record for record in records if record["truth"]]
    if not scored:
        print("not scored: no true label is known")
        return None
    try:
        result = figures([record["truth"] for record in scored], [record["label"] for record in scored], labels)
    except UserError as error:
        print(f"not scored: {error}")
        return None
    print_figures(result)
    print_issues("not scored", issues)
    return result
