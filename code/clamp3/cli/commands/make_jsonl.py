"""Make the training file of train_clamp3_*.py from a folder of music and a CSV file of texts.

    clamp3 make-jsonl FOLDER --texts texts.csv
    clamp3 make-jsonl FOLDER --texts texts.csv --eval_share 0.1
FOLDER holds .abc and .mtf, or .npy of MERT features. The first line of texts.csv names its columns: file,text, and as
you like split (train, eval or test), group, id, language and further texts, such as title or genres. A file is named
by its path in FOLDER, with its extension or without, or by its stem; files of one stem and different extensions are
forms of one piece, and several rows of one file are several items. With --eval_share, such a share of the items goes
to ..._eval.jsonl: whole groups at a time, where items with the same stem, content or group and near-duplicates (the
same tune in another key) are one. Rows without a file, and files without a row, are listed, and the exit code is 1;
the rest is written all the same.
"""

import argparse
from pathlib import Path

from clamp3.cli.options import script_parser

SHOWN = 20


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, help="folder of music, searched recursively")
    parser.add_argument("--texts", type=Path, required=True, metavar="CSV", help="table of file,text and others")
    parser.add_argument("--output", type=Path, metavar="JSONL", help="default: FOLDER/train.jsonl")
    parser.add_argument("--eval_share", type=share, help="share of the items that is held out for evaluation")
    parser.add_argument("--modality", choices=["symbolic", "audio"], help="default: what the folder holds")
    parser.add_argument("--seed", type=int, default=42, help="of what is held out; default: %(default)s")
    args = parser.parse_args()

    from clamp3.errors import UserError
    from clamp3.io.reports import save_issues
    from clamp3.training.making import groups_of, hold_out, read_items, straddling, write_items

    output = args.output or args.folder / "train.jsonl"
    made = read_items(args.folder, args.texts, args.modality)
    groups = groups_of(made.items)
    if args.eval_share:
        hold_out(made.items, groups, args.eval_share, args.seed)
    issues = made.issues + straddling(made.items, groups)
    parts = {name: [item for item in made.items if item.split == name] for name in ("train", "eval", "test")}
    if not parts["train"]:
        reason = f", such as {issues[0].file}: {issues[0].reason}" if issues else ""
        raise UserError(f"no row of {args.texts} makes a training item{reason}")
    listed = output.with_name(f"{output.stem}_unmatched.jsonl")
    try:
        for name, items in parts.items():
            if items:
                write_items(output if name == "train" else output.with_name(f"{output.stem}_{name}.jsonl"), items)
        save_issues(listed, issues)
    except OSError as error:
        raise UserError(f"{output.parent} cannot be written: {error.strerror}") from None
    counts = ", ".join(f"{len(items)} {name}" for name, items in parts.items() if items)
    print(f"{output}: {counts} items from {len(set(groups.tolist()))} groups of near-duplicates")
    for ending, count in sorted(made.raw.items()):
        print(f"not taken, as it stands: {count} {ending} (see preprocessing/ for what makes it a model's input)")
    for issue in issues[:SHOWN]:
        print(f"{issue.file}: {issue.reason}")
    if issues:
        print(f"{len(issues)} rows and files with something wrong are listed in {listed}")
    return 1 if issues else 0
