"""What the checks of a model feed it: folk tunes in the public domain with descriptions, texts in ten scripts, sounds.

The tunes are traditional, and were written down for this module from memory, the first strain of each.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sample:
    """A tune as one voice of ABC, and what one would say of it."""

    description: str
    abc: str


def _tune(description: str, metre: str, key: str, *lines: str) -> Sample:
    fields = f"%%score 1\nL:1/8\nM:{metre}\nK:{key}\nV:1 treble\n"
    bars = [f"{bar.strip()}|" for line in lines for bar in line.split("|") if bar.strip()]
    return Sample(description, fields + "".join(f"[V:1]{bar}\n" for bar in bars))


TUNES = (
    _tune(
        "The Kesh Jig. Irish jig from Ireland in 6/8 in G major.",
        *("6/8", "G", "G3 GAB|A3 ABd|edd gdd|edB dBA|GAG GAB|ABA ABd|edd gdd|BAF G3"),
    ),
    _tune(
        "The Irish Washerwoman. Irish jig from Ireland in 6/8 in G major.",
        *("6/8", "G", "BGG DGG|BGB dcB|cAA EAA|cAc edc|BGG DGG|BGB dcB|cBc Adc|BGG G3"),
    ),
    _tune(
        "Drowsy Maggie. Irish reel from Ireland in 4/4 in E Dorian.",
        *("4/4", "EDor", "E2BE dEBE|E2BE AFDF|E2BE dEBE|BABc dAFD|d2fd c2ec|defg afge|d2fd c2ec|BABc dAFA"),
    ),
    _tune(
        "The Harvest Home. Hornpipe in 4/4 in D major.",
        *("4/4", "D", "DAFA DAFA|defe dcBA|eA (3AAA fA (3AAA|edcB AGFE|DAFA DAFA|defe dcBA|eA (3AAA fAed|d2 d2 d4"),
    ),
    _tune(
        "Frère Jacques. French children's song from France in 4/4 in F major.",
        *("4/4", "F", "F2G2A2F2|F2G2A2F2|A2B2c4|A2B2c4|cdcB A2F2|cdcB A2F2|F2C2F4|F2C2F4"),
    ),
    _tune(
        "Mo Li Hua, Jasmine Flower. Chinese folk song from China, xiaodiao, in 2/4 in G major.",
        *("2/4", "G", "BBdg|ged2|d2ed|d4|BBdg|ged2|d2ed|d4|d2d2|d2Bd|e2e2|d4|B2AB|d2BA|G2GA|G4"),
    ),
    _tune(
        "Alle Vögel sind schon da. German children's song from Germany in 4/4 in C major.",
        *(
            "4/4",
            "C",
            "C3E G2c2|A2cA G4|F3G E2C2|D4 C4|G2G2F2F2|E2GE D4|G2G2F2F2|E2GE D4|C3E G2c2|A2cA G4|F3G E2C2|D4 C4",
        ),
    ),
    _tune(
        "O du lieber Augustin. German waltz, dance song from Germany in 3/4 in C major.",
        *("3/4", "C", "G3 A GF|E2 C2 C2|D2 G,2 G,2|E2 C2 C2|G3 A GF|E2 C2 C2|D2 G,2 G,2|C6"),
    ),
    _tune(
        "Greensleeves. English slow air from England in 6/8 in A minor.",
        *(
            "6/8",
            "Am",
            "A2B|c2d e3/2f/2e|d2B G3/2A/2B|c2A A3/2^G/2A|B2^G E2A|c2d e3/2f/2e|d2B G3/2A/2B|c3/2B/2A ^G3/2^F/2G|A3 A3",
        ),
    ),
    _tune(
        "Auld Lang Syne. Scottish strathspey, farewell song from Scotland in 4/4 in F major.",
        *("4/4", "F", "F3F F2A2|G3F G2A2|F3F A2c2|d6 d2|c3A A2F2|G3F G2A2|F3D D2C2|F6"),
    ),
    _tune(
        "Amazing Grace. American religious song, hymn from America in 3/4 in G major.",
        *("3/4", "G", "D2|G4 BG|B4 A2|G4 E2|D4 D2|G4 BG|B4 A2|d6|d4 B2|d4 BG|B4 A2|G4 E2|D4 D2|G4 BG|B4 A2|G6"),
    ),
    _tune(
        "Korobeiniki. Russian folk song, quick dance from Russia in 4/4 in A minor.",
        *("4/4", "Am", "e2Bc d2cB|A2Ac e2dc|B3c d2e2|c2A2 A4|d3f a2gf|e3c e2dc|B2Bc d2e2|c2A2 A4"),
    ),
)

# One sentence or less in each of ten scripts, about slow folk songs.
TEXTS = {
    "Latin": "a lively reel from Ireland",
    "Chinese": "来自中国的慢速民歌",
    "Japanese": "日本のゆっくりした民謡",
    "Korean": "한국의 느린 민요",
    "Cyrillic": "медленная народная песня из России",
    "Greek": "αργό δημοτικό τραγούδι από την Ελλάδα",
    "Arabic": "أغنية شعبية بطيئة من مصر",
    "Hebrew": "שיר עם איטי מישראל",
    "Devanagari": "भारत का धीमा लोकगीत",
    "Thai": "เพลงพื้นบ้านช้าจากประเทศไทย",
}

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))  # major, minor, pentatonic
PIECES = 12


def _melody(piece: int) -> list[int]:
    """MIDI pitches: eight notes up and down a scale, in steps that differ from piece to piece."""
    scale = SCALES[piece % len(SCALES)]
    steps = [(piece + 1) * (place if place < 5 else 8 - place) % 8 for place in range(8)]
    return [57 + piece + 12 * (step // len(scale)) + scale[step % len(scale)] for step in steps]


def mtf(piece: int) -> str:
    """A melody as MTF, in a tempo and on an instrument of its own."""
    lines = ["ticks_per_beat 480", f"set_tempo {400_000 + 50_000 * piece} 0", f"program_change 0 0 {7 * piece}"]
    for pitch in _melody(piece):
        lines += [f"note_on 0 0 {pitch} 80", f"note_off {120 * (1 + piece % 4)} 0 {pitch} 64"]
    return "\n".join([*lines, "end_of_track 0"])


def sound(piece: int, rate: int, seconds: float = 1.0) -> "np.ndarray":
    """A melody as a waveform (samples,): plucked tones with overtones, in a tempo of its own."""
    import numpy as np

    time = np.arange(int(seconds * rate)) / rate
    length = 0.2 + 0.05 * (piece % 4)  # seconds of a note
    note, since = np.divmod(time, length)
    pitches = np.array(_melody(piece))[note.astype(int) % 8]
    phase = 2 * np.pi * 440 * 2 ** ((pitches - 69) / 12) * since
    overtones = sum(np.sin(number * phase) / number ** (1 + piece / PIECES) for number in range(1, 6))
    return (0.3 * np.exp(-4 * since) * overtones).astype(np.float32)


def frames(piece: int, width: int, length: int = 20) -> "np.ndarray":
    """Audio features (1, length, width) in place of real ones: waves over time, each number with its own."""
    import numpy as np

    number, frame = np.arange(width), np.arange(length)[:, None]
    waves = np.sin(0.7 * piece + number * (piece + 1) * 0.37) + 0.5 * np.sin(frame * (0.2 + 0.1 * piece) + number)
    return waves[None].astype(np.float32)
