"""What `clamp3_index.py duplicates` takes and shows."""

from argparse import ArgumentParser, Namespace

from clamp3.cli.options import add_csv_option, add_worker_options, worker_processes
from clamp3.cli.output import print_issues, print_line, print_table, save_csv, save_json

LEVELS = ("bytes", "notes", "music", "alike")
COLUMNS = ("group", "level", "file", "semitones", "cosine")


def add_duplicates_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--up_to",
        choices=LEVELS,
        default=LEVELS[-1],
        help="the last level to look at: the same bytes, notes or music, or alike for the model; default: %(default)s",
    )
    parser.add_argument(
        "--cosine", type=cosine, default=0.995, help="of files that are alike, at least; default: %(default)s"
    )
    add_csv_option(parser)
    add_worker_options(parser)


def cosine(text: str) -> float:
    """An argparse type: a number from -1 to 1."""
    if not -1 <= (number := float(text)) <= 1:
        raise ValueError
    return number


def show_duplicates(args: Namespace) -> int:
    """Print and save the groups; returns the exit code."""
    from clamp3.search.duplicates import LEVELS as NAMES
    from clamp3.search.duplicates import find_duplicates
    from clamp3.search.index import Index

    level, index = NAMES[LEVELS.index(args.up_to)], Index(args.index)
    found = find_duplicates(index, level, args.cosine, worker_processes(args), progress=True)
    records, rows = [], []
    for number, group in enumerate(found.groups, 1):
        files = [{"file": str(one.path), "semitones": one.semitones, "cosine": one.cosine} for one in group.members]
        records.append({"group": number, "level": group.level, "files": files})
        rows += [{"group": number, "level": group.level, **file} for file in files]
    if rows:
        print_table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    counts = [f"{sum(group.level == name for group in found.groups)} of the {name}" for name in NAMES[:3]]
    alike = sum(group.level == NAMES[3] for group in found.groups)
    print_line(f"{len(records)} groups among {len(index)} files: {', '.join(counts)}, {alike} of files that are alike")
    print_issues("compared by what the index has of them alone", found.issues)
    save_json(args.json, records)
    save_csv(args.csv, rows, COLUMNS)
    return 1 if found.issues else 0
