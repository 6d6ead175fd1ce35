"""Similarity of the files of two folders, pair by pair or as two groups.

Each query and the reference of the same relative folder and name up to the first dot (a.mid, a.2.mid -> a.wav):
    python clamp3_score.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_score.py QUERY_DIR REF_DIR --pairs FILE.csv --json scores.jsonl
One text, in quotes, or one file with each file of a folder, and the mean over the folder:
    python clamp3_score.py "a lively Irish reel" REF_DIR
The two folders as groups, by the cosine of their mean features and the Fréchet distance between them:
    python clamp3_score.py QUERY_DIR REF_DIR --group --frechet
Cosines of this model look low even for good pairs. The percentile is the share of mismatched pairs whose cosine a
pair exceeds. The Fréchet distance of QUERY_DIR from REF_DIR is too large where files are few: it is also extrapolated
to endless queries. docs/retrieval.md says how. Files without a partner are listed. The folders may hold files of all
kinds that clamp3_embd.py takes, or features (.npy of the shape (1, 768)) that it made with --get_global.
"""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.captions import add_captioner_option, captions_of
from clamp3.cli.options import FOLDER, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_issues, print_line, print_table, print_weights, save_json
from clamp3.errors import UserError

if TYPE_CHECKING:
    from clamp3.search.collection import Collection


def main() -> int:
    parser = answers_parser(__doc__, "query", f"{FOLDER}; or a file, or a text in quotes")
    parser.add_argument("--pairs", type=Path, metavar="FILE.csv", help="which query belongs to which reference")
    parser.add_argument("--group", action="store_true", help="compare the folders as groups")
    parser.add_argument("--frechet", action="store_true", help="with --group: also the Fréchet distance")
    add_captioner_option(parser)
    args = parser.parse_args()
    if args.group and args.pairs or args.frechet and not args.group:
        parser.error("--pairs is for pairs, --frechet goes with --group")
    if is_mistyped(args.query):
        raise UserError(f"there is no file or folder {args.query}")

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.collection import check_comparable, existing_path, load_collection, load_query

    asked = [args.ref_dir, Path(args.query)]
    embedding = embedder_loader(args, asked=asked), feature_cache(args)
    captions = captions_of([args.query], args.captioner)
    query = captions.get(args.query, args.query)
    path = existing_path(query)
    is_folder = path is not None and path.is_dir()
    queries = load_collection(path, *embedding, progress=True) if path else load_query(query, *embedding)
    references = load_collection(args.ref_dir, *embedding, progress=True)
    check_comparable(queries, references)
    if args.group:
        complete = score_groups(queries, references, args)
    elif is_folder or args.pairs:
        complete = score_pairs(queries, references, args)
    else:
        complete = score_one(queries, references, args, captions)
    if path:
        print_collection(queries)
    else:
        for remark in queries.repairs:
            print_line(f"{remark.file}: {remark.reason}")
    print_collection(references)
    return 0 if complete and not queries.failures and not references.failures else 1


def score_groups(queries: "Collection", references: "Collection", args: Namespace) -> bool:
    """Print and save the similarity of the two groups; returns True."""
    from clamp3.search.collection import provenance
    from clamp3.search.metrics import frechet_distance, group_similarity

    record: dict[str, float] = {"queries": len(queries.files), "references": len(references.files)}
    record["group_similarity"] = group_similarity(queries.features, references.features)
    remarks: list[str] = []
    if args.frechet:
        record["frechet_distance"] = frechet_distance(queries.features, references.features)
        remarks = extrapolate(queries, references, record)
    print_table(tuple(record), [tuple(record.values())])
    for remark in remarks:
        print_line(remark)
    print_weights(origin := provenance(queries, references))
    save_json(args.json, [{**record, **({"remarks": remarks} if args.frechet else {}), **origin}])
    return True


def extrapolate(queries: "Collection", references: "Collection", record: dict[str, float]) -> list[str]:
    """Add the extrapolated Fréchet distance to `record`; returns what there is to say about both."""
    from clamp3.search.metrics import FEWEST_EXTRAPOLATED, frechet_infinity

    remarks = []
    if found := frechet_infinity(queries.features, references.features):
        record |= {"frechet_infinity": found.value, "r2": found.r2}
        remarks.append(
            f"frechet_infinity: extrapolated to endless queries, by a line over 1/N through the distances of "
            f"{len(found.sizes)} random subsets of {found.sizes[0]} to {found.sizes[-1]} of them; R² of the line is "
            f"{found.r2:.3f}"
        )
        if found.intercept < 0:
            remarks.append(f"the line leads to {found.intercept:.4f}; no distance is below 0, so it is shown as 0")
    else:
        remarks.append(f"not extrapolated to endless queries, which takes {FEWEST_EXTRAPOLATED} of them")
    width = queries.features.shape[1]
    for side in (queries, references):
        if len(side.files) <= width:
            remarks.append(
                f"{side.folder} has {len(side.files)} files and features have {width} numbers: too few to know how "
                "these vary together, so that the distance is too large, and the line over 1/N no good one; compare "
                "it only with distances of as many files"
            )
    return remarks


def score_one(query: "Collection", references: "Collection", args: Namespace, captions: dict[str, str]) -> bool:
    """Print and save the cosine of one query with each reference, the closest first, and their mean; returns True."""
    from clamp3.search.collection import existing_path, provenance
    from clamp3.search.ranking import top_k

    indices, cosines = top_k(query.features, references.features, len(references.files))
    asked = {"query": args.query, "caption": captions[args.query]} if captions else {"query": query.files[0]}
    records = [
        {
            **asked,
            "reference": references.files[index],
            "cosine": cosine,
            "percentile": None,
        }
        for index, cosine in zip(indices[0], cosines[0].tolist(), strict=True)
    ]
    print_line(
        args.query if existing_path(args.query) else f'"{args.query}", a text, for there is no such file or folder'
    )
    print_table(("reference", "cosine"), ((record["reference"], record["cosine"]) for record in records))
    print(f"mean of {len(records)} files: cosine {cosines.mean():.4f}")
    print_weights(origin := provenance(query, references))
    save_json(args.json, ({**record, **origin} for record in records))
    return True


def is_mistyped(query: str) -> bool:
    """Whether `query` looks like the path of a file or folder that is not there, and not like a text."""
    from clamp3.search.collection import existing_path

    return existing_path(query) is None and ("/" in query or "\\" in query) and not any(map(str.isspace, query))


def score_pairs(queries: "Collection", references: "Collection", args: Namespace) -> bool:
    """Print and save the scores of the pairs; returns whether none was ambiguous."""
    import numpy as np

    from clamp3.search.collection import provenance
    from clamp3.search.metrics import pair_scores
    from clamp3.search.pairing import ambiguous_pairs, pair_by_csv, pair_by_name, unpaired

    names = queries.files, references.files
    relevant = pair_by_csv(args.pairs, *names) if args.pairs else pair_by_name(*names)
    without_partner = unpaired(*names, relevant)
    ambiguous, shared = ([], []) if args.pairs else ambiguous_pairs(*names, relevant)
    pairs = [(query, reference) for query, positives in enumerate(relevant) for reference in positives]
    cosines, percentiles = pair_scores(queries.features, references.features, pairs)
    skipped = {issue.file for issue in ambiguous}
    records = [
        {
            "query": queries.files[query],
            "reference": references.files[reference],
            "cosine": float(cosine),
            "percentile": None if np.isnan(percentile) else float(percentile),
        }
        for (query, reference), cosine, percentile in zip(pairs, cosines, percentiles, strict=True)
        if queries.files[query] not in skipped
    ]
    print_table(("query", "reference", "cosine", "percentile"), (tuple(record.values()) for record in records))
    if records and records[0]["percentile"] is not None:
        means = (np.mean([record[name] for record in records]) for name in ("cosine", "percentile"))
        print("mean of {} pairs: cosine {:.4f}, percentile {:.1f}".format(len(records), *means))
    print_weights(origin := provenance(queries, references))
    save_json(args.json, ({**record, **origin} for record in records))
    print_issues("not scored: ambiguous by name, so list the pairs in --pairs FILE.csv", ambiguous, most=None)
    print_issues("several queries for one reference; if they are not meant to share it, use --pairs FILE.csv", shared)
    print_issues("without a partner", without_partner, most=None)
    return not ambiguous
