"""Convert MTF, MIDI's text format, back to MIDI files of one track.

    python preprocessing/midi/batch_mtf2midi.py INPUT_DIR OUTPUT_DIR
Each input becomes OUTPUT_DIR/same/path.mid; outputs that are there already are skipped, so an interrupted run is taken
up by the same command. Inputs that are not MTF are listed with the line that is not, also in
OUTPUT_DIR/failures.jsonl, and the exit code is 1.
"""

from clamp3.cli.conversion import conversion_parser, run_conversion


def main() -> int:
    args = conversion_parser(__doc__).parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.formats.midi import mtf_file_to_midi
    from clamp3.formats.registry import MTF

    return run_conversion(
        args,
        mtf_file_to_midi,
        extensions=MTF.extensions,
        target_extension=".mid",
    )
