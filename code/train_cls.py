"""Train a linear probe: a classifier of features, and figures on files that it has not seen.

With labels in the files' names (reel_0012.npy, jig_7.npy), a fifth of each class held out for the figures:
    python train_cls.py FEATURE_DIR WEIGHTS
With labels by folder (reel/0012.npy) or by a CSV file of lines "file,label", relative to FEATURE_DIR:
    python train_cls.py FEATURE_DIR WEIGHTS --labels folder
    python train_cls.py FEATURE_DIR WEIGHTS --labels FILE.csv
Figures by cross-validation in five parts, or on the files of another folder:
    python train_cls.py FEATURE_DIR WEIGHTS --folds 5 --json figures.jsonl
    python train_cls.py FEATURE_DIR WEIGHTS --eval_dir OTHER_DIR
Classes of different sizes that matter alike:
    python train_cls.py FEATURE_DIR WEIGHTS --balanced
FEATURE_DIR holds features (.npy of the shape (1, 768)), which clamp3_embd.py makes with --get_global, or files of all
kinds that it takes. inference_cls.py applies WEIGHTS, one safetensors file, to new files. It holds the probe whose
figures are printed; after --folds, and with --eval_share 0, the one of all files. The recipe is fixed: nothing is
chosen by the figures, so they are blind as long as you do not try recipes by them. Parts are drawn file by file:
copies of one piece can fall on both sides. Files without a label are listed and left out, those that cannot be read
are listed too (exit code 1).
"""

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, answers_parser, feature_cache, positive, run
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
        "--eval_share", type=share, default=0.2, help="of each class, held out for the figures; default: %(default)s"
    )
    figures.add_argument("--folds", type=positive, help="cross-validate in so many parts")
    figures.add_argument("--eval_dir", type=Path, help="folder of files for the figures, labelled alike")
    parser.add_argument("--epochs", type=positive, default=Recipe.epochs, help="default: %(default)s")
    parser.add_argument(
        "--learning_rate", type=amount, default=Recipe.learning_rate, help="falls to 0; default: %(default)s"
    )
    parser.add_argument("--weight_decay", type=amount, default=Recipe.weight_decay, help="default: %(default)s")
    parser.add_argument("--batch_size", type=positive, default=Recipe.batch_size, help="default: %(default)s")
    parser.add_argument("--balanced", action="store_true", help="weigh classes so that all count alike")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of parts and batches; default: %(default)s")
    return parser


def main() -> int:
    parser = options()
    args = parser.parse_args()
    if args.folds == 1:
        parser.error("--folds takes 2 or more")
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})

    # Only now, so that --help and mistyped options answer at once.
    import utils
    from clamp3.distributed import start_alone
    from clamp3.search.collection import check_comparable, load_collection, made_by
    from clamp3.tasks.labels import label_source
    from clamp3.tasks.probe import fit_probe, held_out_figures

    source = label_source(args.labels)
    embedding = utils.embedder_loader(args, start_alone(args.device, args.threads)), feature_cache(args)
    collections = [
        load_collection(path, *embedding, progress=True) for path in (args.feature_dir, args.eval_dir) if path
    ]
    check_comparable(collections[0], collections[-1])
    features, labels, parts = labelled(collections, source, args)
    fit = dict(recipe=recipe, made_by=origin(collections[0].weights))
    measured = [held_out_figures(features, labels, part, **fit) for part in parts]
    probe = measured[0][0] if len(measured) == 1 else fit_probe(features, labels, **fit)
    records = show_figures([figures for _probe, figures in measured])
    probe.save(args.weights)
    print(f"{args.weights}: {len(probe.labels)} classes, features of {probe.mean.size} numbers")
    print_weights(weights := made_by(*collections))
    save_json(args.json, ({**record, "weights": weights} for record in records))
    for collection in collections:
        print_collection(collection)
    return 1 if any(collection.failures for collection in collections) else 0


def origin(weights: Path | None) -> str:
    """What tells weights from others wherever they lie: the last folder and the name; "" where there are none."""
    return "/".join(weights.resolve().parts[-2:]) if weights else ""


def labelled(
    collections: "list[Collection]", source: str | dict[str, str], args: argparse.Namespace
) -> "tuple[np.ndarray, list[str], list[np.ndarray]]":
    """The features (n, hidden) and labels of the files that have one, and, for each part, which (n,) are held out."""
    import numpy as np

    from clamp3.errors import UserError
    from clamp3.tasks.labels import labels_of
    from clamp3.tasks.probe import stratified_folds, stratified_share

    features, labels, counts = [], [], []
    for collection in collections:
        found, remarks = labels_of(source, collection.files)
        print_issues(f"{collection.folder}: without a label, so not used", remarks)
        rows = [row for row, label in enumerate(found) if label]
        if not rows:
            raise UserError(f"no file in {collection.folder} has a label; --labels tells where labels stand")
        features.append(collection.features[rows])
        labels += [found[row] for row in rows]
        counts.append(len(rows))
    if args.eval_dir:
        parts = [np.arange(len(labels)) >= counts[0]]
    elif args.folds:
        fold = stratified_folds(labels, args.folds, args.seed)
        parts = [fold == number for number in range(args.folds)]
    else:
        parts = [stratified_share(labels, args.eval_share, args.seed)] if args.eval_share else []
    return np.concatenate(features), labels, parts


def show_figures(parts: "list[Figures]") -> list[dict]:
    """Print the figures of the classes over all parts, and those of each part with mean and spread; return the latter.

    The spread is the standard deviation among the parts.
    """
    import numpy as np

    from clamp3.tasks.figures import pooled

    if not parts:
        print("no figures, for no files are held out")
        return []
    print_figures(pooled(parts))
    figures = np.array([(part.accuracy, part.macro_f1) for part in parts])  # (parts, 2)
    records = [
        {"part": number, "files": int(part.support.sum()), "accuracy": accuracy, "macro_f1": macro_f1}
        for number, (part, (accuracy, macro_f1)) in enumerate(zip(parts, figures.tolist(), strict=True), 1)
    ]
    if len(parts) > 1:
        print_table(("part", "files", "accuracy", "macro-F1"), (record.values() for record in records))
        (accuracy, macro_f1), spreads = figures.mean(axis=0), figures.std(axis=0, ddof=1)
        shown = f"accuracy {accuracy:.4f} ± {spreads[0]:.4f}, macro-F1 {macro_f1:.4f} ± {spreads[1]:.4f}"
        print(f"mean of {len(parts)} parts ± standard deviation: {shown}")
    return records


def amount(text: str) -> float:
    """An argparse type: a finite number from 0."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError
    return number


def share(text: str) -> float:
    """An argparse type: a number from 0, less than 1."""
    if not 0 <= (number := float(text)) < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    run(main, keeps_work=False)
