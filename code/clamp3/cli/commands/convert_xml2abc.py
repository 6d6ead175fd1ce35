"""Convert scores to standard ABC (.abc): unit length 1/8, no line breaks.

    python preprocessing/abc/batch_xml2abc.py INPUT_DIR OUTPUT_DIR
Read are MusicXML (.xml .musicxml .mxl) and, with the extra "scores", Humdrum (.krn .kern) and MEI (.mei); of files of
MuseScore it is said how to convert them. The next step, which the models need, is batch_interleaved_abc.py. Each input
becomes OUTPUT_DIR/same/path.abc; outputs that are there already are skipped, so an interrupted run is taken up by the
same command. Inputs that cannot be converted are listed with the reason, also in OUTPUT_DIR/failures.jsonl, and the
exit code is 1; those in which something had to be mended are in OUTPUT_DIR/warnings.jsonl.
"""

from clamp3.cli.conversion import conversion_parser, run_conversion


def main() -> int:
    args = conversion_parser(__doc__).parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.formats.registry import SCORES, extensions, score_to_abc

    return run_conversion(args, score_to_abc, extensions=extensions(SCORES), target_extension=".abc")
