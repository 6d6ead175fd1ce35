"""Draw a collection as a map: what is alike lies close together; a picture, and a page that engraves and plays.

Of an index, with the labels that it has, or of a folder of files of any kinds that clamp3_embd.py takes:
    python clamp3_map.py INDEX --colour composer
    python clamp3_map.py FOLDER --colour folder --output tunes
Of features, with the music that they were made of, so that it can be engraved and played:
    python clamp3_map.py FEATURES --music FOLDER
With what a CSV file says of them, in a column "file" (relative to the folder that is drawn) and any others:
    python clamp3_map.py FOLDER --metadata tunes.csv --colour metre
With what some queries find in it, texts or files, as lists from which one goes to the pieces:
    python clamp3_map.py INDEX --queries "Irish reel" "a slow air" recording.wav
It writes OUTPUT.png and OUTPUT.html. The page is one file that needs no network and no server: it engraves scores,
draws MIDI as notes over time, and plays both on a piano; it holds no recordings. Points are placed by UMAP if there is
umap-learn, else by scikit-learn's t-SNE, which the map says; the same features give the same map. See docs/map.md.
"""

import os
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from clamp3.cli.captions import add_pictures_option
from clamp3.cli.options import (
    FOLDER,
    add_embedding_options,
    add_json_option,
    feature_cache,
    positive,
    script_parser,
    worker_processes,
)
from clamp3.cli.output import print_collection, print_line, print_weights, save_json
from clamp3.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from clamp3.search.collection import Collection
    from clamp3.tasks.maps import Piece
    from clamp3.web.maps import Answer

ANSWERS = 5  # that are listed of a query


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("source", type=Path, help=f"an index, or a {FOLDER}")
    parser.add_argument(
        *("--colour", "--color"),
        metavar="{kind,folder,COLUMN}",
        default="kind",
        help="what tells the colours: score, MIDI, audio or text; the first folder of the path; or a column of the "
        "metadata; default: %(default)s",
    )
    parser.add_argument("--output", type=Path, default=Path("map"), help="what the files are called; default: map")
    parser.add_argument("--music", type=Path, metavar="FOLDER", help="of the files that the features were made of")
    parser.add_argument("--metadata", type=Path, metavar="FILE.csv", help="what is known of the files")
    parser.add_argument(
        "--music_limit", type=positive, metavar="MB", default=20, help="of the music in the page; default: %(default)s"
    )
    parser.add_argument(
        "--queries", nargs="+", default=[], metavar="TEXT_OR_FILE", help="list in the page what each of these finds"
    )
    add_json_option(parser)
    add_embedding_options(parser)
    add_pictures_option(parser)
    args = parser.parse_args()
    if args.output.name in ("", ".."):
        parser.error(f"--output is what the files are called, such as map, and {args.output} is a folder")

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.answering import Question, search_collection, search_index
    from clamp3.search.collection import load_collection, provenance
    from clamp3.search.index import Index, is_index

    collection = None
    embedding = embedder_loader(args, asked=[args.source]), feature_cache(args)
    if is_index(args.source):
        pieces, features, origin = of_index(args)
        find = partial(search_index, Index(args.source))
    else:
        collection = load_collection(args.source, *embedding, progress=True)
        pieces, features, origin = of_collection(collection, args), collection.features, provenance(collection)
        find = partial(search_collection, collection)
    found = [(query, find(Question(query, k=ANSWERS), *embedding)) for query in args.queries]
    answers = [answer(query, records, pieces) for query, records in found]
    if args.music:
        pieces = with_music(pieces, args.music)
    draw(pieces, features, origin, answers, args)
    print_weights(origin)
    if collection is None:
        return 0
    print_collection(collection)
    return 1 if collection.failures else 0


def of_index(args: Namespace) -> "tuple[list[Piece], np.ndarray, dict]":
    """The files of an index in the order of their paths, their features (n, hidden), and what made these."""
    import numpy as np

    from clamp3.search.index import Index
    from clamp3.tasks.maps import Piece

    if args.metadata:
        raise UserError(
            f"an index has metadata of its own: clamp3_index.py add {args.source} FOLDER --metadata FILE.csv"
        )
    index = Index(args.source)
    with index.snapshot():
        entries = sorted(index.entries(), key=lambda entry: os.fsencode(entry.path))
        features = np.array(index.features[[entry.row for entry in entries]])
    if not entries:
        raise UserError(f"{args.source} is empty: clamp3_index.py add {args.source} FOLDER")
    folder = os.path.commonpath([entry.path.parent for entry in entries])
    pieces = [Piece(entry.path.relative_to(folder).as_posix(), entry.path, entry.metadata) for entry in entries]
    origin = {"weights": index.meta.get("weights"), "fingerprint": index.meta.get("fingerprint")}
    return pieces, features, origin


def of_collection(collection: "Collection", args: Namespace) -> "list[Piece]":
    """The files of a folder."""
    from clamp3.search.indexing import read_metadata
    from clamp3.tasks.maps import Piece

    known: dict[str, dict] = {}
    made_of: dict[str, list[str]] = {}  # what features may have been made of, by the name without its extension
    if args.metadata:
        for path, described in read_metadata(args.metadata, collection.folder).items():
            if path.is_relative_to(collection.folder.resolve()):
                name = path.relative_to(collection.folder.resolve()).as_posix()
                known[name] = described
                made_of.setdefault(without_extension(name), []).append(name)
    found = []
    for file in collection.files:
        bare = without_extension(file)
        own, sources = known.get(file) or known.get(bare), made_of.get(bare, [])
        if own is None and file.endswith(".npy") and sources:
            if len(sources) > 1:
                raise UserError(
                    f"{args.metadata}: {file} may be made of {' or '.join(sources)}: add a line for {file}"
                )
            own = known[sources[0]]
        found.append(Piece(file, collection.folder / file, own or {}))
    return found


def with_music(pieces: "list[Piece]", folder: Path) -> "list[Piece]":
    """`pieces`, those of features with the files of the same path under `folder`, but for the extension."""
    from clamp3.formats.registry import format_of
    from clamp3.io.folders import Plan, walk

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    files = [path for path in walk(folder, Plan()) if format_of(path)]
    music = {without_extension(path.relative_to(folder).as_posix()): path for path in files}
    found = []
    for piece in pieces:
        own = music.get(without_extension(piece.name)) if piece.kind == "feature" else None
        found.append(replace(piece, path=own) if own else piece)
    if not any(piece.kind != "feature" for piece in found):
        raise UserError(f"nothing in {folder} has the relative path of a feature, such as {pieces[0].name}")
    return found


def without_extension(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def answer(query: str, found: list[dict], pieces: "list[Piece]") -> "Answer":
    """What was found, by the places of the pieces."""
    from clamp3.web.maps import Answer

    places = {str(piece.path): place for place, piece in enumerate(pieces)}
    places |= {piece.name: place for place, piece in enumerate(pieces)}  # a folder's files are found by these
    if not all(record["file"] in places for record in found):
        raise UserError("the index was changed meanwhile: the same command draws it as it is now")
    return Answer(query, [(places[record["file"]], record["cosine"]) for record in found])


def draw(
    pieces: "list[Piece]", features: "np.ndarray", origin: dict, answers: "list[Answer]", args: Namespace
) -> None:
    """Write the picture, the page and the JSON lines."""
    from clamp3.io.files import atomic_write
    from clamp3.tasks.figures import draw_map
    from clamp3.tasks.maps import map_of
    from clamp3.web.maps import music_of, page

    chart, name = map_of(pieces, features, args.colour), args.source.resolve().name
    title = f"{name}: {len(pieces)} pieces by {chart.method}, coloured by {args.colour}"
    picture, target = (args.output.with_name(f"{args.output.name}{ending}") for ending in (".png", ".html"))
    draw_map(chart, title, picture)
    music, reasons = music_of(pieces, args.music_limit * 10**6, worker_processes(args))
    facts = f"{len(pieces)} pieces, what is alike close together: by {chart.method}, of {features_of(origin)}"
    content = page(chart, name, facts, music, reasons, answers).encode(errors="backslashreplace")
    try:
        with atomic_write(target) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    records = (
        {"file": piece.name, "x": x, "y": y, "kind": piece.kind, "label": label, "method": chart.method, **origin}
        for piece, (x, y), label in zip(pieces, chart.points.tolist(), chart.labels, strict=True)
    )
    save_json(args.json, records)
    shown = sum(view is not None for view in music)
    print_line(f"{title} -> {picture} and {target} ({len(content) / 1e6:.1f} MB, {shown} pieces to see or hear)")


def features_of(origin: dict) -> str:
    """The features, by the name of the weights that made them, without the folder that these lie in."""
    from clamp3.search.collection import UNKNOWN

    known = f" ({origin['fingerprint']})" if origin["fingerprint"] else ""
    return f"features made by {Path(str(origin['weights'])).name if known else UNKNOWN}{known}"
