"""Train a linear probe, a classifier of features, and score it on files that it has not seen.

With labels in file names (reel_0012.npy, jig_7.npy), and a fifth of each class held out for the figures:
    python train_cls.py FEATURE_DIR WEIGHTS
With labels by folder (reel/0012.npy) or by a CSV file of lines "file,label", relative to FEATURE_DIR:
    python train_cls.py FEATURE_DIR WEIGHTS --labels folder
    python train_cls.py FEATURE_DIR WEIGHTS --labels FILE.csv
Figures by five-fold cross-validation, or on the files of another folder:
    python train_cls.py FEATURE_DIR WEIGHTS --folds 5 --json figures.jsonl
    python train_cls.py FEATURE_DIR WEIGHTS --eval_dir OTHER_DIR
With classes weighted to count alike, whatever their sizes:
    python train_cls.py FEATURE_DIR WEIGHTS --balanced
FEATURE_DIR holds features (.npy of the shape (1, 768)), which clamp3_embd.py makes with --get_global, or files of all
kinds that it takes. inference_cls.py applies WEIGHTS, one safetensors file, to new files. It holds the probe whose
figures are printed; after --folds, and with --eval_share 0, one trained on all files. The probe is scikit-learn's
logistic regression on standardized features; the strength of its L2 penalty is cross-validated on the training files,
so held-out files choose nothing, as long as you try no options by their figures. Splits are made file by file: copies
of one piece can fall on both sides. Files without a label are listed and left out; files that cannot be read are
listed too (exit code 1). It needs `pip install "clamp3[classify]"`.
"""

import argparse
import math
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, answers_parser, feature_cache, positive
from clamp3.cli.output import print_collection, print_issues, print_table, print_weights, save_json
from clamp3.cli.predictions import add_label_option, print_figures
from clamp3.tasks.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from clamp3.search.collection import Collection
    from clamp3.tasks.figures import Figures


def options() -> argparse.ArgumentParser:
    parser = answers_parser(__doc__, "feature_dir", FOLDER, "weights", "file for the probe, such as probe.safetensors")
    add_label_option(parser)
    figures = parser.add_mutually_exclusive_group()
    figures.add_argument(
        "--eval_share",
        type=share,
        default=0.2,
        help="share of each class held out for the figures; default: %(default)s",
    )
    figures.add_argument("--folds", type=positive, help="number of cross-validation folds")
    figures.add_argument("--eval_dir", type=Path, help="folder of files for the figures, labelled the same way")
    parser.add_argument(
        "--epochs",
        type=positive,
        default=Recipe.epochs,
        help="passes over the features, at most; default: %(default)s",
    )
    parser.add_argument(
        "--weight_decay",
        type=amount,
        help="strength of the L2 penalty, 1 / C of scikit-learn; default: cross-validated on the training files",
    )
    for name, number in (("--learning_rate", amount), ("--batch_size", positive)):
        parser.add_argument(name, type=number, help="accepted from older command lines, without effect")
    parser.add_argument("--balanced", action="store_true", help="weight classes so that all count alike")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of the splits; default: %(default)s")
    return parser


def main() -> int:
    parser = options()
    args = parser.parse_args()
    if args.folds == 1:
        parser.error("--folds takes 2 or more")
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    if given := [f"--{name}" for name in ("learning_rate", "batch_size") if getattr(args, name) is not None]:
        print(f"without effect: {', '.join(given)}; the solver takes all features at once and sets its own step size")

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.collection import check_comparable, load_collection, provenance
    from clamp3.tasks.extras import needs_classify
    from clamp3.tasks.labels import label_source
    from clamp3.tasks.probe import fit_probe, held_out_figures

    with needs_classify():  # before any file is embedded
        import sklearn  # noqa: F401
        from sklearn.exceptions import ConvergenceWarning
    warnings.simplefilter("ignore", ConvergenceWarning)  # the log says it in one line

    source = label_source(args.labels)
    folders = [path for path in (args.feature_dir, args.eval_dir) if path]
    embedding = embedder_loader(args, asked=folders), feature_cache(args)
    collections = [load_collection(path, *embedding, progress=True) for path in folders]
    check_comparable(collections[0], collections[-1])
    features, labels, parts = labelled(collections, source, args)
    made_by_weights = origin(collections[0].weights)
    measured = [held_out_figures(features, labels, part, recipe, made_by_weights) for part in parts]
    probe = measured[0][0] if len(measured) == 1 else fit_probe(features, labels, recipe, made_by_weights)
    records = show_figures([figures for _probe, figures in measured])
    probe.save(args.weights)
    print(f"{args.weights}: {len(probe.labels)} classes, features of {probe.mean.size} numbers")
    print_weights(made := provenance(*collections))
    save_json(args.json, ({**record, **made} for record in records))
    for collection in collections:
        print_collection(collection)
    return 1 if any(collection.failures for collection in collections) else 0


def origin(weights: Path | None) -> str:
    """Identify weights wherever they lie, by their last folder and name; "" where there are none."""
    return "/".join(weights.resolve().parts[-2:]) if weights else ""


def labelled(
    collections: "list[Collection]", source: str | dict[str, str], args: argparse.Namespace
) -> "tuple[np.ndarray, list[str], list[np.ndarray]]":
    """Features (n, hidden) and labels of the labelled files, and a mask (n,) of the held-out ones for each part."""
    import numpy as np

    from clamp3.errors import UserError
    from clamp3.tasks.labels import labels_of
    from clamp3.tasks.probe import stratified_folds, stratified_share

    features, counts = [], []
    labels: list[str] = []
    for collection in collections:
        found, issues = labels_of(source, collection.files)
        print_issues(f"{collection.folder}: without a label, so not used", issues)
        labelled_rows = {row: label for row, label in enumerate(found) if label}
        if not labelled_rows:
            raise UserError(f"no file in {collection.folder} has a label; --labels says where labels come from")
        features.append(collection.features[list(labelled_rows)])
        labels += labelled_rows.values()
        counts.append(len(labelled_rows))
    if args.eval_dir:
        parts = [np.arange(len(labels)) >= counts[0]]
    elif args.folds:
        fold = stratified_folds(labels, args.folds, args.seed)
        parts = [fold == number for number in range(args.folds)]
    else:
        parts = [stratified_share(labels, args.eval_share, args.seed)] if args.eval_share else []
    return np.concatenate(features), labels, parts


def show_figures(parts: "list[Figures]") -> list[dict]:
    """Print figures by class over all parts, and by part with mean and standard deviation; return the latter."""
    import numpy as np

    from clamp3.tasks.figures import pooled

    if not parts:
        print("no figures: no files are held out")
        return []
    print_figures(pooled(parts))
    figures = np.array([(part.accuracy, part.macro_f1) for part in parts])  # (parts, 2)
    records = [
        {"part": number, "files": int(part.support.sum()), "accuracy": accuracy, "macro_f1": macro_f1}
        for number, (part, (accuracy, macro_f1)) in enumerate(zip(parts, figures.tolist(), strict=True), 1)
    ]
    if len(parts) > 1:
        print_table(("part", "files", "accuracy", "macro-F1"), (tuple(record.values()) for record in records))
        (accuracy, macro_f1), deviations = figures.mean(axis=0), figures.std(axis=0, ddof=1)
        shown = f"accuracy {accuracy:.4f} ± {deviations[0]:.4f}, macro-F1 {macro_f1:.4f} ± {deviations[1]:.4f}"
        print(f"mean of {len(parts)} parts ± standard deviation: {shown}")
    return records


def amount(text: str) -> float:
    """An argparse type: a finite number, 0 or greater."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError
    return number


def share(text: str) -> float:
    """An argparse type: a number from 0 up to, but not including, 1."""
    if not 0 <= (number := float(text)) < 1:
        raise ValueError
    return number
