"""Evaluate retrieval between two folders: MRR, Hit@1/10/100, median rank and nDCG@10, in both directions.

The relevant references of a query have its relative folder and its name up to the first dot; there may be several:
    python clamp3_eval.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_eval.py QUERY_DIR REF_DIR --pairs FILE.csv
Also each folder (language, genre) by itself: its queries, and as candidates the references that are relevant to them
or lie in the folder of the same name:
    python clamp3_eval.py QUERY_DIR REF_DIR --by_folder --json figures.jsonl
With a correction of the space that both share, as docs/search.md explains:
    python clamp3_eval.py QUERY_DIR REF_DIR --calibrate csls
A rank is that of the best relevant reference; irrelevant ones that tie with it rank before it. In brackets are 95 %
bootstrap confidence intervals over queries. The folders may hold files of all kinds that clamp3_embd.py takes, or
features (.npy of the shape (1, 768)) that it made with --get_global: make those first where a folder is large.
"""

from pathlib import Path

from clamp3.cli.options import FOLDER, add_calibration_option, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_issues, print_line, print_table, print_weights, save_json


def main() -> int:
    parser = answers_parser(__doc__, "query_dir", FOLDER)
    parser.add_argument("--pairs", type=Path, metavar="FILE.csv", help="which query belongs to which reference")
    parser.add_argument("--by_folder", action="store_true", help="also evaluate each folder of QUERY_DIR by itself")
    add_calibration_option(parser)
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.distributed import start_alone
    from clamp3.search.collection import check_comparable, load_collection, provenance
    from clamp3.search.metrics import evaluate_both
    from clamp3.search.pairing import folder_parts, pair_by_csv, pair_by_name, unpaired

    embedding = embedder_loader(args, start_alone(args.device, args.threads)), feature_cache(args)
    queries, references = (load_collection(path, *embedding, progress=True) for path in (args.query_dir, args.ref_dir))
    check_comparable(queries, references)
    names = queries.files, references.files
    relevant = pair_by_csv(args.pairs, *names) if args.pairs else pair_by_name(*names)
    without_partner = unpaired(*names, relevant)

    parts: list[tuple[str | None, list[int], list[int]]]
    parts = [(None, list(range(len(queries.files))), list(range(len(references.files))))]
    if args.by_folder:
        parts += folder_parts(*names, relevant)
    records, origin = [], provenance(queries, references)
    for folder, members, candidates in parts:
        row_of = {reference: row for row, reference in enumerate(candidates)}
        positives = [[row_of[reference] for reference in relevant[query]] for query in members]
        figures = evaluate_both(queries.features[members], references.features[candidates], positives, args.calibrate)
        several = sum(len(rows) > 1 for rows in positives)
        counts = {"queries": len(members), "several_right": several, "references": len(candidates)}
        shown = "{} queries, {} with several relevant references, {} references".format(*counts.values())
        print_line(f"{folder or 'all'}: {shown}")
        print_figures(figures)
        for direction, estimates in figures.items():
            values = {name: [estimate.value, estimate.low, estimate.high] for name, estimate in estimates.items()}
            records.append({"folder": folder, "direction": direction, **counts, **values, **origin})
    print_weights(origin)
    save_json(args.json, records)
    print_issues("without a partner, so only candidates", without_partner)
    print_collection(queries)
    print_collection(references)
    return 1 if queries.failures or references.failures else 0


def print_figures(figures: dict[str, dict]) -> None:
    """Print a table with a row for each metric and a column for each direction."""
    rows = zip(*(estimates.items() for estimates in figures.values()), strict=True)
    table = [
        (both[0][0], *(f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]" for _, value in both)) for both in rows
    ]
    print_table(("", *figures), table)
    print()
