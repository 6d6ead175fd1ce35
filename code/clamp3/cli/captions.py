"""What the commands share that take a picture as the query."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clamp3.cli.output import print_line
from clamp3.errors import UserError
from clamp3.formats.captions import CAPTIONER, PICTURES, caption_of, is_picture


def add_captioner_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--captioner",
        metavar="NAME_OR_FOLDER",
        help=f"what puts a picture ({' '.join(PICTURES)}) into words: a folder, or a name on the hub; by default "
        f"{CAPTIONER}",
    )


def add_pictures_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        metavar="NAME_OR_FOLDER",
        help=f"take pictures ({' '.join(PICTURES)}) in folders too, in the words of a captioner: a folder, or a name "
        f"on the hub, such as {CAPTIONER}",
    )


def take_pictures_for(args: argparse.Namespace) -> None:
    """Have pictures read in this process, if the option of `add_pictures_option` asks for that."""
    if captioner := getattr(args, "pictures", None):
        from clamp3.formats.registry import take_pictures

        _silence_transformers()
        take_pictures(captioner)


def _silence_transformers() -> None:
    """Have it say nothing of what it would rather have installed."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def captions_of(queries: Sequence[str], captioner: str | None) -> dict[str, str]:
    """The captions of those of `queries` that name pictures, by these: texts to search by, which are printed.

    Raises UserError for a picture that is not there, and for a captioner without a picture.
    """
    pictures = [query for query in dict.fromkeys(queries) if is_picture(Path(query))]
    if captioner and not pictures:
        raise UserError(f"--captioner is for pictures ({' '.join(PICTURES)}), and {queries[0]} is none")
    captions = {}
    for picture in pictures:
        if not Path(picture).is_file():
            raise UserError(f"there is no file {picture}; a search takes a text of this name by --text")
        from clamp3.io.reports import describe_error

        _silence_transformers()
        try:
            caption = caption_of(Path(picture), captioner or CAPTIONER)
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise UserError(f"{picture} {describe_error(error)}") from None
        print_line(f"{picture} shows, in the words of {captioner or CAPTIONER}: {caption}")
        # With a full stop it is a text, whatever files there are.
        captions[picture] = f"{caption}." if Path(caption).exists() else caption
    return captions
