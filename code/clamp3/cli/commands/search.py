"""Search a folder or an index: the files closest to a text, or to a file of any kind.

By a text in any language, in quotes:
    python clamp3_search.py "a lively Irish reel" REF_DIR
By a file, for the 20 closest, as JSON lines too:
    python clamp3_search.py QUERY.mid REF_DIR --top_k 20 --json found.jsonl
By a picture, which a network of its own puts into words first (docs/retrieval.md):
    python clamp3_search.py PICTURE.jpg REF_DIR --captioner NAME_OR_FOLDER
With the small model that comes with the code, which needs no download:
    python clamp3_search.py "a slow air" REF_DIR --variant tiny
With the bars and the words that make it so, by their shares of the cosine (docs/search.md):
    python clamp3_search.py "a lively Irish reel" REF_DIR --explain
Other files like one of them, or what several queries have in common; docs/search.md tells more:
    python clamp3_search.py REF_DIR/tune.abc REF_DIR --not_itself
    python clamp3_search.py "a slow air" REF_DIR --also tune.abc --without "a waltz" --diverse --csv found.csv
QUERY and the files under REF_DIR may be of any kinds that clamp3_embd.py takes: they are embedded on the way, and
those that cannot be read are listed (exit code 1). For large or often searched folders make features first:
    python clamp3_embd.py REF_DIR FEATURES --get_global
    python clamp3_search.py "a lively Irish reel" FEATURES
or an index, which clamp3_index.py builds and keeps up to date:
    python clamp3_search.py "a lively Irish reel" INDEX
A .npy of the shape (1, 768) is such a feature; one of (…, T, 768) is MERT features, and is embedded. The hidden
states that clamp3_embd.py and extract_clamp3.py write without --get_global are neither, but look like MERT features.
"""

import re
from argparse import Namespace

from clamp3.cli.options import answers_parser, feature_cache
from clamp3.cli.output import answers_alone, print_collection
from clamp3.cli.searching import add_search_options, check_search_options, give_answers, question_of


def main() -> int:
    parser = answers_parser(__doc__, "query", "a file, or a text in quotes")
    add_search_options(parser)
    parser.add_argument("--explain", action="store_true", help="show the bars and words that make files alike")
    args = parser.parse_args()
    check_search_options(parser, args)
    with answers_alone(args.json, args.csv):
        return answer(args)


def answer(args: Namespace) -> int:
    """Search as the options say; returns the exit code."""
    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.errors import UserError
    from clamp3.search.answering import search_collection, search_index
    from clamp3.search.collection import load_collection
    from clamp3.search.engines import engine_at
    from clamp3.search.explaining import explain_found
    from clamp3.search.index import Index, is_index

    place = re.sub("^(https?):/", r"\1://", str(args.ref_dir))  # paths have one slash
    if engine_at(place):
        raise UserError(f"clamp3_index.py search QUERY {place} searches what an index was exported to")
    embedding = embedder_loader(args, asked=[args.ref_dir]), feature_cache(args)
    question, references = question_of(args), None
    if is_index(args.ref_dir):
        found = search_index(Index(args.ref_dir), question, *embedding)
    else:
        references = load_collection(args.ref_dir, *embedding, progress=True)
        found = search_collection(references, question, *embedding)
    explained = explain_found(found, question.query, embedding[0], args.ref_dir, args.text) if args.explain else None
    give_answers(args, found, explained)
    if references is None:
        return 0
    print_collection(references)
    return 1 if references.failures else 0
