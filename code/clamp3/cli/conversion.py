"""What the conversion commands of preprocessing/abc and preprocessing/midi share."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from clamp3.cli.options import add_worker_options, folders_parser
from clamp3.cli.output import print_report

if TYPE_CHECKING:
    from clamp3.io.conversion import Convert


def conversion_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that all conversion commands take; `description` is the script's docstring."""
    parser = folders_parser(description)
    add_worker_options(parser)
    return parser


def run_conversion(
    args: argparse.Namespace, convert: "Convert", extensions: Collection[str], target_extension: str, **options: Any
) -> int:
    """Convert the files of the folder that `args` name, and print the report; returns the exit code.

    `options` are further ones of `convert_folder`.
    """
    from clamp3.io.conversion import convert_folder

    report = convert_folder(
        convert,
        args.input_dir,
        args.output_dir,
        extensions,
        target_extension,
        workers=args.workers,
        time_limit=args.time_limit,
        memory_limit=args.memory_limit,
        progress=True,
        **options,
    )
    return print_report(report)
