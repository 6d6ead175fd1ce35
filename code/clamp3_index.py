"""An index of a collection: features, paths and metadata in one folder, searched without looking at the files again.

Make one of all files under a folder, of any kinds that clamp3_embd.py takes, or of features that it has made:
    python clamp3_index.py build INDEX FOLDER
Bring it up to date, or add another folder; only files that are new or have changed are embedded:
    python clamp3_index.py add INDEX FOLDER
With what a CSV file says of them, in a column "file" (relative to FOLDER) and any others:
    python clamp3_index.py add INDEX FOLDER --metadata tunes.csv
Search it by a text or a file, among all or among one modality:
    python clamp3_index.py search "a lively Irish reel" INDEX
    python clamp3_index.py search QUERY.mid INDEX --modality audio --top_k 20 --json found.jsonl
(INDEX may come first, too.) More of what a search takes, such as --also, --without and --where: docs/search.md.
Find the bars, seconds or lines in files, not only the files, in an index that was built with --passages:
    python clamp3_index.py build INDEX FOLDER --passages
    python clamp3_index.py search QUERY.abc INDEX --passages --per_file 1
See what is in it; forget files or folders, or all files that are no longer there:
    python clamp3_index.py info INDEX
    python clamp3_index.py remove INDEX FOLDER/old
    python clamp3_index.py remove INDEX --missing
See which files are there several times, byte by byte, note by note, in other versions and keys, or nearly:
    python clamp3_index.py duplicates INDEX --csv duplicates.csv
Look whether all of it is as it was written, and mend what is not:
    python clamp3_index.py check INDEX
    python clamp3_index.py repair INDEX
--help tells the rest; the code is in clamp3/cli/commands/index.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("index")
