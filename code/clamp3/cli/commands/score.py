"""Similarity of the files of two folders, pair by pair or as two groups.

Each query and the reference of the same relative folder and name up to the first dot (a.mid, a.2.mid -> a.wav):
    python clamp3_score.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_score.py QUERY_DIR REF_DIR --pairs FILE.csv --json scores.jsonl
The two folders as groups, by the cosine of their mean features and the Fréchet distance between them:
    python clamp3_score.py QUERY_DIR REF_DIR --group --frechet
Cosines of this model look low even for good pairs. The percentile is the share of mismatched pairs whose cosine a
pair exceeds. Files without a partner are listed. The folders may hold files of all kinds that clamp3_embd.py takes, or
features (.npy of the shape (1, 768)) that it made with --get_global.
"""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_issues, print_table, print_weights, save_json

if TYPE_CHECKING:
    from clamp3.search.collection import Collection


def main() -> int:
    parser = answers_parser(__doc__, "query_dir", FOLDER)
    parser.add_argument("--pairs", type=Path, metavar="FILE.csv", help="which query belongs to which reference")
    parser.add_argument("--group", action="store_true", help="compare the folders as groups")
    parser.add_argument("--frechet", action="store_true", help="with --group: also the Fréchet distance")
    args = parser.parse_args()
    if args.group and args.pairs or args.frechet and not args.group:
        parser.error("--pairs is for pairs, --frechet goes with --group")

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.distributed import start_alone
    from clamp3.search.collection import check_comparable, load_collection

    embedding = embedder_loader(args, start_alone(args.device, args.threads)), feature_cache(args)
    queries, references = (load_collection(path, *embedding, progress=True) for path in (args.query_dir, args.ref_dir))
    check_comparable(queries, references)
    complete = score_groups(queries, references, args) if args.group else score_pairs(queries, references, args)
    print_collection(queries)
    print_collection(references)
    return 0 if complete and not queries.failures and not references.failures else 1


def score_groups(queries: "Collection", references: "Collection", args: Namespace) -> bool:
    """Print and save the similarity of the two groups; returns True."""
    from clamp3.search.collection import provenance
    from clamp3.search.metrics import frechet_distance, group_similarity

    record: dict[str, float] = {"queries": len(queries.files), "references": len(references.files)}
    record["group_similarity"] = group_similarity(queries.features, references.features)
    if args.frechet:
        record["frechet_distance"] = frechet_distance(queries.features, references.features)
    print_table(tuple(record), [tuple(record.values())])
    print_weights(origin := provenance(queries, references))
    save_json(args.json, [{**record, **origin}])
    return True


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
