"""What the commands share: their options, and how they start and end."""

import argparse
import atexit
import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.captions import add_pictures_option
from clamp3.cli.names import as_called
from clamp3.cli.output import print_collection
from clamp3.errors import OneProcessError, UserError, is_out_of_memory

if TYPE_CHECKING:
    from clamp3.features.cache import FeatureCache
    from clamp3.io.shards import Shard
    from clamp3.io.workers import Processes

FOLDER = "folder of raw files or of features, searched recursively"
ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
GOES_ON = "; the same command goes on where it stopped"
BROKEN_PIPE = 141  # what shells say of a process that SIGPIPE has ended
GRACE = 3.0  # seconds from such a signal to the end, whatever a thread waits for


class _Parser(argparse.ArgumentParser):
    """Calls commands as this one was called."""

    def format_help(self) -> str:
        return as_called(super().format_help())


def script_parser(description: str) -> argparse.ArgumentParser:
    """A parser without options; `description` is the command's docstring."""
    return _Parser(
        prog=os.path.basename(sys.argv[0]),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    add_worker_options(parser)
    add_shard_option(parser)
    add_format_option(parser)
    return parser


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that convert files in processes of their own."""
    parser.add_argument("--workers", type=positive, help="processes that convert; default: one for each core")
    parser.add_argument(
        "--time_limit",
        type=positive,
        metavar="SECONDS",
        default=300,
        help="for the conversion of one input, after which it counts as failed; default: %(default)s",
    )
    parser.add_argument(
        "--memory_limit",
        type=positive,
        metavar="MB",
        default=1000,
        help="for the conversion of one input, likewise (on Linux); default: %(default)s",
    )


def worker_processes(args: argparse.Namespace) -> "Processes":
    """What the options of `add_worker_options` ask for."""
    from clamp3.io.workers import Processes, own_cores

    return Processes(args.workers or own_cores(), args.time_limit, args.memory_limit)


def add_shard_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do the Ith of N shares, such as 3/16: as many runs share the folders, on any machines",
    )


def add_format_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        choices=("npy", "parquet"),
        default="npy",
        help="a .npy for each input, or Parquet files of thousands of rows, for millions of inputs; needs pyarrow",
    )


def _shard(text: str) -> "Shard":
    from clamp3.io.shards import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_model_options(parser: argparse.ArgumentParser, variants: tuple[str, ...]) -> None:
    """Options of the commands that make features: by what weights, where and how."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--variant",
        choices=variants,
        help="instead of what config.py says; tiny is the small model that comes with the code",
    )
    which.add_argument(
        "--weights",
        dest="model_weights",
        type=Path,
        metavar="PATH",
        help="of your own: a .pth or .safetensors file, or a folder of them; else those that config.py names",
    )
    if "saas" in variants:
        which.add_argument("--epoch", type=int, help="use the weights of this epoch, ..._EPOCH.pth")
    parser.add_argument(
        "--batch_tokens", type=positive, help="tokens, patches or frames in a batch; lower it if memory runs out"
    )
    add_computing_options(parser)


def add_raw_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that take raw files, in addition to `add_model_options`."""
    parser.add_argument(
        "--mert", help="what listens to sound: a folder, a name on the hub, or FILE.py:CLASS; default: MERT-v1-95M"
    )
    add_worker_options(parser)


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
    add_pictures_option(parser)
    return parser


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON lines too; - prints them")


def add_csv_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the answers as CSV too; - prints them")


def add_calibration_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        choices=("none", "centre", "whiten", "csls", "querybank"),
        default="none",
        help="correct the space that modalities share, as docs/search.md says; default: %(default)s",
    )


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


# ---------- start and end ----------


class Interrupted(KeyboardInterrupt):
    """A signal that asks this process to end; unlike SystemExit, nothing takes it for the error of a file."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run(main: Callable[[], int], keeps_work: bool = True) -> None:
    """Run a command's `main` and exit with its code.

    That is 2 for the user's errors, 130 for Ctrl-C, 143 for SIGTERM, and 141 where what reads the output has gone.
    """
    _open_standard_streams()
    _heed_signals()
    show_log()
    try:
        code = _code_of(main, keeps_work)
        sys.stdout.flush()
    except OSError as error:
        code = _code_without_output(error)
    if code in [128 + number for number in ENDING]:
        # As at any end, but without waiting for threads: the interpreter's own end takes no account of the time.
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


def _code_of(main: Callable[[], int], keeps_work: bool) -> int:
    """The exit code of `main`, whose errors are told in a line, but those that nobody has expected."""
    try:
        return main()
    except UserError as error:
        if (collection := getattr(error, "collection", None)) is not None:  # of NoFeatures
            print_collection(collection)
        # What all processes raise is shown by one of each machine.
        if isinstance(error, OneProcessError) or _is_first():
            print_error(str(error))
        return 2
    except KeyboardInterrupt as interruption:
        number = interruption.number if isinstance(interruption, Interrupted) else signal.SIGINT
        if _is_first():
            _complain(ENDING[signal.Signals(number)] + GOES_ON * keeps_work)
        return 128 + number
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print_error(f"there is not enough memory: {(str(error) or 'MemoryError').splitlines()[0]}")
        return 2


def _is_first() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # there is nobody left to be told
        print(line, file=sys.stderr, flush=True)


def _open_standard_streams() -> None:
    """Have all three: else the next file that is opened would be the standard output of libraries and processes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name must never stop a run


def _code_without_output(error: OSError) -> int:
    """The exit code where standard output takes no more. Raises `error` where it is about something else."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that what is still waiting goes somewhere
    if isinstance(error, BrokenPipeError):  # its reader has seen enough, as head does
        return BROKEN_PIPE
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
        raise error
    _complain(f"error: standard output cannot be written: {error.strerror}")
    return 2


def _heed_signals() -> None:
    """Turn SIGINT and SIGTERM into exceptions, and end the process where these do not come through in time.

    A handler runs in the main thread, once that is back from what it waits for; the thread here does not depend on it.
    """

    def interrupt(number: int, _frame: object) -> None:
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)  # once is enough
        raise Interrupted(number)

    for number in ENDING:
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # as of `nohup … &`
            signal.signal(number, interrupt)
    received, sent = socket.socketpair()
    sent.setblocking(False)
    signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):  # a copy of this process must not tell of its own signals here
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def end_in_time(_open: socket.socket = sent) -> None:
        while (number := received.recv(1)[0]) not in list(ENDING):
            continue
        time.sleep(GRACE)
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(128 + number)

    threading.Thread(target=end_in_time, daemon=True).start()


def print_error(message: str) -> None:
    """Print why this process fails, and let a launcher's own report of it end with that."""
    line = f"error: {_safe_lines(as_called(message))}"
    _complain(line)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from clamp3.distributed import tell_launcher

        tell_launcher(line)


def show_log() -> None:
    """Print what the library logs meanwhile, such as waiting for another process."""
    logger = logging.getLogger("clamp3")
    logger.handlers, logger.propagate = [_Printer()], False
    logger.setLevel(logging.INFO)


class _Printer(logging.Handler):
    """Prints messages as they are, beside any progress bar; warnings to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        file = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        tqdm.write(_safe_lines(as_called(record.getMessage())), file=file)
        file.flush()


def _safe_lines(message: str) -> str:
    """`message` without control characters; further lines are indented, so that no file name forges one."""
    from clamp3.io.reports import printable

    first, *others = message.split("\n")
    return "\n".join([printable(first), *(printable(line if line[:1] == " " else f"  {line}") for line in others)])
