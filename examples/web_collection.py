"""Makes the small collection that the web page starts on, code/clamp3/web/demo: old tunes, of every kind of file.

    apt-get install fluidsynth fluidr3mono-gm-soundfont
    python examples/web_collection.py
Tunes that the small model's training has not seen, from collections whose copyright has ended (O'Neill 1903, Ryan
1883, Aird 1782 to 1803), as the music21 corpus has them. Most are ABC; some are written as MusicXML, MIDI, or played
on the piano that examples/piano_notes.py takes its notes from, and for some there is a text. No tune is there twice.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np

from clamp3.formats.midi import mtf_to_midi
from clamp3.formats.musicxml import abc_to_musicxml
from corpus import Tune, folk_tunes
from descriptions import full_description
from notes import read_melody, to_mtf
from piano_notes import FONT, write_mp3

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "code" / "clamp3" / "web" / "demo"
HELD_OUT = ROOT / "code" / "clamp3" / "tiny" / "held_out.txt"
COUNTS = {"abc": 48, "musicxml": 6, "mid": 6, "mp3": 4, "txt": 6}
RATE, SECONDS, FADE = 32_000, 20, 1


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for path in OUTPUT.iterdir():
        path.unlink()
    tunes = chosen(sum(COUNTS.values()))
    for kind, count in COUNTS.items():
        for tune in [tunes.pop(0) for _ in range(count)]:
            path = OUTPUT / f"{tune.name.split('_', 2)[2]}.{kind}"
            path.write_bytes(written(tune, kind))
    print(f"{sum(COUNTS.values())} files, {sum(path.stat().st_size for path in OUTPUT.iterdir()) / 1e3:.0f} kB")


def chosen(count: int) -> list[Tune]:
    """Tunes with a rhythm or a region, spread over the collections, in an order that mixes them."""
    held_out = set(HELD_OUT.read_text(encoding="utf-8").split())
    tunes = [
        tune
        for tune in folk_tunes()
        if tune.name in held_out and "Essen" not in tune.collection and tune.rhythm and len(tune.abc) < 1500
        if not re.search("=(?![A-Ga-g])", tune.abc)  # left over from mails
    ]
    unique = list({tune.title: tune for tune in tunes}.values())
    return [unique[index] for index in np.random.default_rng(3).permutation(len(unique))[:count]]


def written(tune: Tune, kind: str) -> bytes:
    if kind == "txt":
        return full_description(tune).encode()
    if kind == "abc":
        return standard(tune).encode()
    if kind == "musicxml":
        return abc_to_musicxml(standard(tune)).encode()
    midi = mtf_to_midi(to_mtf(read_melody(tune.abc)))
    return midi if kind == "mid" else played(midi)


def standard(tune: Tune) -> str:
    """The tune in ABC as people write it: with its title, four bars on a line."""
    head, *bars = tune.abc.split("\n[V:1]")
    fields = [line for line in head.split("\n") if not line.startswith(("V:", "%%"))]
    key = next(line for line in fields if line.startswith("K:"))
    fields = ["X:1", f"T:{tune.title}", f"R:{tune.rhythm}", *[line for line in fields if line != key], key]
    bars = [bar.strip() for bar in bars]
    return "\n".join(fields + [" ".join(bars[start : start + 4]) for start in range(0, len(bars), 4)]) + "\n"


def played(midi: bytes) -> bytes:
    """The start of a piece on the piano, as MP3."""
    with tempfile.TemporaryDirectory() as folder:
        score, sound, out = Path(folder, "a.mid"), Path(folder, "a.wav"), Path(folder, "a.mp3")
        score.write_bytes(midi)
        options = ["-ni", "-q", "-g", "1", "-r", str(RATE), "-F", str(sound)]
        subprocess.run(["fluidsynth", *options, str(FONT), str(score)], check=True, capture_output=True)
        with av.open(str(sound)) as file:
            mono = np.concatenate([frame.to_ndarray().reshape(-1, 2).mean(axis=1) for frame in file.decode(audio=0)])
        mono = mono[: SECONDS * RATE] / 32768
        mono[-FADE * RATE :] *= np.linspace(1, 0, len(mono[-FADE * RATE :]))
        write_mp3(out, 0.9 / np.abs(mono).max() * mono)
        return out.read_bytes()


if __name__ == "__main__":
    main()
