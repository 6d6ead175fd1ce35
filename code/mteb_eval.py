"""Run tasks of MTEB, the Massive Text Embedding Benchmark, whose audio part is called MAEB, with CLaMP 3.

    pip install "mteb>=2.26,<3"                      # Python 3.11 or newer
    python mteb_eval.py --list                       # the tasks of text and audio
    python mteb_eval.py GTZANGenre RavdessZeroshot --variant saas
A whole benchmark, with the results in a folder of your choice:
    python mteb_eval.py "MAEB(v1)" --variant saas --output results
--help tells the rest; the code is in clamp3/cli/commands/mteb.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("mteb")
