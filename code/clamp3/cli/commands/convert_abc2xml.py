"""Convert ABC (.abc), standard or interleaved, to MusicXML (.xml).

    python preprocessing/abc/batch_abc2xml.py INPUT_DIR OUTPUT_DIR
A file of several tunes becomes one output for each, numbered (name_01.xml, name_02.xml, …). Each input becomes
OUTPUT_DIR/same/path.xml; outputs that are there already are skipped, so an interrupted run is taken up by the same
command. Inputs that cannot be converted are listed with the reason, also in OUTPUT_DIR/failures.jsonl, and the exit
code is 1; those in which something had to be mended are in OUTPUT_DIR/warnings.jsonl.
"""

from clamp3.cli.conversion import conversion_parser, run_conversion


def main() -> int:
    args = conversion_parser(__doc__).parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.formats.abc import count_tunes
    from clamp3.formats.musicxml import abc_file_to_musicxml
    from clamp3.formats.registry import ABC

    return run_conversion(
        args,
        abc_file_to_musicxml,
        extensions=ABC.extensions,
        target_extension=".xml",
        count_pieces=count_tunes,
    )
