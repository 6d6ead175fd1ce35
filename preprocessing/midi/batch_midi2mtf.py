"""Convert MIDI files (.mid .midi .kar .rmi) to MTF, MIDI's text format.

As M3 and CLaMP 3 were trained, without names, lyrics and other descriptive text:
    python preprocessing/midi/batch_midi2mtf.py INPUT_DIR OUTPUT_DIR --m3_compatible
With everything, which batch_mtf2midi.py can take back to MIDI:
    python preprocessing/midi/batch_midi2mtf.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in code/clamp3/cli/commands/convert_midi2mtf.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("convert midi2mtf")
