"""Turn weights into ONNX files, which onnxruntime runs without PyTorch; needs clamp3[onnx].

    python clamp3_export.py tiny OUT
    python clamp3_export.py saas OUT --int8
--help tells the rest; the code is in clamp3/cli/commands/export.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("export")
