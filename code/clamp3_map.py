"""Draw a collection as a map: what is alike lies close together; a picture, and a page that engraves and plays.

Of an index, with the labels that it has, or of a folder of files of any kinds that clamp3_embd.py takes:
    python clamp3_map.py INDEX --colour composer
    python clamp3_map.py FOLDER --colour folder --output tunes
Of features, with the music that they were made of, so that it can be engraved and played:
    python clamp3_map.py FEATURES --music FOLDER
With what a CSV file says of them, in a column "file" (relative to the folder that is drawn) and any others:
    python clamp3_map.py FOLDER --metadata tunes.csv --colour metre
With what some queries find in it, texts or files, as lists from which one goes to the pieces:
    python clamp3_map.py INDEX --queries "Irish reel" "a slow air" recording.wav
--help tells the rest; the code is in clamp3/cli/commands/map.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("map")
