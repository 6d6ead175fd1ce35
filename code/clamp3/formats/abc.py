"""ABC text: tunes of a file, and standard ABC (voice after voice) -> interleaved ABC (all voices, bar after bar)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from clamp3.errors import Note, ignore, warn
from clamp3.formats.abc_notes import SILENT, USUAL_TUPLETS, unit_length, units, with_all_accidentals, with_macros
from clamp3.formats.abc_phrases import cut

DROPPED_FIELDS = "XTCWwZ"  # what says something about the music but is no notation; the original drops the same
BODY_FIELDS = "KLMPQU"  # those that have a meaning between the notes
FIELD = re.compile(r"([A-Za-z]):(?![|:])(.*)", re.DOTALL)  # but "A:|" is a note and the end of a repeat
TEXT_BLOCK = re.compile(r"%%begin(\w+)")  # up to a line with %%end and the same word
# Quoted text, a decoration, or a "!" that is none: there are notes behind it, or the end of the line.
DECORATION = re.compile(
    r'("[^"]*")|!(?:[fp]+|[0-5]|[<>^+/-][()/]*|(?![A-Ga-gxz\d,\'/^_=<>()\[\]-]*!)[^!\s|]+)!|(!)'
)  # or a lone "!"
TUPLET = re.compile(r"\(([2-9])::(\d*)")  # without its middle number, whose colons are no barline
METRE = re.compile(r"(?:^|\[)M:\s*(?:\(?([\d+ ]{1,40}?)\)?\s*/\s*(\d{1,6})|([^\s\]]*))", re.MULTILINE)
COMPOUND_METRE = re.compile(r"^M:\s*(?:6|9|12)/", re.MULTILINE)
PROSE = re.compile(r"\b(?=[A-Za-z]*[h-wyH-RVWY])[A-Za-z]{3,}")  # words that are no notes
CONTINUED_FIELD = re.compile(r"\n\+:")
CONTINUES = re.compile(r"\\\s*(?:%.*)?$")
COMMENT = re.compile(r'("[^"]*")|(?<!\\)%.*')
# Of a line of music: quoted text and inline fields, whose barlines are none; what is to go: comments, signs that a
# line ends or goes on, backticks, and quotes and fields that nothing closes, for they would take in what follows.
CLUTTER = re.compile(r'("[^"]*"|\[[A-Za-z]:[^\]]*\])|\\%?|%.*|[$`"]|\[[A-Za-z]:\S*')
BRACKET = re.compile(r"[\[\]|]")  # what a field's value cannot hold when it comes to stand between notes; nor these:
COLONS = re.compile("::+")
INNER_BARLINE = re.compile(r"[|\[\]:]*\|[|\[\]:]*|::+|\[(?=V:)")  # or a change of voice
VOICE_SWITCH = re.compile(r"\[V:\s*([^\s\]]+)([^\]]*)\]")
BARLINE = re.compile(  # with the numbers of an ending, which may stand apart from it where a note does not follow
    r"(:*\[?\|[|\]:]*|::+)(?:(\d[\d,.:-]*)|\s+([1-9](?:[,.-][1-9])*)(?=\s+\S))?"
)
ROOM = 62  # characters of a bar in a patch, with its voice and its barline
CLOSES, OPENS = re.compile(r"[^|:]:+\|"), re.compile(r"\|:+\|")
BARLINES = ("|:", "::", ":|", "[|", "||", "|]", "|", "|]:")  # that need no other spelling; the last is MusicXML's
# The usual form of interleaved ABC: fields, then lines of bars in which no text, chord or sign hides a barline.
USUAL_HEADER = re.compile(r"(?:(?:[A-Za-z]:(?![|:])|%%(?!begin))[^\n]*\n)*")
USUAL_TEXT = r'[^"%\\$`|:\[\]\r\n]*'
USUAL_BARS = re.compile(
    rf'(?:\[V:[^\s\]]+\]{USUAL_TEXT}(?:(?:"{USUAL_TEXT}"|\[(?:(?!V)[A-Za-z]:)?{USUAL_TEXT}\]){USUAL_TEXT})*:*\[?\|[|:\]]*\d*)+'
)
VOICE_NAMES = re.compile(r"\[V:([^\s\]]+)\]")
NOTE = re.compile(r"[A-Ga-g]")
NOTE_OR_REST = re.compile(r"[A-Ga-gxzXZ]")
ANNOTATION_OR_DECORATION = re.compile(r'![^!]+!|"[\^_<>@][^"]*"')
INLINE_FIELD = re.compile(r"\[[A-Za-z]:[^\]]*\]")
LONG_REST = re.compile(r"(.*?)([ZX])(\d+)\s*", re.DOTALL)
LONGEST_REST = 1000  # bars
MOST_BARS = 200_000  # of a tune, those of all voices counted: more is no music, and would fill the memory
MOST_WRITTEN_RESTS = 20_000  # bars of rest, of all voices, that are written out as MusicXML
MOST_WRITTEN_VOICES = 500
VOICE = re.compile(r"(?:^|\[)V:\s*([^\s\]]+)", re.MULTILINE)
RESTS = re.compile(r"(?<![A-Za-z])[ZX](\d+)")
EMPTY_BAR = "X"  # a bar's rest that is not shown
OCTAVE = re.compile(r"\b(?:octave|transpose)=\S+|[+-]8\b")
CLEF = re.compile(r"clef=(\S+)|\b((?:treble|alto|tenor|bass|perc|none)[\d+-]*)")
CHARSET = re.compile(rb"^(?:%%|I:)abc-charset\s+([\w-]+)", re.MULTILINE)


# ---------- files and their tunes ----------


def read_abc(source: bytes | Path) -> str:
    """The text of an ABC file, given as its bytes or its path, with newlines as line ends.

    Old files are in Latin-1. Raises ValueError for what is no text, OSError where the path cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("empty file")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        raise ValueError("not text: it holds zero bytes")
    else:
        text = _decoded(data)
    return re.sub(r"\r\n?", "\n", text).rstrip("\n") + "\n"


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    charset = CHARSET.search(data)
    try:
        return data.decode(charset[1].decode() if charset else "latin-1")
    except (UnicodeDecodeError, LookupError):
        return data.decode("latin-1")


def split_tunes(abc: str) -> list[str]:
    """The tunes of an ABC file, each with what the file's head says for all; entries without notes are left out."""
    head, *tunes = re.split(r"^(?=X:)", abc, flags=re.MULTILINE)
    if not tunes:
        return [abc]
    common = "".join(f"{line}\n" for line in head.split("\n") if line.startswith("%%") or FIELD.match(line))
    return [common + tune for tune in tunes if has_notes(tune)] or [abc]


def has_notes(tune: str) -> bool:
    return any(NOTE.search(SILENT.sub("", line)) for kind, line in _lines(tune) if kind == "music")


def check_one_tune(abc: str) -> None:
    """Raise ValueError if `abc` is not one tune with notes."""
    tunes = len(re.findall(r"^X:", abc, flags=re.MULTILINE))
    if tunes > 1:
        raise ValueError(f"holds {tunes} tunes: take them one by one (split_tunes)")
    if not re.search(r"^K:", abc, flags=re.MULTILINE) and not BARLINE.search(abc):
        raise ValueError("not ABC: it has neither a key (K:) nor a barline")
    if not has_notes(abc):
        raise ValueError("no notes")
    if sum(_bars_of_rest(digits) for digits in RESTS.findall(abc)) > MOST_BARS:
        raise ValueError(f"its rests last for more than {MOST_BARS} bars")


def check_size(abc: str) -> None:
    """Raise ValueError for a tune that a converter which writes each bar out would work on for minutes."""
    rests = sum(_bars_of_rest(digits) for digits in RESTS.findall(abc))
    voices = len(set(VOICE.findall(abc)))
    if rests > MOST_WRITTEN_RESTS or voices > MOST_WRITTEN_VOICES:
        raise ValueError(
            f"it has {voices} voices, and rests of {rests} bars: more than the {MOST_WRITTEN_VOICES} and "
            f"{MOST_WRITTEN_RESTS} that are written out"
        )


def _bars_of_rest(digits: str) -> int:
    return int(digits) if len(digits) < 10 else 10**10


def count_tunes(path: Path) -> int:
    """How many tunes a file holds; 1 where it cannot be read, which will be named when it is tried."""
    try:
        return len(split_tunes(read_abc(path)))
    except (OSError, ValueError):
        return 1


def interleave_file(path: Path, note: Note = warn) -> list[str]:
    """The tunes of an ABC file, interleaved. Raises ValueError and OSError as `read_abc` and `interleave` do."""
    return [interleave(tune, note) for tune in split_tunes(read_abc(path))]


# ---------- standard ABC -> interleaved ABC ----------


@dataclass
class Voice:
    """A voice's music, cut into bars."""

    opening: str = ""  # before the first bar: a barline, inline fields
    bars: list[tuple[str, str]] = field(default_factory=list)  # notes, and the barline that ends them


def interleave(abc: str, note: Note = warn) -> str:
    """One tune with one bar of every voice on each line, `[V:1]…|[V:2]…|`; what is so already passes unchanged.

    Titles, words and other fields that are no notation are dropped, and bars at the start and the end that are empty
    in all voices. A tune without voices is one voice, V:1. The numbers of an ending stay with the barline before it.
    A voice that has fewer bars than others gets empty ones at its end, which `note` is told. Raises ValueError for
    several tunes, and where there are no notes.
    """
    if is_interleaved(abc):
        return abc
    abc = re.sub(r"\r\n?", "\n", abc)
    check_one_tune(abc)
    header, streams = _read(with_unit_length(abc), note)
    voices = _align(streams, note)
    _cut_long_bars(voices, header, note)
    first, last = _extent(voices)
    rows = [header]
    for index in range(first, last):
        row = ""
        for name, voice in voices.items():
            notes, barline = voice.bars[index]
            opening = voice.opening if index == first else ""
            row += _on_one_line(f"[V:{name}]{opening}{notes}{barline if index < last - 1 else voice.bars[-1][1]}")
        rows.append(f"{row}\n")
    return "".join(rows)


def _on_one_line(music: str) -> str:
    """`music` with spaces for line ends, where there are none beside them."""
    return re.sub(r"\n(?=\s)|(?<=\s)\n", "", music).replace("\n", " ") if "\n" in music else music


def is_interleaved(abc: str) -> bool:
    """Whether each line of music holds one bar of each of its voices."""
    if _is_of_usual_form(abc):
        return True
    in_all, most = set(), 0
    for kind, line in _lines(abc):
        if kind != "music":
            continue
        if not line.lstrip().startswith("[V:"):
            return False
        _, *parts = VOICE_SWITCH.split(line)
        names, bars = parts[::3], parts[2::3]
        if len(set(names)) < len(names) or not all(map(_is_one_bar, bars)):
            return False
        in_all.update(names)
        most = max(most, len(names))
    return most > 1 or len(in_all) == 1


def _is_of_usual_form(abc: str) -> bool:
    """Whether `abc` is interleaved as it mostly is, which can be told in a tenth of the time."""
    header = USUAL_HEADER.match(abc)
    lines = abc[header.end() :].rstrip("\n").split("\n") if header else []
    if (
        not header
        or not all(map(USUAL_BARS.fullmatch, lines))
        or not header[0].startswith("K:")
        and "\nK:" not in header[0]
    ):
        return False
    voices = {tuple(VOICE_NAMES.findall(line)) for line in lines}
    most = max(map(len, voices))
    return all(len(set(names)) == len(names) for names in voices) and (most > 1 or len(voices) == 1)


def _is_one_bar(music: str) -> bool:
    """Whether `music` holds one bar at most; where nothing follows its first barline, it need not be cut to tell."""
    first = BARLINE.search(music)
    return first is None or not music[first.end() :].strip() or len(_cut(music).bars) <= 1


def with_unit_length(abc: str) -> str:
    """`abc` with its unit length, which follows from the metre where a tune does not say it."""
    head = abc[: found.start()] if (found := re.search(r"^K:", abc, flags=re.MULTILINE)) else ""
    if not head or re.search(r"^L:", head, flags=re.MULTILINE):
        return abc
    metre = _metre(head)
    short = metre is not None and metre < Fraction(3, 4)
    at = found_metre.start() if (found_metre := re.search(r"^M:", head, flags=re.MULTILINE)) else len(head)
    return f"{abc[:at]}L:1/{16 if short else 8}\n{abc[at:]}"


def _lines(abc: str) -> Iterator[tuple[str, str]]:
    """The lines of a tune that hold notation, each with its kind: first "header", then "field" and "music".

    Macros are replaced by what they stand for. Music keeps its line's end, unless a backslash joins it to the next.
    The body starts with the first notes after the key, or with a `P:` or a bare `V:` field there. A blank line ends
    a tune; but some have one in the middle, so that what comes then and has barlines still belongs to it.
    """
    abc = with_macros(with_all_accidentals(CONTINUED_FIELD.sub("", _without_text_blocks(abc))))
    compound = COMPOUND_METRE.search(abc) is not None

    def tuplet(found: re.Match) -> str:
        return f"({found[1]}:{USUAL_TUPLETS.get(found[1], 3 if compound else 2)}:{found[2] or found[1]}"

    after_key = not re.search(r"^K:", abc, flags=re.MULTILINE)
    in_body = ended = False
    for line in abc.split("\n"):
        if line.startswith("%%"):
            if not in_body and not line.startswith("%%MIDI"):
                yield "header", line
            continue
        found = FIELD.match(line)
        if found is None:
            music = CLUTTER.sub(_unclutter, line.replace('\\"', ""))
            if "!" in music:
                music = DECORATION.sub(lambda found: "" if found[2] else found[0], music)
            if "::" in music:
                music = TUPLET.sub(tuplet, music)
            if music.rstrip().endswith("*"):  # of justified lines
                music = music.rstrip("* \t")
            if music.strip() and after_key and (not ended or ("|" in music and not _is_prose(music))):
                in_body = True
                yield "music", music if CONTINUES.search(line) else f"{music}\n"
            ended |= in_body and not line.strip()
            continue
        if "%" in line:
            line = COMMENT.sub(r"\1", line).rstrip()
        in_body |= after_key and (found[1] == "P" or (found[1] == "V" and len(line[2:].split()) == 1))
        if in_body:
            ended &= found[1] != "V"
            yield "field", line
        elif found[1] not in DROPPED_FIELDS:
            yield "header", line
            after_key |= found[1] == "K"


def _is_prose(line: str) -> bool:
    return PROSE.search(SILENT.sub("", line)) is not None


def _without_text_blocks(abc: str) -> str:
    """`abc` without the blocks of text between lines like %%begintext and %%endtext; one that nothing ends stays."""
    if "%%begin" not in abc:
        return abc
    lines, kept, at = abc.split("\n"), [], 0
    last = {line.split()[0]: number for number, line in enumerate(lines) if line.startswith("%%end")}
    while at < len(lines):
        begin = TEXT_BLOCK.match(lines[at])
        if begin and last.get(end := f"%%end{begin[1]}", -1) > at:
            while not lines[at].startswith(end):
                at += 1
        else:
            kept.append(lines[at])
        at += 1
    return "\n".join(kept)


def _unclutter(found: re.Match) -> str:
    """What remains of quoted text or an inline field: all but its barlines."""
    text = found[1] or ""
    kept = INNER_BARLINE.sub("", text[1:-1])
    return text if len(kept) == len(text) - 2 else kept and f"{text[0]}{kept}{text[-1]}"


def _read(abc: str, note: Note = ignore) -> tuple[str, dict[str, str]]:
    """A tune's header, and the music of each of its voices by name, in order of their first notes."""
    header, defined = [], []
    streams: dict[str, str] = {}
    octaves: dict[str, list[str]] = {}
    after_key, current = False, None

    def switch(name: str, properties: str) -> str:
        if (found := OCTAVE.findall(properties)) and found != octaves.setdefault(
            name, [] if name in streams else found
        ):
            note(f"voice {name} changes its octave or transposition within the tune, which is not read")
            properties = OCTAVE.sub("", properties)
        if name not in defined and properties.strip():
            header.append(f"V:{name} {properties.strip()}")
            defined.append(name)
        return name

    def add(music: str) -> None:
        if music.strip():
            before = streams.get(name := current or (defined or ["1"])[0], "")
            between = "" if not before or before[-1].isspace() or music[0].isspace() else " "
            streams[name] = f"{before}{between}{music}"

    for kind, line in _lines(abc):
        name, properties = _voice(line)
        if kind == "header":
            header.append(line)
            if line.startswith("V:"):
                defined.append(name)
                octaves[name] = OCTAVE.findall(properties)
                current = name if after_key else None
            after_key |= line.startswith("K:")
        elif kind == "music":
            start, *parts = VOICE_SWITCH.split(line)
            add(start)
            for name, properties, music in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
                current = switch(name, properties)
                add(music)
        elif line.startswith("V:"):
            current = switch(name, properties)
        elif line.startswith("s:"):
            note("symbols below the notes (s:) are not read")
        elif line[0] in BODY_FIELDS:
            add(f"[{COLONS.sub(':', BRACKET.sub('', line.strip()))}]")

    header += [f"V:{name} {_clef(header)}" for name in streams if name not in defined]
    return _numbered(header, streams)


def _voice(line: str) -> tuple[str, str]:
    """The name and the properties in a `V:` field; those of another field mean nothing."""
    name, _, properties = re.sub(r"\s+", " ", line[2:].strip()).partition(" ")
    return name, properties


def _clef(header: list[str]) -> str:
    """The clef and the octave that a tune's key field names; the usual one where it names none."""
    key = next((line for line in header if line.startswith("K:")), "")
    found, octave = CLEF.search(key), re.search(r"\s([+-]8)(?:va)?\b", key)
    clef = ((found[1] or found[2]) if found else "treble") + (octave[1] if octave else "")
    return " ".join([clef, *re.findall(r"\boctave=\S+", key)])


def _numbered(header: list[str], streams: dict[str, str]) -> tuple[str, dict[str, str]]:
    """`header` as text, and `streams`, in which voices have numbers for names, as MusicXML's have."""
    names = [_voice(line)[0] for line in header if line.startswith("V:")]
    if not all(re.fullmatch("[0-9]+", name) for name in names):
        number = {name: str(index) for index, name in enumerate(dict.fromkeys(names), 1)}
        for index, line in enumerate(header):
            if line.startswith("V:"):
                name, properties = _voice(line)
                header[index] = f"V:{number[name]} {properties}".rstrip()
            elif line.startswith(("%%score", "%%staves")):
                command, _, groups = line.partition(" ")
                header[index] = f"{command} " + re.sub(r"[^\s()\[\]{}|*]+", lambda m: number.get(m[0], m[0]), groups)
        streams = {number[name]: music for name, music in streams.items()}
    return "".join(f"{line}\n" for line in header), streams


# ---------- bars ----------


def _align(streams: dict[str, str], note: Note) -> dict[str, Voice]:
    """The voices, cut into one number of bars."""
    voices = {name: _counted(_cut(music)) for name, music in streams.items()}
    if len({len(voice.bars) for voice in voices.values()}) > 1:  # some barlines with nothing between may be bars
        with_empty = {name: _counted(_cut(music, keep_empty=True)) for name, music in streams.items()}
        if len({len(voice.bars) for voice in with_empty.values()}) == 1:
            return with_empty
    longest = max(voices.values(), key=lambda voice: len(voice.bars))
    if len(longest.bars) * len(voices) > MOST_BARS:
        raise ValueError(f"more than {MOST_BARS} bars: {len(voices)} voices of {len(longest.bars)}")
    for name, voice in voices.items():
        if missing := len(longest.bars) - len(voice.bars):
            voice.bars += [(EMPTY_BAR, barline) for _, barline in longest.bars[-missing:]]
            note(f"voice {name} is {missing} bars short: rests were added")
    return voices


def _cut(music: str, keep_empty: bool = False) -> Voice:
    """A voice's bars. Barlines with nothing between them are one, or with `keep_empty` those of an empty bar."""
    voice, opening, pending, start = Voice(), "", "", 0
    for found in BARLINE.finditer(music):
        notes = f"{pending}{music[start : found.start()]}".strip()
        start, pending = found.end(), ""
        barline = _plain(found[1]) + (found[2] or found[3] or "")
        if NOTE_OR_REST.search(SILENT.sub("", notes)) or (keep_empty and voice.bars):
            voice.bars.append((notes or EMPTY_BAR, barline))
        elif voice.bars:
            before, its_barline = voice.bars[-1]
            voice.bars[-1] = before, _one_barline(its_barline, barline)
            pending = f"{notes} " if notes else ""
        else:
            voice.opening += notes
            opening = _one_barline(opening, barline)
    voice.opening += opening
    rest = f"{pending}{music[start:]}".strip()
    if NOTE_OR_REST.search(SILENT.sub("", rest)) or not voice.bars:
        voice.bars.append((rest or EMPTY_BAR, "|"))
    elif rest:
        notes, barline = voice.bars[-1]
        voice.bars[-1] = f"{notes} {rest}", barline
    return voice


def _counted(voice: Voice) -> Voice:
    """`voice` with a bar for each bar: `Z4` is a rest of four."""
    bars = []
    for notes, barline in voice.bars:
        found = LONG_REST.fullmatch(notes)
        if found and not SILENT.sub("", found[1]).strip() and 1 < int(found[3]) <= LONGEST_REST:
            bars += [(found[1] + found[2], "|"), *[(found[2], "|")] * (int(found[3]) - 2), (found[2], barline)]
        else:
            bars.append((notes, barline))
    return Voice(voice.opening, bars)


def _plain(barline: str) -> str:
    """The one of BARLINES that `barline`, in any of its spellings, comes down to."""
    if barline in BARLINES:
        return barline
    barline = barline.replace("[|]", "")  # an invisible one
    closes = barline.startswith(":") or CLOSES.search(barline) is not None
    opens = barline.endswith(":") or OPENS.search(barline) is not None
    if closes or opens:
        return "::" if closes and opens else ":|" if closes else "|:"
    return "|]" if "]" in barline else "||" if "||" in barline else "|"


def _kind_and_numbers(barline: str) -> tuple[str, str]:
    """ ":|2" -> ":|", "2"."""
    at = next((index for index, character in enumerate(barline) if character.isdecimal()), len(barline))
    return barline[:at], barline[at:]


def _one_barline(first: str, second: str) -> str:
    """Two barlines with nothing between them, as one; the numbers of an ending stay."""
    kinds, numbers = zip(*(_kind_and_numbers(barline) for barline in (first, second)), strict=True)
    kind = kinds[0] if kinds[1] == "|" and kinds[0] else kinds[1] if kinds[0] in ("", "|") else _plain("".join(kinds))
    return kind + (numbers[1] or numbers[0])


# ---------- music without barlines ----------


def _cut_long_bars(voices: dict[str, Voice], header: str, note: Note) -> None:
    """Cut bars that are longer than a patch where phrases end, if they have no metre or last twice as long as it."""
    longest = [max(len(bar[part]) for voice in voices.values() for bar in voice.bars) for part in (0, 1)]
    if sum(longest) + max(len(f"[V:{name}]") for name in voices) <= ROOM:
        return
    metre, compound = _metre(header), COMPOUND_METRE.search(header) is not None
    lengths = [unit_length(header, Fraction(1, 8))] * len(voices)
    barless = all(len(voice.bars) == 1 for voice in voices.values())
    done: dict[str, list[tuple[str, str]]] = {name: [] for name in voices}
    pieces = 0
    for bars in zip(*(voice.bars for voice in voices.values()), strict=True):
        texts = [notes for notes, _ in bars]
        room = ROOM - max(len(f"[V:{name}]{barline}") for name, (_, barline) in zip(voices, bars, strict=True))
        metre = _metre("".join(texts), metre)
        rows = [tuple(texts)]
        # An overlay (&) goes back to the start of its bar, so that such a bar cannot be cut.
        if max(map(len, texts)) > room and not any("&" in SILENT.sub("", text) for text in texts):
            played = [list(units(*pair, compound)) for pair in zip(texts, lengths, strict=True)]
            lasts = max(sum(unit.duration for unit in one) for one in played)
            if barless or metre is None or lasts >= 2 * metre:
                rows = cut(played, room)
                pieces += len(rows)
        for index, row in enumerate(rows, 1):
            for made, notes, (_, barline) in zip(done.values(), row, bars, strict=True):
                made.append((notes.strip() or EMPTY_BAR, "|" if index < len(rows) else barline))
        lengths = [unit_length(text, unit) for text, unit in zip(texts, lengths, strict=True)]
    if pieces:
        note(f"music without barlines, cut into {pieces} bars")
        for name, voice in voices.items():
            voice.bars = done[name]


def _metre(text: str, default: Fraction | None = None) -> Fraction | None:
    """The length of a bar, in whole notes, by the last metre that `text` names; None where it has none."""
    found = METRE.findall(text)
    if not found:
        return default
    beats, unit, word = found[-1]
    if unit:
        return Fraction(sum(int(number) for number in re.findall(r"\d{1,6}", beats)), int(unit) or 1) or None
    return Fraction(1) if word.startswith("C") else None


def _extent(voices: dict[str, Voice]) -> tuple[int, int]:
    """The first bar in which a voice has anything, and the one after the last in which any has notes."""
    texts = [[ANNOTATION_OR_DECORATION.sub("", notes) for notes, _ in voice.bars] for voice in voices.values()]
    bars = list(enumerate(zip(*texts, strict=True)))  # of all voices
    filled = (index for index, bar in bars if any(map(_has_anything, bar)))
    noted = (index for index, bar in reversed(bars) if any(NOTE.search(INLINE_FIELD.sub("", text)) for text in bar))
    return next(filled, 0), next(noted, len(bars) - 1) + 1


def _has_anything(notes: str) -> bool:
    return any(letter.isalpha() and letter not in "ZzXx" for letter in notes)
