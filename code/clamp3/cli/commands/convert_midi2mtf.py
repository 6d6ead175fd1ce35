"""Convert MIDI files (.mid .midi .kar .rmi) to MTF, MIDI's text format.

As M3 and CLaMP 3 were trained, without names, lyrics and other descriptive text:
    python preprocessing/midi/batch_midi2mtf.py INPUT_DIR OUTPUT_DIR --m3_compatible
With everything, which batch_mtf2midi.py can take back to MIDI:
    python preprocessing/midi/batch_midi2mtf.py INPUT_DIR OUTPUT_DIR
Each input becomes OUTPUT_DIR/same/path.mtf; outputs that are there already are skipped, so an interrupted run is taken
up by the same command. Inputs that cannot be read are listed with the reason, also in OUTPUT_DIR/failures.jsonl, and
the exit code is 1. Damaged ones that players read are read too and listed in OUTPUT_DIR/warnings.jsonl; with --strict
they fail.
"""

from functools import partial

from clamp3.cli.conversion import conversion_parser, run_conversion


def main() -> int:
    parser = conversion_parser(__doc__)
    parser.add_argument("--m3_compatible", action="store_true", help="leave out names, lyrics and other text")
    parser.add_argument("--strict", action="store_true", help="damaged files fail, even if they can be read")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.formats.midi import midi_to_mtf
    from clamp3.formats.registry import MIDI

    return run_conversion(
        args,
        partial(midi_to_mtf, m3_compatible=args.m3_compatible),
        extensions=MIDI.extensions,
        target_extension=".mtf",
        strict=args.strict,
    )
