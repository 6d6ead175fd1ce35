"""Convert MTF, MIDI's text format, back to MIDI files of one track.

    python preprocessing/midi/batch_mtf2midi.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in code/clamp3/cli/commands/convert_mtf2midi.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("convert mtf2midi")
