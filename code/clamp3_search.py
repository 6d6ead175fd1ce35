"""Search a folder or an index: the files closest to a text, or to a file of any kind.

By a text in any language, in quotes:
    python clamp3_search.py "a lively Irish reel" REF_DIR
By a file, for the 20 closest, as JSON lines too:
    python clamp3_search.py QUERY.mid REF_DIR --top_k 20 --json found.jsonl
By a picture, which a network of its own puts into words first (docs/retrieval.md):
    python clamp3_search.py PICTURE.jpg REF_DIR --captioner NAME_OR_FOLDER
With the small model that comes with the code, which needs no download:
    python clamp3_search.py "a slow air" REF_DIR --variant tiny
With the bars and the words that make it so, by their shares of the cosine (docs/search.md):
    python clamp3_search.py "a lively Irish reel" REF_DIR --explain
Other files like one of them, or what several queries have in common; docs/search.md tells more:
    python clamp3_search.py REF_DIR/tune.abc REF_DIR --not_itself
    python clamp3_search.py "a slow air" REF_DIR --also tune.abc --without "a waltz" --diverse --csv found.csv
QUERY and the files under REF_DIR may be of any kinds that clamp3_embd.py takes: they are embedded on the way, and
those that cannot be read are listed (exit code 1). For large or often searched folders make features first:
    python clamp3_embd.py REF_DIR FEATURES --get_global
    python clamp3_search.py "a lively Irish reel" FEATURES
or an index, which clamp3_index.py builds and keeps up to date:
    python clamp3_search.py "a lively Irish reel" INDEX
A .npy of the shape (1, 768) is such a feature; one of (…, T, 768) is MERT features, and is embedded. The hidden
states that clamp3_embd.py and extract_clamp3.py write without --get_global are neither, but look like MERT features.
--help tells the rest; the code is in clamp3/cli/commands/search.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("search")
