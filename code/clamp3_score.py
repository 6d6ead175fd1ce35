"""Similarity of the files of two folders, pair by pair or as two groups.

Each query and the reference of the same relative folder and name up to the first dot (a.mid, a.2.mid -> a.wav):
    python clamp3_score.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_score.py QUERY_DIR REF_DIR --pairs FILE.csv --json scores.jsonl
One text, in quotes, or one file with each file of a folder, and the mean over the folder:
    python clamp3_score.py "a lively Irish reel" REF_DIR
The two folders as groups, by the cosine of their mean features and the Fréchet distance between them:
    python clamp3_score.py QUERY_DIR REF_DIR --group --frechet
--help tells the rest; the code is in clamp3/cli/commands/score.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("score")
