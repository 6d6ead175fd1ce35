"""What the commands share: their options, and how they start and end."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.output import print_collection
from clamp3.errors import ItemError, UserError

if TYPE_CHECKING:
    from clamp3.features.cache import FeatureCache

FOLDER = "folder of raw files or of features, searched recursively"


def script_parser(description: str) -> argparse.ArgumentParser:
    """A parser without options; `description` is the script's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def folders_parser(description: str) -> argparse.ArgumentParser:
    """A parser of an input and an output folder; `description` is the script's docstring."""
    parser = script_parser(description)
    parser.add_argument("input_dir", type=Path, help="folder of inputs, searched recursively")
    parser.add_argument("output_dir", type=Path, help="folder for the outputs, which mirrors INPUT_DIR")
    return parser


def extraction_parser(description: str, variants: tuple[str, ...]) -> argparse.ArgumentParser:
    """A parser of the options that both extraction commands take; `description` is the script's docstring."""
    parser = folders_parser(description)
    parser.add_argument(
        "--as_is", action="store_true", help="take ABC that is not interleaved as it stands, as the original does"
    )
    add_model_options(parser, variants)
    return parser


def add_model_options(parser: argparse.ArgumentParser, variants: tuple[str, ...]) -> None:
    """Options of the commands that make features: by what weights, where and how."""
    parser.add_argument(
        "--variant",
        choices=variants,
        help="instead of what config.py says; tiny is the small model that comes with the code",
    )
    parser.add_argument(
        "--batch_tokens", type=positive, help="tokens, patches or frames in a batch; lower it if memory runs out"
    )
    add_computing_options(parser)


def add_raw_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that take raw files, in addition to `add_model_options`."""
    parser.add_argument("--epoch", type=int, help="use the weights of this epoch, ..._EPOCH.pth")
    parser.add_argument(
        "--mert", help="what listens to sound: a folder, a name on the hub, or FILE.py:CLASS; default: MERT-v1-95M"
    )


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that keep the features of raw files."""
    parser.add_argument(
        "--cache_limit",
        type=positive,
        metavar="MB",
        default=2000,
        help="of the features that are kept, by content, for the next time; default: %(default)s",
    )
    parser.add_argument("--no_cache", action="store_true", help="embed all files anew, and keep nothing")


def feature_cache(args: argparse.Namespace) -> "FeatureCache | None":
    """The cache that the options of `add_cache_options` ask for."""
    from clamp3.features.cache import FeatureCache

    return None if args.no_cache else FeatureCache(args.cache_limit)


def add_computing_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that run a network: where and how it computes."""
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        default=launchers_precision(),
        help="of the layers' arithmetic; default fp32, or what `accelerate launch --mixed_precision` says",
    )
    parser.add_argument("--device", help='such as "cpu" or "cuda:1"; default: an accelerator if there is one')
    parser.add_argument("--threads", type=positive, help="CPU threads of each process; default: the cores, shared")


def answers_parser(
    description: str, first: str, help_first: str, second: str = "ref_dir", help_second: str = FOLDER
) -> argparse.ArgumentParser:
    """A parser for the commands that answer from files: two arguments, and the options that all of them take."""
    parser = script_parser(description)
    for name, meaning in ((first, help_first), (second, help_second)):
        parser.add_argument(name, type=str if name == "query" else Path, help=meaning)
    add_json_option(parser)
    add_embedding_options(parser)
    return parser


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON lines too; - prints them")


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that answer from raw files: those of the model, of raw files and of the cache."""
    add_model_options(parser, ("saas", "c2", "tiny"))
    add_raw_options(parser)
    add_cache_options(parser)


def launchers_precision() -> str:
    """What `accelerate launch --mixed_precision` says, which calls fp32 "no"."""
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return "fp32" if said == "no" else said


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def run(main: Callable[[], int], keeps_work: bool = True) -> None:
    """Run a script's `main` and exit with its code; 2 for the user's errors, 130 for Ctrl-C, 143 for SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name must never stop a run
    show_log()
    try:
        code = main()
    except UserError as error:
        if (collection := getattr(error, "collection", None)) is not None:  # of NoFeatures
            print_collection(collection)
        # What all processes raise is shown by one of each machine.
        if isinstance(error, ItemError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {_safe_lines(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted" + "; the same command goes on where it stopped" * keeps_work, file=sys.stderr)
        code = 130
    sys.exit(code)


def show_log() -> None:
    """Print what the library logs meanwhile, such as waiting for another process."""
    logger = logging.getLogger("clamp3")
    logger.handlers, logger.propagate = [_Printer()], False
    logger.setLevel(logging.INFO)


class _Printer(logging.Handler):
    """Prints messages as they are, beside any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(_safe_lines(record.getMessage()), file=sys.stdout)
        sys.stdout.flush()


def _safe_lines(message: str) -> str:
    """`message` without control characters; further lines are indented, so that no file name forges one."""
    from clamp3.io.reports import printable

    first, *others = message.split("\n")
    return "\n".join([printable(first), *(printable(line if line[:1] == " " else f"  {line}") for line in others)])
