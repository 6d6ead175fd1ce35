"""Classify without training: find which of the labels in a text file is closest to each file of a folder.

With one label a line, such as "slip jig":
    python zero_shot.py INPUT_DIR LABELS.txt
Also as JSON lines, and with the small model that comes with the code and needs no download:
    python zero_shot.py INPUT_DIR LABELS.txt --json predictions.jsonl --variant tiny
Where the first or the last folder of a file's path names its class, ignoring letter case and underscores, accuracy,
macro-F1, and precision and recall of each class are printed too (with `pip install "clamp3[classify]"`). True classes
can also come from a CSV file of lines "file,label", relative to INPUT_DIR; a picture shows the confusion matrix:
    python zero_shot.py INPUT_DIR LABELS.txt --truth FILE.csv --picture confusion.png
A line of LABELS.txt is a label, or a label with its prompts, in any language:
    slip jig
    hornpipe: a hornpipe | Hornpipe | 角笛舞曲
A label without prompts is put into each template; your own templates replace the default ones:
    python zero_shot.py INPUT_DIR LABELS.txt --template "a {} from Ireland" --template "{}"
--help tells the rest; the code is in clamp3/cli/commands/zero_shot.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("zero-shot")
