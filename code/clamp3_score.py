"""How alike the files of two folders are, pair by pair or as two groups.

Each query with the reference of the same relative folder and name up to the first dot (a.mid, a.2.mid -> a.wav):
    python clamp3_score.py QUERY_DIR REF_DIR
Where names do not tell, by lines "query,reference", relative to the folders:
    python clamp3_score.py QUERY_DIR REF_DIR --pairs FILE.csv --json scores.jsonl
The two folders as wholes: the cosine of their mean features, and the Fréchet distance between them:
    python clamp3_score.py QUERY_DIR REF_DIR --group --frechet
Cosines of this model look low even for good pairs. The percentile says what share of the pairs that do not belong
together a pair's cosine exceeds. Files without a partner are listed. The folders may hold files of all kinds that
clamp3_embd.py takes, or features (.npy of the shape (1, 768)) that it made with --get_global.
"""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, answers_parser, feature_cache, run
from clamp3.cli.output import print_collection, print_issues, print_table, print_weights, save_json

if TYPE_CHECKING:
    from clamp3.search.collection import Collection


def main() -> int:
    parser = answers_parser(__doc__, "query_dir", FOLDER)
    parser.add_argument("--pairs", type=Path, metavar="FILE.csv", help="which query belongs to which reference")
    parser.add_argument("--group", action="store_true", help="compare the folders as wholes")
    parser.add_argument("--frechet", action="store_true", help="with --group: the Fréchet distance too")
    args = parser.parse_args()
    if args.group and args.pairs or args.frechet and not args.group:
        parser.error("--pairs is for pairs, --frechet goes with --group")

    # Only now, so that --help and mistyped options answer at once.
    import utils
    from clamp3.distributed import start_alone
    from clamp3.search.collection import check_comparable, load_collection

    embedding = utils.embedder_loader(args, start_alone(args.device, args.threads)), feature_cache(args)
    queries, references = (load_collection(path, *embedding, progress=True) for path in (args.query_dir, args.ref_dir))
    check_comparable(queries, references)
    complete = score_groups(queries, references, args) if args.group else score_pairs(queries, references, args)
    print_collection(queries)
    print_collection(references)
    return 0 if complete and not queries.failures and not references.failures else 1


def score_groups(queries: "Collection", references: "Collection", args: Namespace) -> bool:
    from clamp3.search.collection import made_by
    from clamp3.search.metrics import frechet_distance, group_similarity

    record = {"queries": len(queries.files), "references": len(references.files)}
    record["group_similarity"] = group_similarity(queries.features, references.features)
    if args.frechet:
        record["frechet_distance"] = frechet_distance(queries.features, references.features)
    print_table(tuple(record), [record.values()])
    print_weights(weights := made_by(queries, references))
    save_json(args.json, [{**record, "weights": weights}])
    return True


def score_pairs(queries: "Collection", references: "Collection", args: Namespace) -> bool:
    """Print and save the scores of pairs; returns whether it was clear which they are."""
    import numpy as np

    from clamp3.search.collection import made_by
    from clamp3.search.metrics import pair_scores
    from clamp3.search.pairing import doubtful, pair_by_csv, pair_by_name, unpaired

    names = queries.files, references.files
    right = pair_by_csv(args.pairs, *names) if args.pairs else pair_by_name(*names)
    alone = unpaired(*names, right)
    undecided, shared = ([], []) if args.pairs else doubtful(*names, right)
    pairs = [(query, reference) for query, own in enumerate(right) for reference in own]
    cosines, percentiles = pair_scores(queries.features, references.features, pairs)
    unclear = {remark.file for remark in undecided}
    records = [
        {
            "query": queries.files[query],
            "reference": references.files[reference],
            "cosine": float(cosine),
            "percentile": None if np.isnan(percentile) else float(percentile),
        }
        for (query, reference), cosine, percentile in zip(pairs, cosines, percentiles, strict=True)
        if queries.files[query] not in unclear
    ]
    print_table(("query", "reference", "cosine", "percentile"), (record.values() for record in records))
    if records and records[0]["percentile"] is not None:
        means = (np.mean([record[name] for record in records]) for name in ("cosine", "percentile"))
        print("mean of {} pairs: cosine {:.4f}, percentile {:.1f}".format(len(records), *means))
    print_weights(weights := made_by(queries, references))
    save_json(args.json, ({**record, "weights": weights} for record in records))
    print_issues("not scored, for names do not decide; --pairs FILE.csv does", undecided, most=None)
    print_issues("several queries for one reference; if they are not meant to share it, use --pairs FILE.csv", shared)
    print_issues("without a partner", alone, most=None)
    return not undecided


if __name__ == "__main__":
    run(main, keeps_work=False)
