"""Evaluate retrieval between two folders: MRR, Hit@1/10/100, median rank and nDCG@10, in both directions.

The relevant references of a query have its relative folder and its name up to the first dot; there may be several:
    python clamp3_eval.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_eval.py QUERY_DIR REF_DIR --pairs FILE.csv
Also each folder (language, genre) by itself: its queries, and as candidates the references that are relevant to them
or lie in the folder of the same name:
    python clamp3_eval.py QUERY_DIR REF_DIR --by_folder --json figures.jsonl
Against other features of the same items, such as another model's: which is better, by how much and how sure:
    python clamp3_eval.py QUERY_DIR REF_DIR --compare OTHER_QUERY_DIR OTHER_REF_DIR
With a picture of the ranks, and of all cosines where there are few:
    python clamp3_eval.py QUERY_DIR REF_DIR --picture ranks.png
With a correction of the space that both share, as docs/search.md explains:
    python clamp3_eval.py QUERY_DIR REF_DIR --calibrate csls
A rank is that of the best relevant reference; irrelevant ones that tie with it rank before it. In brackets are 95 %
bootstrap confidence intervals over queries; chance is what rankings at random would reach. The folders may hold files
of all kinds that clamp3_embd.py takes, or features (.npy of the shape (1, 768)) that it made with --get_global: make
those first where a folder is large. docs/retrieval.md says how two sets of features are compared.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, add_calibration_option, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_issues, print_line, print_table, print_weights, save_json
from clamp3.errors import UserError

if TYPE_CHECKING:
    from clamp3.io.reports import FileIssue
    from clamp3.search.collection import Collection
    from clamp3.search.comparison import Difference
    from clamp3.search.metrics import Estimate, Measured
    from clamp3.search.ranking import Relevant

    Sides = tuple[Collection, Collection]  # queries and references


def main() -> int:
    parser = answers_parser(__doc__, "query_dir", FOLDER)
    parser.add_argument("--pairs", type=Path, metavar="FILE.csv", help="which query belongs to which reference")
    parser.add_argument("--by_folder", action="store_true", help="also evaluate each folder of QUERY_DIR by itself")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="OTHER",
        help="other features of the same items: a folder of queries and one of references, a folder with both under "
        "the names that they have here, or one that takes the place of REF_DIR",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the ranks, and cosines if they are few")
    add_calibration_option(parser)
    args = parser.parse_args()
    if len(args.compare or ()) > 2:
        parser.error("--compare takes one or two folders, and comes after QUERY_DIR and REF_DIR")
    if not args.query_dir.exists():
        raise UserError(
            f"there is no file or folder {args.query_dir}; one text has no right answers to evaluate: clamp3_score.py "
            "TEXT REF_DIR gives its cosine with each file, clamp3_search.py ranks them"
        )

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.collection import check_comparable, load_collection
    from clamp3.search.pairing import pair_by_csv, pair_by_name

    folders = compared_folders(args)
    asked = [path for pair in folders for path in pair]
    embedding = embedder_loader(args, asked=asked), feature_cache(args)
    loaded = {path: load_collection(path, *embedding, progress=True) for path in dict.fromkeys(asked)}
    whole = [(loaded[queries], loaded[references]) for queries, references in folders]
    for sides in whole:
        check_comparable(*sides)
    names = whole[0][0].files, whole[0][1].files
    relevant = pair_by_csv(args.pairs, *names) if args.pairs else pair_by_name(*names)
    sets, relevant, one_sided = on_common_items(whole, relevant) if args.compare else (whole, relevant, [])
    evaluate_sets(sets, relevant, one_sided, args)
    for side in loaded.values():
        print_collection(side)
    return 1 if any(side.failures for side in loaded.values()) else 0


def compared_folders(args: Namespace) -> list[tuple[Path, Path]]:
    """The folders of queries and references that the options name: one pair of them, or two with --compare."""
    pairs = [(args.query_dir, args.ref_dir)]
    if args.compare and len(args.compare) == 2:
        pairs.append((args.compare[0], args.compare[1]))
    elif args.compare:
        inside = [args.compare[0] / folder.resolve().name for folder in pairs[0]]
        if all(folder.is_dir() for folder in inside) and inside[0] != inside[1]:
            pairs.append((inside[0], inside[1]))
        else:
            pairs.append((args.query_dir, args.compare[0]))
    return pairs


def on_common_items(
    whole: "Sequence[Sides]", relevant: "Relevant"
) -> "tuple[list[Sides], list[list[int]], list[FileIssue]]":
    """Both sets, and which references are relevant, without the items that only one set has; and an issue for each
    of those."""
    from clamp3.io.reports import FileIssue
    from clamp3.search.comparison import common_items

    chosen: list[list[Collection]] = [[], []]
    places: list[dict[int, int]] = []  # of the first set's queries and references, among the common ones
    issues: dict[FileIssue, None] = {}
    for sides in zip(*whole, strict=True):
        ours, theirs = sides
        pairs, *one_sided = common_items(ours.files, theirs.files)
        for side, files in zip(sides, one_sided, strict=True):
            issues |= dict.fromkeys(FileIssue(str(side.folder / file), "the other has no such file") for file in files)
        if not pairs:
            raise UserError(
                f"nothing to compare: no file of {ours.folder} (such as {ours.files[0]}) has the relative path of one "
                f"of {theirs.folder} (such as {theirs.files[0]})"
            )
        for kept, side, rows in zip(chosen, sides, zip(*pairs, strict=True), strict=True):
            files = [side.files[row] for row in rows]
            kept.append(replace(side, files=files, features=side.features[list(rows)]))
        places.append({row: place for place, (row, _) in enumerate(pairs)})
    queries, references = places
    common = [[references[index] for index in relevant[query] if index in references] for query in queries]
    return [(kept[0], kept[1]) for kept in chosen], common, list(issues)


def evaluate_sets(
    sets: "Sequence[Sides]", relevant: "Relevant", one_sided: "Sequence[FileIssue]", args: Namespace
) -> None:
    """Print, draw and save the measures of one set of features, or those of two that are compared."""
    from clamp3.search.collection import provenance
    from clamp3.search.metrics import measure_both
    from clamp3.search.pairing import folder_parts, unpaired

    names = sets[0][0].files, sets[0][1].files
    without_partner = unpaired(*names, relevant)
    parts: list[tuple[str | None, list[int], list[int]]]
    parts = [(None, list(range(len(names[0]))), list(range(len(names[1]))))]
    if args.by_folder:
        parts += folder_parts(*names, relevant)
    origins = [provenance(*sides) for sides in sets]
    if args.compare:
        for which, (queries, references) in zip(("first", "other"), sets, strict=True):
            print_line(f"{which}: {queries.folder} -> {references.folder}")
    records = []
    for folder, members, candidates in parts:
        row_of = {reference: row for row, reference in enumerate(candidates)}
        positives = [[row_of[reference] for reference in relevant[query]] for query in members]
        several = sum(len(rows) > 1 for rows in positives)
        counts = {"queries": len(members), "several_right": several, "references": len(candidates)}
        shown = "{} queries, {} with several relevant references, {} references".format(*counts.values())
        print_line(f"{folder or 'all'}: {shown}")
        measured = [
            measure_both(queries.features[members], references.features[candidates], positives, args.calibrate)
            for queries, references in sets
        ]
        head = {"folder": folder, "direction": None, **counts}
        if args.compare:
            records += compared(measured, head, sets, origins)
        else:
            records += evaluated(measured[0], head, origins[0])
        if folder is None:
            whole = measured, positives
    for origin in origins:
        print_weights(origin)
    save_json(args.json, records)
    print_issues("left out, since only one side has them", one_sided)
    print_issues("without a partner, so only candidates", without_partner)
    if args.picture:  # last, so that a picture that cannot be drawn takes nothing along
        draw(whole[0], sets, whole[1], args.picture)


def evaluated(measured: "Mapping[str, Measured]", head: dict, origin: dict) -> list[dict]:
    """Print the measures of both directions, and return a record for each."""
    from clamp3.search.comparison import chance
    from clamp3.search.metrics import estimates

    figures = {direction: estimates(one) for direction, one in measured.items()}
    by_chance = {direction: chance(one) for direction, one in measured.items()}
    print_figures(figures, by_chance)
    return [
        {
            **head,
            "direction": direction,
            **{name: [estimate.value, estimate.low, estimate.high] for name, estimate in found.items()},
            "chance": by_chance[direction],
            **origin,
        }
        for direction, found in figures.items()
    ]


def print_figures(figures: "Mapping[str, Mapping[str, Estimate]]", by_chance: Mapping[str, Mapping]) -> None:
    """Print a table with a row for each measure, and two columns for each direction."""
    table = []
    for name in next(iter(figures.values())):
        row = [name]
        for direction, found in figures.items():
            value = found[name]
            row += [f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]", f"{by_chance[direction][name]:.4f}"]
        table.append(row)
    print_table(("", *(title for direction in figures for title in (direction, "chance"))), table)
    print()


def compared(
    measured: "Sequence[Mapping[str, Measured]]", head: dict, sets: "Sequence[Sides]", origins: Sequence[dict]
) -> list[dict]:
    """Print how two sets of features differ in both directions, and return a record for each."""
    from clamp3.search.comparison import FEW, chance, differences

    folders = {"other_" + of: str(side.folder) for of, side in zip(("queries", "references"), sets[1], strict=True)}
    records = []
    for direction in measured[0]:
        first, other = (one[direction] for one in measured)
        found, by_chance = differences(first, other), chance(first)
        print_line(f"{direction}, {len(first.ranks)} queries:")
        print_differences(found, by_chance)
        if len(first.ranks) < FEW:
            print_line(f"under {FEW} queries: intervals and shares say less than they seem to")
        print()
        origin = {**origins[0], "other": {**folders, **origins[1]}}
        values = {name: asdict(one) for name, one in found.items()}
        records.append({**head, "direction": direction, **values, "chance": by_chance, **origin})
    return records


def print_differences(found: "Mapping[str, Difference]", by_chance: Mapping[str, float]) -> None:
    """Print a row for each measure: both values, the difference with its interval, and which is better."""
    table = [
        (
            name,
            *(f"{value:.4f}" for value in (one.first, one.other)),
            f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]",
            (one.better or "equal") + ", not surely" * (one.better is not None and not one.is_told_apart),
            f"{one.sure:.1%}" if one.sure is not None else "-",
            f"{by_chance[name]:.4f}",
        )
        for name, one in found.items()
    ]
    print_table(("", "first", "other", "first - other", "better", "sure", "chance"), table)


def draw(
    measured: "Sequence[Mapping[str, Measured]]", sets: "Sequence[Sides]", relevant: Sequence[list[int]], picture: Path
) -> None:
    """Draw the ranks of one or two sets, and the cosines of the first where there are few."""
    from clamp3.tasks.figures import draw_ranks

    queries, references = sets[0]
    names = ("first", "other") if len(sets) > 1 else ("queries",)
    draw_ranks(dict(zip(names, measured, strict=True)), queries, references, relevant, picture)
