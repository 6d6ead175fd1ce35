"""What the commands that search share: the options that say what for, and how the answers are shown and saved."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clamp3.cli.captions import add_captioner_option, captions_of
from clamp3.cli.options import add_calibration_option, add_csv_option, positive
from clamp3.cli.output import print_found, print_line, save_csv, save_json, shown_explanation, shown_passage

if TYPE_CHECKING:
    from clamp3.search.answering import Question


def add_search_options(parser: ArgumentParser) -> None:
    """Options that say what to search for, among what, and which answers to show."""
    add = parser.add_argument
    add("--top_k", type=positive, default=10, help="how many to show; default: %(default)s")
    for name, what in (("--also", "more texts or files, added to QUERY"), ("--without", "texts or files, subtracted")):
        add(name, nargs="+", action="extend", default=[], metavar="TEXT_OR_FILE", help=what)
    add("--text", action="store_true", help="QUERY is a text, even where a file or folder has its name")
    add("--not_itself", action="store_true", help="leave out the file that QUERY is, and copies of it")
    add("--modality", choices=["text", "symbolic", "audio"], help="files of this modality alone")
    add("--kind", choices=["score", "midi", "audio", "text"], help="files of this kind alone, by their extensions")
    add(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help='files whose metadata in an index say so, such as "collection=Essen" or "year<1850"; = != < <= > >=',
    )
    add(
        "--diverse",
        type=share,
        nargs="?",
        const=0.3,
        default=0.0,
        metavar="SHARE",
        help="answers that are unlike each other: 0 not at all, 1 above all; without a number %(const)s",
    )
    add_calibration_option(parser)
    add_csv_option(parser)
    add_captioner_option(parser)


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError
    return number


def check_search_options(parser: ArgumentParser, args: Namespace) -> None:
    """End with a sentence where options do not go together."""
    if args.diverse and args.calibrate != "none":
        parser.error("--diverse and --calibrate do not go together")
    if args.diverse and (getattr(args, "passages", False) or getattr(args, "per_file", None)):
        parser.error(
            "--diverse chooses among files: it does not go with --passages and --per_file; --per_file 1 alone "
            "gives passages of different files"
        )
    if args.text and args.captioner:
        parser.error("--captioner puts a picture into words, and --text takes QUERY for a text")
    if getattr(args, "explain", False) and (args.also or args.without):
        parser.error("--explain explains one query, and does not go with --also and --without")


def question_of(args: Namespace) -> "Question":
    """What the options ask for, with captions in place of pictures, which `args.captions` then has."""
    from clamp3.search.answering import Question
    from clamp3.search.filters import Filter

    args.captions = {} if args.text else captions_of((args.query, *args.also, *args.without), args.captioner)
    return Question(
        args.captions.get(args.query, args.query),
        also=tuple(args.captions.get(query, query) for query in args.also),
        without=tuple(args.captions.get(query, query) for query in args.without),
        as_text=args.text,
        not_itself=args.not_itself,
        only=Filter(args.modality, args.kind, tuple(args.where)),
        k=args.top_k,
        diversity=args.diverse,
        calibrate=args.calibrate,
        note=lambda remark: print_line(f"note: {remark}", sys.stderr),
    )


def give_answers(args: Namespace, found: Sequence[dict], explanations: Sequence[dict] | None = None) -> None:
    """Print what was found, and save it as the options say."""
    print_found(found, explanations)
    asked = {"query": args.query} | {name: vars(args)[name] for name in ("also", "without") if vars(args)[name]}
    others = {query: caption for query, caption in args.captions.items() if query != args.query}
    asked |= {"caption": args.captions[args.query]} if args.query in args.captions else {}
    asked |= {"captions": others} if others else {}
    save_json(args.json, ({**asked, **record} for record in found))
    save_csv(args.csv, [_row({**asked, **record}) for record in found], ["query", "rank", "cosine", "file"])


def _row(record: dict) -> dict:
    """`record` with texts in place of what is not in one piece."""
    shown = {name: "; ".join(record[name]) for name in ("also", "without") if name in record}
    if "passage" in record:
        shown["passage"] = shown_passage(record["passage"]) or ""
    if "explanation" in record:
        shown["explanation"] = shown_explanation(record["explanation"])
    return {**record, **shown}
