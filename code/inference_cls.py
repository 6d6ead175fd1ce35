"""Classify with a linear probe that train_cls.py has trained.

The most probable class of each file in a folder:
    python inference_cls.py WEIGHTS INPUT_DIR
Also as JSON lines, with the five most probable classes of each file:
    python inference_cls.py WEIGHTS INPUT_DIR --json predictions.jsonl --top_k 5
Where file names begin with their class and an underscore (reel_0012.npy), accuracy, macro-F1, and precision and recall
of each class are printed too (with `pip install "clamp3[classify]"`). True classes can also come from folders or a CSV
file of lines "file,label", relative to INPUT_DIR:
    python inference_cls.py WEIGHTS INPUT_DIR --labels folder
    python inference_cls.py WEIGHTS INPUT_DIR --labels FILE.csv
--help tells the rest; the code is in clamp3/cli/commands/classify.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("classify")
