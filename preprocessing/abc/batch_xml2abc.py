"""Convert scores to standard ABC (.abc): unit length 1/8, no line breaks.

    python preprocessing/abc/batch_xml2abc.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in code/clamp3/cli/commands/convert_xml2abc.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("convert xml2abc")
