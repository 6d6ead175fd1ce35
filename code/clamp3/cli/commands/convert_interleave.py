"""Convert standard ABC (.abc) to interleaved ABC, what the models take: one bar of every voice on each line.

    python preprocessing/abc/batch_interleaved_abc.py INPUT_DIR OUTPUT_DIR
Titles, words and other fields that are no notation are dropped, and bars at the start and the end that are empty in
all voices. A tune without voices is one voice; a file of several tunes becomes one output for each, numbered
(name_01.abc, name_02.abc, …); what is interleaved already is copied. Each input becomes OUTPUT_DIR/same/path.abc;
outputs that are there already are skipped, so an interrupted run is taken up by the same command. Inputs that cannot
be converted are listed with the reason, also in OUTPUT_DIR/failures.jsonl, and the exit code is 1; those in which
something had to be mended are in OUTPUT_DIR/warnings.jsonl.
"""

from clamp3.cli.conversion import conversion_parser, run_conversion


def main() -> int:
    args = conversion_parser(__doc__).parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.formats.abc import count_tunes, interleave_file
    from clamp3.formats.registry import ABC

    return run_conversion(
        args,
        interleave_file,
        extensions=ABC.extensions,
        target_extension=".abc",
        count_pieces=count_tunes,
    )
