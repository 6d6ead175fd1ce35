"""Fine-tune the small model on music that it has not seen, Bach's chorales, and show what that is worth.

    make finetune-demo
    python examples/finetune.py --work finetune-demo
It runs the commands of docs/finetune.md twice, with all weights and with adapters (LoRA), and prints how well texts
find chorales that no training has seen, before and after, with a bootstrap interval. It takes some five minutes on two
CPU cores, without a network. A run that is stopped is taken up by the same command.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from clamp3.formats.abc import interleave
from clamp3.formats.musicxml import musicxml_to_abc
from corpus import corpus_folder, read_key

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def chorales() -> Iterator[tuple[str, str, str, str]]:
    """Name, interleaved ABC, title and description of Bach's chorales in music21's corpus that its own list names."""
    from music21.corpus.chorales import ChoraleListRKBWV

    titles = {bwv: entry["title"].replace("’", "'") for bwv, entry in ChoraleListRKBWV().byBWV.items()}
    for path in sorted(corpus_folder().joinpath("bach").glob("*.mxl")):
        if title := titles.get(path.stem.removeprefix("bwv")):
            abc = interleave(musicxml_to_abc(path, lambda _remark: None))
            yield path.stem, abc, title, describe(abc, title)


def describe(abc: str, title: str) -> str:
    """What a catalogue would say of a chorale, from its title and its notation."""
    fields = dict(re.findall(r"^([MK]):(\S+)", abc, re.MULTILINE))
    bars = [line for line in abc.split("\n") if line.startswith("[V:1]")]
    voices = len(re.findall(r"^V:", abc, re.MULTILINE))
    phrases = "".join(bars).count("!fermata!")
    parts = [f"{title}. Chorale in {fields['M']} in {read_key(fields['K'], False)}", f"{number(voices)} voices"]
    parts += [f"{number(phrases)} phrases"] * (phrases > 0) + [f"{len(bars)} bars"]
    return ", ".join(parts) + ". Johann Sebastian Bach."


def number(count: int) -> str:
    return WORDS[count] if count < len(WORDS) else str(count)


def write(folder: Path) -> None:
    """The chorales in `folder`/music, and texts.csv."""
    folder.joinpath("music").mkdir(parents=True, exist_ok=True)
    with open(folder / "texts.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "text", "group"))
        for name, abc, title, text in chorales():
            folder.joinpath("music", f"{name}.abc").write_text(abc, encoding="utf-8")
            rows.writerow((name, text, title))
