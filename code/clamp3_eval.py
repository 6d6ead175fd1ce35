"""Evaluate retrieval between two folders: MRR, Hit@1/10/100, median rank and nDCG@10, in both directions.

The relevant references of a query have its relative folder and its name up to the first dot; there may be several:
    python clamp3_eval.py QUERY_DIR REF_DIR
With pairs from a CSV file instead, of lines "query,reference", relative to the folders:
    python clamp3_eval.py QUERY_DIR REF_DIR --pairs FILE.csv
Also each folder (language, genre) by itself: its queries, and as candidates the references that are relevant to them
or lie in the folder of the same name:
    python clamp3_eval.py QUERY_DIR REF_DIR --by_folder --json figures.jsonl
Against other features of the same items, such as another model's: which is better, by how much and how sure:
    python clamp3_eval.py QUERY_DIR REF_DIR --compare OTHER_QUERY_DIR OTHER_REF_DIR
With a picture of the ranks, and of all cosines where there are few:
    python clamp3_eval.py QUERY_DIR REF_DIR --picture ranks.png
--help tells the rest; the code is in clamp3/cli/commands/eval.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("eval")
