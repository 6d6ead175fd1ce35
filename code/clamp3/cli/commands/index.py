"""An index of a collection: features, paths and metadata in one folder, searched without looking at the files again.

Make one of all files under a folder, of any kinds that clamp3_embd.py takes, or of features that it has made:
    python clamp3_index.py build INDEX FOLDER
Bring it up to date, or add another folder; only files that are new or have changed are embedded:
    python clamp3_index.py add INDEX FOLDER
With what a CSV file says of them, in a column "file" (relative to FOLDER) and any others:
    python clamp3_index.py add INDEX FOLDER --metadata tunes.csv
Search it by a text or a file, among all or among one modality:
    python clamp3_index.py search "a lively Irish reel" INDEX
    python clamp3_index.py search QUERY.mid INDEX --modality audio --top_k 20 --json found.jsonl
(INDEX may come first, too.) More of what a search takes, such as --also, --without and --where: docs/search.md.
Find the bars, seconds or lines in files, not only the files, in an index that was built with --passages:
    python clamp3_index.py build INDEX FOLDER --passages
    python clamp3_index.py search QUERY.abc INDEX --passages --per_file 1
See what is in it; forget files or folders, or all files that are no longer there:
    python clamp3_index.py info INDEX
    python clamp3_index.py remove INDEX FOLDER/old
    python clamp3_index.py remove INDEX --missing
See which files are there several times, byte by byte, note by note, in other versions and keys, or nearly:
    python clamp3_index.py duplicates INDEX --csv duplicates.csv
Look whether all of it is as it was written, and mend what is not:
    python clamp3_index.py check INDEX
    python clamp3_index.py repair INDEX
Give it to a vector database, or to whatever reads Parquet (docs/scaling.md):
    python clamp3_index.py export INDEX rows.parquet --to parquet
    python clamp3_index.py export INDEX http://localhost:6333 --to qdrant --name music
and search it there, with the same answers; a folder of a database does as well as an address:
    python clamp3_index.py search "a lively Irish reel" http://localhost:6333 --name music
An index holds features of one model, and refuses others. Several processes may use it; one at a time changes it.
Search is exact; from 100,000 files on it is approximate, if there is faiss (`pip install faiss-cpu`), unless --exact
says otherwise. For approximate search in a smaller index, build it with --approximate. Files that cannot be read are
listed (exit code 1); the others are in the index, and an interrupted run is taken up by the same command. A file that
has moved keeps its entry. Files of FOLDER that are gone leave the index, unless all are, as when a disk is missing.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.captions import add_pictures_option, take_pictures_for
from clamp3.cli.duplicates import add_duplicates_options
from clamp3.cli.names import as_called
from clamp3.cli.options import (
    add_embedding_options,
    add_json_option,
    feature_cache,
    positive,
    script_parser,
)
from clamp3.cli.output import answers_alone, print_changes, print_issues, print_line, print_table, save_json
from clamp3.cli.searching import add_search_options, check_search_options, give_answers, question_of

if TYPE_CHECKING:
    from clamp3.search.index import Index


def main() -> int:
    args = parse()
    try:
        with answers_alone(getattr(args, "json", None), getattr(args, "csv", None)):
            code = COMMANDS[args.command](args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of programs that SIGPIPE ends
    return code


def parse() -> Namespace:
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", metavar="build|add|remove|info|search|duplicates|check|repair|export", required=True
    )

    def command(name: str, help_text: str) -> ArgumentParser:
        added = commands.add_parser(name, help=help_text, allow_abbrev=False)
        added.add_argument("index", type=Path, help="folder of the index")
        return added

    for name, help_text in (("build", "make an index, or go on making it"), ("add", "bring an index up to date")):
        adding = command(name, help_text)
        adding.add_argument("folder", type=Path, help="folder of files, searched recursively; or a file")
        adding.add_argument("--metadata", type=Path, metavar="FILE.csv", help="what is known of the files")
        adding.add_argument("--approximate", action="store_true", help="prepare for that, whatever the size")
        adding.add_argument(
            "--passages", action="store_true", help="index bars, seconds and lines too; see docs/search.md"
        )
        add_embedding_options(adding)
        add_pictures_option(adding)
    removing = command("remove", "forget files")
    removing.add_argument("paths", type=Path, nargs="*", help="files or folders")
    removing.add_argument("--missing", action="store_true", help="all files that are no longer there")
    informing = command("info", "what is in an index")
    informing.add_argument("--list", action="store_true", help="each file too")
    checking = command("check", "list what is broken in an index (exit code 1 if anything is)")
    repairing = command("repair", "mend an index; what cannot be trusted is dropped, for `add` to embed again")
    searching = commands.add_parser("search", help="find the files closest to a text or a file", allow_abbrev=False)
    searching.add_argument("query", help="a file, or a text in quotes")
    searching.add_argument(
        "index", help="folder of the index, or what it was exported to (OUT of `export`); it may come first, too"
    )
    searching.add_argument("--name", default="clamp3", help="of the table or collection there; default: %(default)s")
    add_search_options(searching)
    searching.add_argument("--passages", action="store_true", help="find bars, seconds and lines, not only files")
    searching.add_argument(
        "--no_melody", action="store_true", help="rank passages by features alone where QUERY is notes too"
    )
    searching.add_argument("--per_file", type=positive, help="how many passages of a file to show at most")
    how = searching.add_mutually_exclusive_group()
    how.add_argument("--exact", dest="approximate", action="store_const", const=False, help="look at all of them")
    how.add_argument("--approximate", action="store_const", const=True, help="look at a part; default: if it is large")
    add_embedding_options(searching)
    finding = command("duplicates", "files that are there several times, or in other versions")
    add_duplicates_options(finding)
    exporting = command("export", "give all files and features to another program")
    exporting.add_argument("out", help="a new Parquet file; the folder of a database; the address of a Qdrant server")
    exporting.add_argument("--to", choices=("parquet", "lance", "qdrant"), required=True)
    exporting.add_argument("--name", default="clamp3", help="of the table or collection; default: %(default)s")
    for answering in (informing, searching, finding, checking, repairing):
        add_json_option(answering)
    args = parser.parse_args()
    if args.command == "search":
        check_search_options(searching, args)
    return args


def build(args: Namespace) -> int:
    """Make an index, unless it is there, and add a folder."""
    from clamp3.search.index import Index, is_index
    from clamp3.search.indexing import check_indexable

    take_pictures_for(args)
    check_indexable(args.folder, args.index)
    if not is_index(args.index):
        Index.create(args.index).close()
    return add(args)


def add(args: Namespace) -> int:
    """Bring the index up to date with a folder."""
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.index import Index
    from clamp3.search.indexing import read_metadata, update_index

    index = Index(args.index)
    load_embedder = embedder_loader(args, asked=[args.index])
    metadata = read_metadata(args.metadata, args.folder) if args.metadata else None
    changes = update_index(
        *(index, args.folder, load_embedder, feature_cache(args), metadata, args.approximate),
        progress=True,
        forget_missing=True,
        passages=args.passages,
    )
    print_changes(changes, args.index)
    if changes.moved:
        print(f"{changes.moved} files have moved: their entries have the new names")
    if changes.forgotten:
        print(f"{changes.forgotten} files removed, which are no longer there")
    summary(index)
    return 1 if changes.failures else 0


def remove(args: Namespace) -> int:
    """Forget what the options name."""
    from clamp3.errors import UserError
    from clamp3.search.index import Index
    from clamp3.search.indexing import is_gone

    index, wanted = Index(args.index), [path.resolve() for path in args.paths]
    with index.writing():
        found = [
            entry.path
            for entry in index.entries()
            if (args.missing and is_gone(entry.path)) or any(entry.path.is_relative_to(path) for path in wanted)
        ]
        if not found and not args.missing:
            raise UserError(f"nothing in {args.index} is one of these, or in one of them")
        index.remove(found)
        index.compact()
    print(f"{len(found)} files removed")
    summary(index)
    return 0


def summary(index: "Index") -> dict:
    """Print what the index holds, and return it."""
    from clamp3.search.integrity import stamp

    with index.snapshot():
        record = {
            "index": str(index.folder),
            "files": len(index),
            **index.counts(),
            "numbers": index.meta.get("hidden", 0),
            "weights": index.meta.get("weights"),
            "fingerprint": index.meta.get("fingerprint"),
            "approximate": "nearest" in index.meta,
            **({"passages": sum(one.count for one in index.slices())} if "with_passages" in index.meta else {}),
            "MB": round(sum((stamp(path) or [0])[0] for path in index.folder.iterdir()) / 1e6, 1),
        }
    print_table(tuple(record), [tuple(record.values())])
    return record


def info(args: Namespace) -> int:
    """Show what is in the index."""
    from clamp3.search.index import Index

    index = Index(args.index)
    with index.snapshot():
        files = [
            {"file": str(entry.path), "modality": entry.modality, "metadata": entry.metadata}
            for entry in (index.entries() if args.list else ())
        ]
        records = [summary(index), *files]
    save_json(args.json, records)
    if args.list:
        print_table(("file", "modality", "metadata"), (tuple(record.values()) for record in files))
    return 0


def search(args: Namespace) -> int:
    """Show the files closest to the query."""
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.answering import search_index
    from clamp3.search.index import Index, is_index

    place, args.query = index_and_query(args.query, args.index, args.text)
    if not is_index(Path(place)):
        return search_exported(args, place)
    load_embedder = embedder_loader(args, asked=[Path(place)])
    found = search_index(
        *(Index(Path(place)), question_of(args), load_embedder, feature_cache(args), args.approximate),
        passages=args.passages or args.per_file is not None,
        per_file=args.per_file,
        by_melody=not args.no_melody,
    )
    give_answers(args, found)
    return 0


def search_exported(args: Namespace, place: str) -> int:
    """Show the files closest to the query of those that an index was exported to, at an address or in a folder."""
    from clamp3.cli.embedders import embedder_loader
    from clamp3.errors import UserError
    from clamp3.search.answering import search_engine
    from clamp3.search.engines import API_KEY, open_engine

    if args.passages or args.per_file is not None:
        raise UserError(f"{place} has no passages, which are not exported: search the index itself for them")
    with closing(open_engine(place, args.name, os.environ.get(API_KEY))) as engine:
        asked = [engine.weights] if engine.weights else []
        load_embedder = embedder_loader(args, asked=asked)
        found = search_engine(engine, question_of(args), load_embedder, feature_cache(args), args.approximate)
    give_answers(args, found)
    return 0


def index_and_query(first: str, second: str, as_text: bool) -> tuple[str, str]:
    """The index, or what one was exported to, and the query among the words of `search`.

    That is `QUERY INDEX` and was `INDEX QUERY`. Raises UserError where both are indexes, unless the query is said to
    be a text, and where none is.
    """
    from clamp3.errors import UserError
    from clamp3.search.engines import engine_at
    from clamp3.search.index import is_index, missing_index

    indexes = [word for word in (first, second) if is_index(Path(word)) or engine_at(word)]
    if len(indexes) == 2 and not as_text:
        raise UserError(f"both {first} and {second} are indexes; if the first is the query, a text, say so by --text")
    if not indexes:
        folders = [word for word in (second, first) if Path(word).is_dir()]
        raise missing_index(Path(folders[0] if folders else second))
    return (second, first) if indexes[-1] == second else (first, second)


def duplicates(args: Namespace) -> int:
    """Show which files are the same."""
    from clamp3.cli.duplicates import show_duplicates

    return show_duplicates(args)


def check(args: Namespace) -> int:
    """List what is broken."""
    from clamp3.io.reports import quoted
    from clamp3.search import repair

    issues = repair.check(args.index)
    save_json(args.json, map(asdict, issues))
    if not issues:
        print_line(f"nothing is broken in {args.index}")
        return 0
    print_issues("broken", issues, most=None)
    print_line(as_called(f"clamp3_index.py repair {quoted(args.index)} mends what can be mended"))
    return 1


def mend(args: Namespace) -> int:
    """Make the index whole again, and name the files that it has lost."""
    from clamp3.io.reports import quoted
    from clamp3.search import repair
    from clamp3.search.index import Index

    dropped = repair.repair(args.index)
    save_json(args.json, map(asdict, dropped))
    again = as_called(f"clamp3_index.py add {quoted(args.index)} FOLDER, with their folders, embeds them again")
    print_issues(f"dropped ({again})", dropped, most=None)
    summary(Index(args.index))
    return 0


def export(args: Namespace) -> int:
    """Write all files and features in another program's format."""
    from clamp3.search import exporting
    from clamp3.search.engines import API_KEY
    from clamp3.search.index import Index

    count = exporting.export(Index(args.index), args.out, args.to, args.name, os.environ.get(API_KEY))
    print_line(f"{count} files -> {args.out}")
    return 0


COMMANDS = {
    "build": build,
    "add": add,
    "remove": remove,
    "info": info,
    "search": search,
    "duplicates": duplicates,
    "check": check,
    "repair": mend,
    "export": export,
}
