"""Convert standard ABC (.abc) to interleaved ABC, what the models take: one bar of every voice on each line.

    python preprocessing/abc/batch_interleaved_abc.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in code/clamp3/cli/commands/convert_interleave.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("convert interleave")
