"""MusicXML of each kind that public test suites know, as small scores of our own: the notes that go in come out.

music21 says what a score sounds like, and a reader that knows nothing of the converters what the ABC does. Where
music21 itself is at a loss, the notes stand beside the score. Then the other way round: whatever element of the schema
is put into a good score, its notes stay.
"""

# ruff: noqa: E501  (the examples read best on one line)
import os
import random
from copy import deepcopy
from fractions import Fraction
from functools import cache
from xml.etree import ElementTree

import pytest

from clamp3.formats.abc import interleave
from clamp3.formats.musicxml import musicxml_to_abc
from clamp3.formats.mxl import extracted
from corpus import corpus_folder
from musicxml_schema import children
from score_readers import abc_notes, musicxml_notes

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning"),
]
DIVISIONS = 24  # of a quarter
TYPES = {96: "whole", 48: "half", 24: "quarter", 12: "eighth", 6: "16th", 3: "32nd"}
ALTERS = {"": "", "#": "1", "x": "2", "b": "-1", "bb": "-2", "n": "0", "+": "0.5", "-": "-0.5"}
CLEF = "<clef><sign>G</sign><line>2</line></clef>"
KEY = "<key><fifths>0</fifths></key>"


def element(tag: str, text: object = "", **attributes: str) -> str:
    said = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f"<{tag}{said}>{text}</{tag}>"


def note(pitch: str, length: int = 24, more: str = "", head: str = "", voice: object = 1, **attributes: str) -> str:
    """A note such as "F#4", or a rest, of so many divisions; `head` comes before its pitch, `more` at its end."""
    step, alter, octave = pitch[0], pitch[1:-1], pitch[-1]
    altered = f"<alter>{ALTERS[alter]}</alter>" if alter in ALTERS and alter else ""
    said = f"<step>{step}</step>{altered}<octave>{octave}</octave>"
    sound = "<rest/>" if pitch == "rest" else f"<pitch>{said}</pitch>"
    duration = f"<duration>{length}</duration>" if length and "<grace" not in head else ""
    kind = f"<type>{TYPES[length]}</type>" if length in TYPES and "<type>" not in more else ""
    spoken = f"<voice>{voice}</voice>" if voice else ""
    return element("note", f"{head}{sound}{duration}{spoken}{kind}{more}", **attributes)


def notes(pitches: str, length: int = 24, more: str = "", **options) -> str:
    return "".join(note(pitch, length, more, **options) for pitch in pitches.split())


def chord(pitches: str, length: int = 24, more: str = "", **options) -> str:
    first, *others = pitches.split()
    return note(first, length, more, **options) + "".join(
        note(pitch, length, more, head="<chord/>", **options) for pitch in others
    )


def grace(pitches: str, **attributes: str) -> str:
    return "".join(note(pitch, 0, head=element("grace", **attributes)) for pitch in pitches.split())


def tuplet(pitches: str, actual: int, normal: int, length: int, marks: bool = True) -> str:
    """Notes in the time of others; `length` is that of each."""
    ratio = f"<time-modification><actual-notes>{actual}</actual-notes><normal-notes>{normal}</normal-notes>"
    names = pitches.split()
    written = []
    for index, pitch in enumerate(names):
        mark = "start" if index == 0 else "stop" if index == len(names) - 1 else ""
        bracket = f'<notations><tuplet type="{mark}"/></notations>' if mark and marks else ""
        written.append(note(pitch, length, f"<type>eighth</type>{ratio}</time-modification>{bracket}"))
    return "".join(written)


def backup(length: int) -> str:
    return f"<backup><duration>{length}</duration></backup>"


def forward(length: int) -> str:
    return f"<forward><duration>{length}</duration></forward>"


def attributes(content: str) -> str:
    return f"<attributes>{content}</attributes>"


def metre(beats: object = 4, unit: object = 4, **said: str) -> str:
    return element("time", f"<beats>{beats}</beats><beat-type>{unit}</beat-type>", **said)


def direction(kind: str, **said: str) -> str:
    return element("direction", f"<direction-type>{kind}</direction-type>", **said)


def part(*measures: str, head: str = KEY + metre() + CLEF, divisions: int = DIVISIONS) -> str:
    first = attributes(f"<divisions>{divisions}</divisions>{head}")
    return "".join(
        element("measure", (first if number == 1 else "") + content, number=str(number))
        for number, content in enumerate(measures, 1)
    )


def score(*parts: str, listed: str | None = None, before: str = "") -> bytes:
    names = [f"P{number}" for number in range(1, len(parts) + 1)]
    if listed is None:
        listed = "".join(element("score-part", f"<part-name>{name}</part-name>", id=name) for name in names)
    bodies = "".join(element("part", body, id=name) for name, body in zip(names, parts, strict=True))
    return f'<score-partwise version="4.0">{before}<part-list>{listed}</part-list>{bodies}</score-partwise>'.encode()


def one(*measures: str, **options) -> bytes:
    return score(part(*measures, **options))


def marked(mark: str) -> str:
    """A note with `mark` among its notations, and one after it."""
    return note("C5", more=f"<notations>{mark}</notations>") + note("D5")


def notated(*marks: str) -> bytes:
    return one(*("".join(marked(mark) for mark in marks[at : at + 2]) for at in range(0, len(marks), 2)))


UP = notes("C5 D5 E5 F5")
DOWN = notes("F5 E5 D5 C5")
STOP = '<tie type="stop"/><notations><tied type="stop"/></notations>'
START = '<tie type="start"/><notations><tied type="start"/></notations>'
STAFF_1, STAFF_2 = "<staff>1</staff>", "<staff>2</staff>"
PIANO = (
    KEY
    + metre()
    + "<staves>2</staves>"
    + "".join(
        f'<clef number="{number}"><sign>{sign}</sign><line>{line}</line></clef>'
        for number, sign, line in ((1, "G", 2), (2, "F", 4))
    )
)
LYRIC = "<lyric{}><syllabic>single</syllabic><text>{}</text></lyric>"
EIGHTH = "<type>eighth</type>"

KINDS: dict[str, bytes] = {
    # ---- 01 pitches
    "01 pitches": one(*(notes(" ".join(f"{step}{octave}" for step in "CDEF")) for octave in range(10))),
    "01 accidentals": one(*(notes(f"C{sign}5 E{sign}4 F{sign}5 B{sign}4") for sign in ("#", "b", "n", "x", "bb", ""))),
    "01 accidentals in a key": one(
        notes("F#5 F5 F#5 Fn5"), notes("C#5 C5 Fx5 F#4"), head="<key><fifths>2</fifths></key>" + metre() + CLEF
    ),
    "01 no voice": one(notes("C5 D5 E5 F5", voice="")),
    "01 microtones": one(notes("C+5 C5 D-5 D-5"), notes("F+5 F#5 Fb5 F5")),
    "01 parenthesized accidentals": one(
        note("C#5", more='<accidental parentheses="yes" cautionary="yes">sharp</accidental>') + notes("D5 C#5 C5")
    ),
    # ---- 02 rests
    "02 rests": one(notes("rest rest C5 rest"), notes("rest rest", 12) + note("D5", 48) + note("rest"), UP),
    "02 pitched rests": one(
        UP.replace(
            "<pitch><step>D</step><octave>5</octave></pitch>",
            "<rest><display-step>B</display-step><display-octave>4</display-octave></rest>",
        )
    ),
    "02 rests of several bars": one(
        UP,
        attributes("<measure-style><multiple-rest>3</multiple-rest></measure-style>") + note("rest", 96),
        note("rest", 96).replace("<rest/>", '<rest measure="yes"/>'),
        note("rest", 96, "<type>whole</type>"),
        DOWN,
    ),
    "02 bar rests in other metres": one(
        note("rest", 96).replace("<rest/>", '<rest measure="yes"/>'),
        attributes(metre(3, 4)) + note("rest", 72, "<type>whole</type>").replace("<rest/>", '<rest measure="yes"/>'),
        attributes(metre(12, 8)) + note("rest", 144),
        attributes(metre(2, 4)) + notes("C5 D5"),
    ),
    "02 no type": one(*(UP.replace("<type>quarter</type>", "") for _ in range(2)), note("rest", 96), note("C5", 96)),
    # ---- 03 rhythm
    "03 durations": one(
        *(notes("C5 D5", length) for length in (96, 48, 24, 12, 6, 3)),
        note("C5", 192, "<type>breve</type>"),
        note("C5", 384, "<type>long</type>"),
    ),
    "03 very short": one(
        *(
            note("C5", 512 // 2**power, f"<type>{name}</type>") * 2 + note("D5", 512 - 1024 // 2**power, "<type/>")
            for power, name in enumerate(("64th", "128th", "256th", "512th", "1024th"), 4)
        ),
        divisions=512,
    ),
    "03 dots": one(
        note("C5", 36, "<type>quarter</type><dot/>") + note("D5", 12) + note("E5", 42, "<dot/><dot/>") + note("F5", 6),
        notes("C5 D5", 9, EIGHTH) + notes("E5 F5", 3) + note("G5", 72, "<type>half</type><dot/>"),
        note("C5", 45, "<type/>") + note("D5", 3) + note("E5", 48),
    ),
    "03 backup": one(
        UP + backup(96) + notes("C4 D4", 48, voice=2), UP + backup(48) + notes("C4 D4", voice=2) + backup(96), DOWN
    ),
    "03 changes of divisions": one(
        UP,
        attributes("<divisions>8</divisions>") + notes("C5 D5 E5 F5", 8),
        notes("C5 D5", 8) + attributes("<divisions>1</divisions>") + notes("E5 F5", 1),
    ),
    # ---- 11 metres
    "11 metres": one(
        *(
            attributes(metre(beats, unit)) + notes("C5 D5", 12)
            for beats, unit in ((2, 2), (3, 2), (2, 4), (3, 8), (9, 8), (5, 4), (7, 16))
        ),
        UP,
    ),
    "11 no metre": one(UP, DOWN, head=KEY + CLEF),
    "11 compound": one(notes("C5 D5 E5 F5 G5", 12), notes("E5 F5 G5 A5 B5", 12), head=KEY + metre("3+2", 8) + CLEF),
    "11 compound of several": one(
        notes("C5 D5 E5 F5 G5", 24), head=KEY + metre("2+3", "8</beat-type><beats>5</beats><beat-type>4") + CLEF
    ),
    "11 symbols": one(UP, attributes(metre(2, 2, symbol="cut")) + DOWN, head=KEY + metre(symbol="common") + CLEF),
    "11 single number": one(notes("C5 D5 E5"), head=KEY + metre(3, 4, symbol="single-number") + CLEF),
    "11 no metre by word": one(UP + DOWN, head=KEY + "<time><senza-misura>X</senza-misura></time>" + CLEF),
    "11 interchangeable": one(
        notes("C5 D5 E5"),
        head=KEY
        + "<time><beats>3</beats><beat-type>4</beat-type><interchangeable><beats>6</beats><beat-type>8</beat-type>"
        "</interchangeable></time>" + CLEF,
    ),
    # ---- 12 clefs
    "12 clefs": one(
        *(
            attributes(f"<clef><sign>{sign}</sign>{f'<line>{line}</line>' if line else ''}{octave}</clef>") + UP
            for sign, line, octave in (
                ("F", 4, ""),
                ("C", 3, ""),
                ("C", 4, ""),
                ("C", 1, ""),
                ("C", 2, ""),
                ("C", 5, ""),
                ("F", 3, ""),
                ("F", 5, ""),
                ("G", 1, ""),
                ("percussion", 0, ""),
                ("none", 0, ""),
                ("jianpu", 0, ""),
                ("G", 2, "<clef-octave-change>-1</clef-octave-change>"),
                ("F", 4, "<clef-octave-change>1</clef-octave-change>"),
                ("G", 2, "<clef-octave-change>2</clef-octave-change>"),
                ("G", 2, ""),
            )
            if sign not in ("percussion", "none", "jianpu")
        )
    ),
    "12 no clef, no key": one(UP, head=metre()),
    "12 only notes": score(
        element("measure", notes("C5 D5 E5 F5", 1).replace("<duration>1", "<duration>1"), number="1")
    ),
    # ---- 13 keys
    "13 keys": one(
        *(
            attributes(f"<key><fifths>{fifths}</fifths><mode>{mode}</mode></key>") + notes("F5 B4 F#5 Bb4")
            for fifths in range(-7, 8)
            for mode in ("major", "minor")
        )
    ),
    "13 modes": one(
        *(
            attributes(f"<key><fifths>2</fifths><mode>{mode}</mode></key>") + notes("F5 C5 F#5 C#5")
            for mode in ("ionian", "dorian", "phrygian", "lydian", "mixolydian", "aeolian", "locrian", "none")
        )
    ),
    "13 other keys": one(
        notes("F#5 Bb4 F5 B4"),
        head="<key><key-step>F</key-step><key-alter>1</key-alter><key-step>B</key-step><key-alter>-1</key-alter></key>"
        + metre()
        + CLEF,
    ),
    "13 keys beyond seven": one(notes("Cx5 F#5 B#4 C5"), head="<key><fifths>9</fifths></key>" + metre() + CLEF),
    "13 cancelled keys": one(UP, attributes('<key><cancel location="left">3</cancel><fifths>-2</fifths></key>') + UP),
    # ---- 14 staff
    "14 staff lines": one(
        UP,
        *(
            attributes(f"<staff-details><staff-lines>{lines}</staff-lines></staff-details>") + UP
            for lines in (1, 4, 6)
        ),
    ),
    # ---- 21 chords
    "21 chords": one(chord("C5 E5") + chord("D5 F5 A5") + chord("C5 E5 G5 C6", 48)),
    "21 chords of one length with ties": one(chord("C5 E5", 96, START), chord("C5 E5", 48, STOP) + note("D5", 48)),
    "21 chords in an upbeat": one(chord("C5 E5"), chord("D5 F5", 96), head=KEY + metre() + CLEF),
    # ---- 22 heads
    "22 heads": one(
        *(
            note("C5", more=element("notehead", name, filled="no", parentheses="yes")) + note("D5", 72, "<type/>")
            for name in ("slash", "triangle", "diamond", "square", "cross", "x", "circle-x", "none", "do", "other")
        )
    ),
    "22 slashes": one(
        attributes('<measure-style><slash type="start" use-stems="yes"/></measure-style>') + UP,
        attributes('<measure-style><slash type="stop"/></measure-style>') + UP,
    ),
    "22 no stems": one(notes("C5 D5 E5 F5", more="<stem>none</stem>")),
    # ---- 23 tuplets
    "23 tuplets": one(
        tuplet("C5 D5 E5", 3, 2, 8) + tuplet("C5 D5 E5", 3, 2, 8) + notes("F5 G5"),
        tuplet("C5 D5 E5 F5", 4, 3, 9) + note("C5", 60, "<type/>"),
        tuplet("C5 D5", 2, 3, 18) + tuplet("C5 D5 E5 F5 G5 A5", 6, 4, 8) + note("E5", 12),
    ),
    "23 tuplets without brackets": one(
        tuplet("C5 D5 E5", 3, 2, 8, False) + tuplet("C5 D5 E5 F5", 4, 3, 9, False) + note("F5", 36, "<type/>"),
        tuplet("C5 D5 E5 rest D5 E5", 3, 2, 8, False) + notes("C5 D5"),
    ),
    "23 tuplets that are not ended": one(
        (tuplet("C5 D5 E5", 3, 2, 8) * 4).replace('<notations><tuplet type="stop"/></notations>', ""), UP
    ),
    "23 tuplets in tuplets": one(
        note(
            "C5",
            16,
            "<type>quarter</type><time-modification><actual-notes>3</actual-notes><normal-notes>2"
            '</normal-notes></time-modification><notations><tuplet type="start" number="1"/></notations>',
        )
        + tuplet("D5 E5 F5 G5 A5", 15, 4, 5).replace('type="start"', 'type="start" number="2"')
        + note(
            "G5",
            7,
            "<type/><time-modification><actual-notes>3</actual-notes><normal-notes>2</normal-notes>"
            '</time-modification><notations><tuplet type="stop" number="1"/></notations>',
        )
        + note("F5", 48)
    ),
    "23 tuplets of five and more": one(
        tuplet("C5 D5 E5 F5 G5", 5, 4, 24) + note("C5", 120, "<type/>"),
        tuplet("C5 D5 E5 F5 G5 A5 B5", 7, 8, 24) + note("C5", 72, "<type/>"),
        tuplet("C5 " * 11, 11, 8, 21) + note("C5", 9, "<type/>"),
        divisions=30,
    ),
    "23 durations without tuplets": one(
        notes("C5 D5 E5", 8, "<type/>") + notes("C5 D5 E5 F5 G5 A5", 4, "<type/>") + note("C5", 48)
    ),
    "23 tremolo": one(
        notes(
            "C5 E5",
            24,
            "<type>half</type><time-modification><actual-notes>2</actual-notes><normal-notes>1"
            "</normal-notes></time-modification>",
        )
        .replace(
            "</note>", '<notations><ornaments><tremolo type="start">3</tremolo></ornaments></notations></note>', 1
        )
        .replace(
            "</time-modification></note>",
            '</time-modification><notations><ornaments><tremolo type="stop">3'
            "</tremolo></ornaments></notations></note>",
            1,
        )
        + note("G5", 48, "<notations><ornaments><tremolo>2</tremolo></ornaments></notations>")
    ),
    # ---- 24 grace notes
    "24 grace notes": one(
        grace("D5", slash="yes") + note("C5", 48) + grace("E5 F5") + note("D5", 48),
        note("C5", 72, "<type/>") + grace("D5 E5") + note("C5"),
    ),
    "24 grace chords": one(note("D5", 0, head="<grace/>") + note("F5", 0, head="<grace/><chord/>") + UP),
    "24 grace notes at the end of a bar": one(UP + grace("G5"), DOWN + grace("C5 D5")),
    "24 grace notes in two voices": one(
        UP + grace("G5") + backup(96) + grace("A4").replace("<voice>1", "<voice>2") + notes("C4 D4", 48, voice=2), DOWN
    ),
    "24 stolen time": one(grace("D5", steal_time_previous="20") + UP, grace("D5", make_time="12") + DOWN),
    # ---- 31 directions
    "31 directions": one(
        *(
            direction(f"<{kind}/>") + UP
            for kind in (
                "segno",
                "coda",
                "damp",
                "damp-all",
                "eyeglasses",
                "string-mute type='on'",
                "image source='a'",
            )
        ),
        *(
            direction(f"<dynamics><{name}/></dynamics>") + UP
            for name in "p f mp mf sfz fp rf ffffff other-dynamics".split()
        ),
        direction("<words>Allegro</words>") + direction("<rehearsal>A</rehearsal>") + UP,
        *(
            direction(f'<pedal type="{kind}"/>') + notes("C5 D5", 48)
            for kind in "start change sostenuto resume stop".split()
        ),
        *(
            direction(f'<{kind} type="start"/>') + UP + direction(f'<{kind} type="stop"/>')
            for kind in ("dashes", "bracket")
        ),
        direction(
            "<harp-pedals><pedal-tuning><pedal-step>D</pedal-step><pedal-alter>0</pedal-alter></pedal-tuning></harp-pedals>"
        )
        + UP,
        direction(
            "<scordatura><accord string='1'><tuning-step>C</tuning-step><tuning-octave>3</tuning-octave></accord></scordatura>"
        )
        + UP,
    ),
    "31 metronome marks": one(
        *(
            direction(f"<metronome>{mark}</metronome>") + UP
            for mark in (
                "<beat-unit>quarter</beat-unit><beat-unit-dot/><per-minute>100</per-minute>",
                "<beat-unit>eighth</beat-unit><beat-unit>quarter</beat-unit>",
                "<beat-unit>long</beat-unit><per-minute>ca. 60-72</per-minute>",
                "<beat-unit>quarter</beat-unit><per-minute/>",
                "<metronome-note><metronome-type>quarter</metronome-type></metronome-note>",
            )
        )
    ),
    # ---- 32 notations
    "32 notations": notated(
        "<fermata/>",
        '<fermata type="inverted">square</fermata>',
        "<arpeggiate/>",
        '<non-arpeggiate type="top"/>',
        "<ornaments><trill-mark/><wavy-line type='start'/></ornaments>",
        "<ornaments><wavy-line type='stop'/></ornaments>",
        *(
            f"<ornaments><{name}/></ornaments>"
            for name in "turn delayed-turn inverted-turn vertical-turn shake mordent inverted-mordent schleifer haydn".split()
        ),
        "<ornaments><tremolo>3</tremolo></ornaments>",
        "<ornaments><tremolo>0</tremolo></ornaments>",
        *(
            f"<articulations><{name}/></articulations>"
            for name in "accent strong-accent staccato tenuto detached-legato staccatissimo spiccato scoop plop doit falloff breath-mark "
            "caesura stress unstress soft-accent other-articulation".split()
        ),
        *(
            f"<technical><{name}/></technical>"
            for name in "up-bow down-bow harmonic open-string thumb-position pluck double-tongue triple-tongue stopped snap-pizzicato "
            "heel toe fingernails brass-bend flip smear open half-muted golpe other-technical".split()
        ),
        "<technical><fingering>1</fingering><fingering>2</fingering></technical>",
        "<technical><string>2</string><fret>3</fret></technical>",
        "<technical><bend><bend-alter>1</bend-alter></bend></technical>",
        '<technical><hammer-on type="start">H</hammer-on></technical>',
        "<dynamics><f/></dynamics>",
        "<accidental-mark>sharp</accidental-mark>",
        "<other-notation type='single'/>",
    ),
    "32 several notations": one(
        note(
            "C5",
            more="<notations><fermata/></notations><notations><articulations><staccato/><accent/></articulations>"
            "<ornaments><turn/></ornaments></notations>",
        )
        + notes("D5 E5 F5")
    ),
    "32 arpeggios": one(chord("C4 E4 G4 C5", 96, "<notations><arpeggiate direction='up'/></notations>")),
    # ---- 33 spanners
    "33 spanners": one(
        *(
            note("C5", more=f"<notations>{first}</notations>")
            + notes("D5 E5")
            + note("F5", more=f"<notations>{last}</notations>")
            for first, last in (
                ('<slur type="start"/>', '<slur type="stop"/>'),
                ('<slur type="stop"/>', '<slur type="start"/>'),
                ('<slur type="start" number="1"/><slur type="start" number="2"/>', '<slur type="stop" number="2"/>'),
                ('<glissando type="start" number="1"/>', '<glissando type="stop" number="1"/>'),
                ('<slide type="start" line-type="wavy"/>', '<slide type="stop"/>'),
            )
        )
    ),
    "33 hairpins": one(
        direction('<wedge type="crescendo"/>') + UP + direction('<wedge type="stop"/>'),
        direction('<wedge type="stop"/>') + UP + direction('<wedge type="continue"/>'),
        direction('<wedge type="diminuendo" number="2"/>') + UP,
    ),
    "33 ties": one(
        note("C5", 96, START),
        note("C5", 24, STOP.replace("</notations>", "") + '<tied type="start"/></notations><tie type="start"/>')
        + note("C5", 72, f"<type/>{STOP}"),
        UP,
    ),
    "33 ties with accidentals": one(note("F#5", 96, START), note("F#5", 48, STOP) + note("F5", 48)),
    "33 ties that nothing ends": one(note("C5", 48, START) + note("D5", 48), note("F#5", 96, START), note("F5", 96)),
    "33 octave shifts": one(
        *(
            direction(f'<octave-shift type="{kind}" size="{size}"/>')
            + UP
            + direction(f'<octave-shift type="stop" size="{size}"/>')
            for kind, size in (("up", 8), ("down", 8), ("up", 15), ("down", 22), ("down", 27), ("up", 0))
        )
    ),
    "33 slurs on chords": one(
        chord("C5 E5", 48).replace("</note>", '<notations><slur type="start"/></notations></note>', 1)
        + chord("D5 F5", 48).replace("</note>", '<notations><slur type="stop"/></notations></note>', 1)
    ),
    # ---- 41 parts
    "41 parts": score(part(UP), part(DOWN), part(note("rest", 96)), part(notes("C3 D3", 48))),
    "41 many parts": score(*(part(UP if number % 2 else DOWN) for number in range(18))),
    "41 parts in another order": score(
        part(UP),
        part(DOWN),
        listed="<score-part id='P2'><part-name/></score-part><score-part id='P1'><part-name/></score-part>",
    ),
    "41 groups": score(
        part(UP),
        part(DOWN),
        part(UP),
        listed="<part-group number='1' type='start'><group-symbol>bracket</group-symbol><group-barline>yes</group-barline>"
        "</part-group><score-part id='P1'><part-name>a</part-name></score-part><part-group number='2' type='start'>"
        "<group-symbol>brace</group-symbol></part-group><score-part id='P2'><part-name>b\nc</part-name></score-part>"
        "<part-group number='1' type='stop'/><score-part id='P3'><part-name>d</part-name></score-part>"
        "<part-group number='2' type='stop'/>",
    ),
    "41 parts that the list lacks": score(
        part(UP), part(DOWN), listed="<score-part id='P1'><part-name/></score-part>"
    ),
    "41 parts of unequal length": score(part(UP, DOWN, UP), part(DOWN)),
    # ---- 42 voices
    "42 voices with lyrics": one(
        notes("C5 D5 E5 F5", more=LYRIC.format("", "la"))
        + backup(96)
        + notes("C4 D4", 48, LYRIC.format(' number="2"', "a b"), voice=2)
    ),
    "42 clefs within a bar": one(
        notes("C4 D4") + attributes("<clef><sign>F</sign><line>4</line></clef>") + notes("E3 F3"),
        notes("C3 D3") + attributes(CLEF) + notes("C5 D5") + backup(96) + notes("C4 D4", 48, voice=2),
    ),
    "42 octave clefs within a bar": one(
        notes("C4 D4")
        + attributes("<clef><sign>G</sign><line>2</line><clef-octave-change>-1</clef-octave-change></clef>")
        + notes("E3 F3")
        + backup(96)
        + notes("C4 D4", 48, voice=2),
        notes("C3 D3") + attributes(CLEF) + notes("C5 D5") + backup(96) + notes("C4 D4", 48, voice=2),
    ),
    "42 voices with names": one(notes("C5 D5 E5 F5", voice="upper") + backup(96) + notes("C4 D4", 48, voice="lower")),
    "42 voices that overlap": one(
        note("C5", 48) + backup(24) + note("E5", 48) + note("D5"), UP + backup(96) + note("C4", 96), DOWN
    ),
    # ---- 43 staves
    "43 piano": one(
        notes("C5 D5 E5 F5", more=STAFF_1) + backup(96) + notes("C3 D3", 48, STAFF_2, voice=5),
        note("C5", 96, STAFF_1) + backup(96) + notes("C3 D3 E3 F3", more=STAFF_2, voice=5),
        head=PIANO,
    ),
    "43 staves in one voice": one(
        notes("C5 D5", more=STAFF_1) + notes("E3 F3", more=STAFF_2),
        notes("C3 D3", more=STAFF_2) + notes("E5 F5", more=STAFF_1),
        head=PIANO,
    ),
    "43 one voice for both staves": one(
        notes("C5 D5 E5 F5", more=STAFF_1) + backup(96) + notes("C3 D3", 48, STAFF_2), head=PIANO
    ),
    "43 keys of their own": one(
        notes("C5 D5 F#5 F5", more=STAFF_1) + backup(96) + notes("C3 Bb2", 48, STAFF_2, voice=5),
        head=PIANO.replace(KEY, '<key number="1"><fifths>1</fifths></key><key number="2"><fifths>-1</fifths></key>'),
    ),
    "43 a staff without notes": one(
        direction("<dynamics><p/></dynamics>").replace("</direction>", "<staff>2</staff></direction>")
        + notes("C5 D5 E5 F5", more=STAFF_1),
        head=PIANO,
    ),
    # ---- 45 repeats, 46 bars
    "45 repeats": one(
        '<barline location="left"><repeat direction="forward"/></barline>' + UP,
        '<barline location="left"><ending type="start" number="1, 2"/></barline>'
        + DOWN
        + '<barline location="right"><ending type="stop" number="1, 2"/><repeat direction="backward" times="3"/></barline>',
        '<barline location="left"><ending type="start" number="3"/></barline>'
        + UP
        + '<barline location="right"><ending type="discontinue" number="3"/></barline>',
        '<barline location="right"><repeat direction="backward"/></barline>' + UP,
        '<barline location="left"><ending type="start" number="last"/></barline>' + DOWN,
    ),
    "46 barlines": one(
        *(
            UP + f'<barline location="right"><bar-style>{style}</bar-style></barline>'
            for style in "regular dotted dashed heavy light-light light-heavy heavy-light heavy-heavy tick short none".split()
        )
    ),
    "46 barlines within a bar": one(
        notes("C5 D5") + '<barline location="middle"><bar-style>dotted</bar-style></barline>' + notes("E5 F5"), UP
    ),
    "46 a voice that starts late": one(UP + backup(48) + notes("C4 D4", voice=2), UP),
    "46 a bar that ends early": one(UP, notes("C5 D5").replace("</note>", "</note>"), forward(24) + note("C5"), UP),
    "46 empty bars": score(part(UP, "", "", DOWN), part("", UP, "", DOWN)),
    "46 upbeats": score(part(note("C5"), UP), part(note("C4"), DOWN)),
    # ---- 51 to 99
    "51 header": score(
        part(UP),
        before=(
            "<work><work-number>1&#10;2</work-number><work-title>A &amp; B\n|: C</work-title></work><movement-number>1</movement-number>"
            "<movement-title>M\n|:</movement-title><identification><creator type='composer'>X\nC|D</creator><rights>(c)\nE|F</rights>"
            "<encoding><software>Sibelius 5.1</software></encoding><miscellaneous><miscellaneous-field name='a'>b</miscellaneous-field>"
            "</miscellaneous></identification><credit page='1'><credit-words>K:\nG|A</credit-words></credit>"
        ),
    ),
    "52 layout": one(
        "<print new-page='yes'><system-layout/><measure-numbering>none</measure-numbering></print>" + UP,
        "<print new-system='yes'/>" + DOWN,
    ),
    "61 lyrics": one(
        "".join(
            note(pitch, more=lyric)
            for pitch, lyric in zip(
                "C5 D5 E5 F5".split(),
                (
                    "<lyric><syllabic>begin</syllabic><text>a-b_c*d|e</text></lyric>",
                    "<lyric><syllabic>end</syllabic><text>x</text><elision>_</elision><text>y\nC|D</text><extend/></lyric>",
                    "<lyric number='chorus'><text>ö</text></lyric><lyric number='2'><humming/></lyric>",
                    "<lyric number='part1verse3'><laughing/></lyric><lyric><text>a</text><end-line/><end-paragraph/></lyric>",
                ),
                strict=True,
            )
        )
    ),
    "71 chord names": one(
        *(
            f"<harmony><root><root-step>C</root-step><root-alter>-1</root-alter></root><kind text='x\"|y'>{kind}</kind><bass><bass-step>G"
            "</bass-step></bass><degree><degree-value>9</degree-value><degree-alter>1</degree-alter><degree-type>add</degree-type>"
            f"</degree><frame><frame-strings>6</frame-strings></frame></harmony>{UP}"
            for kind in "major minor dominant major-seventh suspended-fourth half-diminished Neapolitan pedal power none other x-y-z".split()
        )
    ),
    "72 transposing instruments": score(
        part(
            UP,
            head="<key><fifths>2</fifths></key>" + metre() + CLEF + "<transpose><chromatic>-2</chromatic></transpose>",
        ),
        part(
            UP,
            head=KEY + metre() + CLEF + "<transpose><diatonic>0</diatonic><chromatic>0</chromatic><octave-change>-1"
            "</octave-change></transpose>",
        ),
    ),
    "72 changes of transposition": one(
        UP,
        attributes("<transpose><chromatic>-3</chromatic></transpose>") + UP,
        attributes("<transpose><chromatic>0</chromatic></transpose>") + DOWN,
        head=KEY + metre() + CLEF + "<transpose><chromatic>-2</chromatic></transpose>",
    ),
    "74 figured bass": one(
        "<figured-bass><figure><prefix>sharp</prefix><figure-number>6</figure-number></figure></figured-bass>" + UP
    ),
    "75 accordion": one(direction("<accordion-registration><accordion-high/></accordion-registration>") + UP),
    "81 midi": score(
        part(UP),
        listed=(
            "<score-part id='P1'><part-name>a</part-name><score-instrument id='I1'><instrument-name>x</instrument-name></score-instrument>"
            "<midi-device port='1'/><midi-instrument id='I1'><midi-channel>1</midi-channel><midi-program>x</midi-program><volume>80</volume>"
            "<pan>-70</pan></midi-instrument></score-part>"
        ),
    ),
    "99 Sibelius": score(
        part(
            notes("C5 D5 E5 F5", more=STAFF_1 + LYRIC.format(' number="part1verse1"', "a"))
            + backup(96)
            + notes("C3 D3", 48, STAFF_2),
            head=PIANO,
        ),
        before="<identification><encoding><software>Sibelius 5.1</software></encoding></identification>",
    ),
    "99 durations as fractions": one(UP.replace("<duration>24<", "<duration>24.0<"), DOWN),
}
# What music21 makes something else of: its own notes (onset, duration, pitch in MIDI's numbers).
UNUSUAL: dict[str, tuple[bytes, list[tuple]]] = {
    "21 chords of unequal lengths": (
        one(note("C5", 96) + note("E5", 48, head="<chord/>") + note("G5", 24, head="<chord/>"), UP),
        [(0, 4, 72), (0, 2, 76), (0, 1, 79), (4, 1, 72), (5, 1, 74), (6, 1, 76), (7, 1, 77)],
    ),
    "21 elements in a chord": (
        one(
            note("C5")
            + direction("<dynamics><p/></dynamics>")
            + note("E5", head="<chord/>")
            + "<print/>"
            + note("G5", head="<chord/>")
            + notes("D5 E5 F5")
        ),
        [(0, 1, 72), (0, 1, 76), (0, 1, 79), (1, 1, 74), (2, 1, 76), (3, 1, 77)],
    ),
    "22 hidden notes": (
        one(
            note("C5", print_object="no")
            + note("E5", head="<chord/>")
            + note("D5", print_object="no")
            + note("F5", 48)
        ),
        [(0, 1, 76), (2, 2, 77)],
    ),
    "24 notes of no length": (
        one(
            note("C5", 48) + "<note><pitch><step>D</step><octave>5</octave></pitch><duration>0</duration>"
            "<voice>1</voice></note>" + note("E5", 48)
        ),
        [(0, 2, 72), (2, 2, 76)],
    ),
    "42 grace notes and rests that overlap": (
        one(
            note("C5", 96) + backup(48) + note("rest", 48),
            grace("D5") + note("rest", 96) + backup(96) + note("C5", 96),
        ),
        [(0, 4, 72), (4, 4, 72)],
    ),
    "73 percussion": (
        one(
            "".join(
                f"<note><unpitched><display-step>{step}</display-step><display-octave>{octave}</display-octave></unpitched>"
                "<duration>24</duration><voice>1</voice></note>"
                for step, octave in (("C", 5), ("E", 4), ("F", 4), ("G", 5))
            ),
            head=KEY + metre() + "<clef><sign>percussion</sign></clef>",
        ),
        [(0, 1, 72), (1, 1, 64), (2, 1, 65), (3, 1, 79)],
    ),
    "74 cue notes": (
        one(note("C5", head="<cue/>") + notes("D5 E5 F5")),
        [(0, 1, 72), (1, 1, 74), (2, 1, 76), (3, 1, 77)],
    ),
    "01 triple sharps": (
        one(
            note("F#5").replace("<alter>1", "<alter>3")
            + note("E5").replace("<octave>", "<alter>-3</alter><octave>")
            + note("B4", 48).replace("<octave>", "<alter>4</alter><octave>")
        ),
        [(0, 1, 80), (1, 1, 73), (2, 2, 75)],
    ),
}


# What music21 cannot read, or reads otherwise than players do: our small reader of MusicXML says what is in them.
BEYOND_MUSIC21 = {
    "12 only notes",
    "31 directions",
    "33 hairpins",
    "41 parts that the list lacks",
    "71 chord names",
    "81 midi",
}


def from_the_first(found: list[tuple]) -> list[tuple]:
    """Notes with onsets from the first: interleaving drops bars before it."""
    return [(onset - found[0][0], *rest) for onset, *rest in found]


def by_music21(score: bytes) -> list[tuple[Fraction, Fraction, float]]:
    """The (onset, duration, pitch) of a score's notes as music21 reads them, sounding, those that ties bind as one."""
    from music21 import converter

    sounding = converter.parseData(score, format="musicxml").toSoundingPitch()
    found = []
    for one_part in sounding.parts:
        elements = (bound := one_part.stripTies()).recurse().notes
        found += [
            (Fraction(elements.currentHierarchyOffset()), Fraction(element.quarterLength), float(pitch.ps))
            for element in elements
            if "Harmony" not in element.classes and not element.duration.isGrace and bound
            for pitch in element.pitches
        ]
    return sorted(found)


@pytest.mark.parametrize("kind", [*KINDS, *UNUSUAL])
def test_the_notes_that_go_in_come_out(kind):
    source = KINDS.get(kind) or UNUSUAL[kind][0]
    if kind in UNUSUAL:
        expected = sorted(UNUSUAL[kind][1])
    else:
        expected = musicxml_notes(source) if kind in BEYOND_MUSIC21 else by_music21(source)
    abc = musicxml_to_abc(source)
    assert from_the_first(abc_notes(interleave(abc))) == from_the_first(expected)
    if kind != "46 empty bars":  # which get their rests when they are interleaved
        assert abc_notes(abc) == expected
        assert musicxml_notes(source) == expected  # the reader that is quicker than music21, of the test below


# ---------- what the notes do not need ----------

SCORES = ("bach/bwv66.6.mxl", "beethoven/opus18no1/movement3.mxl", "joplin/maple_leaf_rag.mxl")
MEASURES = 5  # that are kept of each
AT_ONCE = 10  # elements in one trial
ROUNDS = int(os.environ.get("CLAMP3_LONG_TESTS", 1))  # each puts every element of the schema into every score


@cache
def good(name: str) -> tuple[ElementTree.Element, list[tuple]]:
    """The first measures of a score, and their notes in ABC, which are those in the score."""
    root = ElementTree.fromstring(extracted((corpus_folder() / name).read_bytes()))
    for one_part in root.iterfind("part"):
        for measure in one_part.findall("measure")[MEASURES:]:
            one_part.remove(measure)
    source = ElementTree.tostring(root)
    found = abc_notes(musicxml_to_abc(source))
    assert found == musicxml_notes(source) and len(found) > 20
    return root, found


@cache
def schema() -> dict[str, list[tuple[str, str, dict[str, str], str]]]:
    """The elements of the schema by their names."""
    named: dict[str, list[tuple[str, str, dict[str, str], str]]] = {}
    for entry in children():
        named.setdefault(entry[1], []).append(entry)
    return named


def grown(entry: tuple[str, str, dict[str, str], str], rng: random.Random) -> ElementTree.Element:
    """An element with some of its children, and some of theirs."""
    _, name, said, text = entry
    made = ElementTree.Element(name, said)
    made.text = text
    below = [other for other in children() if other[0] == name]
    made.extend(grown(other, rng) for other in rng.sample(below, min(len(below), rng.randrange(4))))
    return made


def put_in(root: ElementTree.Element, entry: tuple[str, str, dict[str, str], str], rng: random.Random) -> None:
    """Put an element somewhere it may stand, within a new parent where there is none."""
    made, parent = grown(entry, rng), entry[0]
    while not (places := [root] if root.tag == parent else list(root.iter(parent))):
        above = rng.choice(schema()[parent])
        around = ElementTree.Element(parent, above[2])
        around.append(made)
        made, parent = around, above[0]
    place = rng.choice(places)
    place.insert(rng.randrange(len(place) + 1), made)


@pytest.mark.parametrize("name", SCORES)
def test_elements_of_the_schema_move_no_note(name):
    for seed in range(ROUNDS):
        rng = random.Random(f"{name} {seed}")
        entries = rng.sample(children(), len(children()))
        for at in range(0, len(entries), AT_ONCE):
            root, expected = good(name)
            root = deepcopy(root)
            for entry in entries[at : at + AT_ONCE]:
                put_in(root, entry, rng)
            source = ElementTree.tostring(root)
            assert abc_notes(musicxml_to_abc(source)) == expected, [entry[:2] for entry in entries[at : at + AT_ONCE]]
