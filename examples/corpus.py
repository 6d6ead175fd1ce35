"""Real music as model inputs: folk tunes and chorales that lie in music21's corpus (a development dependency).

    tune = next(folk_tunes())
    print(tune.abc, describe(tune))
No tune is made up or changed; its notation is brought into the form that the models take.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unidecode import unidecode

from clamp3.convert.midi import midi_to_mtf


@dataclass(frozen=True)
class Collection:
    """A folder of ABC files in the corpus, and what holds for all of its tunes."""

    folder: str
    title: str
    region: str = ""
    from_esac: bool = False  # of EsAC files: R: genres in German, O: a place, K: the keynote without its mode


COLLECTIONS = (
    Collection("oneills1850", "O'Neill's Music of Ireland", region="Ireland"),
    Collection("ryansMammoth", "Ryan's Mammoth Collection"),
    Collection("airdsAirs", "Aird's Airs"),
    Collection("essenFolksong", "Essen Folksong Collection", from_esac=True),
)
SCORE_FOLDER = "bach"

NOTATION_FIELDS = "MLQK"  # of a tune's fields, those that its music cannot do without; the rest describe it
FIELD = re.compile(r"([A-Za-z]):(?![|:])\s*(.*)")  # but "A:|" is a note and the end of a repeat
COMMENT = re.compile(r"(?<!\\)%.*")
# Quoted text and inline fields come first, so that a bar line inside them is none.
TOKENS = re.compile(r'("[^"\n]*"|\[[A-Za-z]:[^\]\n]*\])|(:*\[?\|[|:\]]*|::+)\s*(\d[\d,.-]*)?')
SILENT = re.compile(r'"[^"]*"|\[[A-Za-z]:[^\]]*\]|![^!]*!')  # quoted text, inline fields, decorations
NOTE = re.compile(r"[A-Ga-gz]")
METRE = re.compile(r"C\|?|\d+/\d+")
KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
MODES = {
    "": "major",
    "m": "minor",
    "maj": "major",
    "min": "minor",
    "dor": "Dorian",
    "phr": "Phrygian",
    "lyd": "Lydian",
    "mix": "Mixolydian",
}


@dataclass(frozen=True)
class Tune:
    """A folk tune: interleaved ABC in one voice, and what its source says about it ("" where it says nothing)."""

    name: str  # unique, fit for a file
    abc: str
    title: str
    rhythm: str  # such as "reel", or "Romanze, Ballade, Lied"
    region: str  # such as "Ireland", or "Europa, Mitteleuropa, Deutschland"
    collection: str
    metre: str  # such as "6/8"
    key: str  # such as "D major"


def corpus_folder() -> Path:
    """Where the corpus lies; found without importing music21. Raises ModuleNotFoundError where it is not installed."""
    spec = importlib.util.find_spec("music21")
    if spec is None:
        raise ModuleNotFoundError("music21 is not installed: pip install music21")
    return Path(spec.submodule_search_locations[0], "corpus")


def folk_tunes() -> Iterator[Tune]:
    """Some 12,000 tunes, always in one order; but none in several voices, without bars or with a damaged name."""
    for collection in COLLECTIONS:
        number = 0
        for path in sorted(corpus_folder().joinpath(collection.folder).glob("*.abc")):
            for source in re.split(r"^(?=X:)", read(path), flags=re.MULTILINE)[1:]:  # before it: the file's comments
                number += 1
                tune = read_tune(source, collection, number)
                if tune is not None:
                    yield tune


def read(path: Path) -> str:
    """An ABC file's text; old ones are in Latin-1."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return "\n".join(text.splitlines())


def read_tune(source: str, collection: Collection, number: int) -> Tune | None:
    """The tune that the ABC text `source` holds, if it is whole; `number` tells it from others of its collection."""
    fields: dict[str, str] = {}  # the first of each kind
    music: list[str] = []
    for line in source.split("\n"):
        line = COMMENT.sub("", line).replace("`", "")  # a backtick is a space that is none
        line = line.rstrip("\\* \t")  # continued lines and justified ones end in a sign
        field = FIELD.fullmatch(line)
        if field is None:
            music.append(line)
        elif "K" not in fields:
            fields.setdefault(field[1], field[2].strip())
        elif field[1] in NOTATION_FIELDS:  # a change on the way
            music.append(f"[{field[1]}:{field[2].strip()}]")
    title = clean_title(fields.get("T", ""))
    lines = list(bars(" ".join(music)))
    if not title or re.search(r"[\[\]]", title) or not lines or "V" in fields or "[V:" in source:
        return None
    slug = re.sub(r"[^a-z0-9]+", "_", unidecode(title).lower()).strip("_")[:40]
    return Tune(
        name=f"{collection.folder}_{number:05d}_{slug}",
        abc="".join(f"{line}\n" for line in (*header(fields), *lines)),
        title=title,
        rhythm=clean_rhythm(fields.get("R", ""), collection.from_esac),
        region=fields.get("O", "") if collection.from_esac else collection.region,
        collection=collection.title,
        metre=fields["M"] if METRE.fullmatch(fields.get("M", "")) else "",
        key=read_key(fields.get("K", ""), collection.from_esac),
    )


def clean_title(title: str) -> str:
    """`title` as one writes it: its article in front, not all in capitals, without ABC's accents and known slips."""
    title = re.sub(r"\\[`'^~\",]", "", " ".join(title.split()).removeprefix("T:").replace("t:", "t")).strip(" .")
    title = re.sub(r"^(.*), (the|a|an)\b", r"\2 \1", title, flags=re.IGNORECASE)
    return re.sub(r"\w[\w']*", lambda word: word[0].capitalize(), title) if title.isupper() else title


def clean_rhythm(field: str, from_esac: bool) -> str:
    """An `R:` field: the name of a dance in small letters; of EsAC files a list, without its damaged parts."""
    if not from_esac:
        return field.lower()
    genres = re.sub(r"\?+|\]|yyy|NN", "", field).replace(" - ", "-").replace(" -,", "-,").strip(" ,")
    return genres[:1].upper() + genres[1:]


def read_key(field: str, from_esac: bool) -> str:
    """A `K:` field in words, "" where it is none that we know."""
    key = KEY.fullmatch(field)
    mode = MODES.get(key[3][:3].lower()) if key and key[3] != "M" else None
    if mode is None:
        return ""
    return f"{key[1]}{key[2]}" if from_esac else f"{key[1]}{key[2]} {mode}"


def header(fields: dict[str, str]) -> Iterator[str]:
    """The lines before the music, in the order that scores have."""
    metre = fields.get("M", "none")
    metre = metre if METRE.fullmatch(metre) else "none"
    yield f"L:{fields.get('L') or default_unit(metre)}"
    if fields.get("Q"):
        yield f"Q:{fields['Q']}"
    yield f"M:{metre}"
    yield f"K:{fields.get('K') or 'none'}"
    yield "V:1 treble"


def default_unit(metre: str) -> str:
    """The note length that ABC takes where a tune gives none."""
    beats, _, unit = metre.partition("/")
    return "1/16" if unit and int(beats) / int(unit) < 0.75 else "1/8"


def bars(music: str) -> Iterator[str]:
    """The bars of one voice, `[V:1]…|` each. A bar line that stands at the start is kept where it opens a repeat."""
    found: list[list[str]] = []  # notes and bar line
    opening, notes, start = "", "", 0
    for token in TOKENS.finditer(music):
        notes += music[start : token.start()]
        start = token.end()
        if token[1]:  # quoted text or an inline field
            notes += token[1]
            continue
        if has_notes(notes):
            found.append([notes, token[2]])
            notes = ""
        elif found:  # nothing between two bar lines: they are one
            found[-1][1] += token[2]
        elif token[2].endswith(":"):
            opening = "|:"
        if token[3]:
            notes += f"[{token[3]} "
    notes += music[start:]
    if has_notes(notes):
        found.append([notes, "|"])
    for notes, barline in found:
        yield f"[V:1]{opening}{' '.join(notes.split())}{plain_barline(barline)}"
        opening = ""


def has_notes(bar: str) -> bool:
    return NOTE.search(SILENT.sub("", bar)) is not None


def plain_barline(barline: str) -> str:
    """The one of the model's bar lines that `barline`, in any of its spellings, comes down to."""
    closes, opens = barline.startswith(":") or ":|" in barline, barline.endswith(":")
    if closes or opens:
        return "::" if closes and opens else ":|" if closes else "|:"
    return "|]" if "]" in barline else "||" if "||" in barline else "|"


def describe(tune: Tune) -> str:
    """What is known of `tune`, in a few lines of text."""
    dance = tune.rhythm if tune.rhythm.islower() else ""
    origin = f"{'An' if dance[:1] in tuple('aeiou') else 'A'} {dance or 'tune'}"
    if tune.region:
        origin += f" from {tune.region}"
    if tune.rhythm and not dance:
        origin += f": {tune.rhythm}"
    key = f"key of {tune.key}" if tune.key else ""
    metre = f"metre {tune.metre}" if tune.metre else ""
    notation = ", ".join(filter(None, (key, metre)))
    lines = (tune.title, origin, notation[:1].upper() + notation[1:], tune.collection)
    return "".join(f"{line}\n" for line in lines if line)


def scores(count: int) -> Iterator[tuple[str, bytes]]:
    """Names and MIDI files of `count` scores, the shortest of the corpus's 400 by Bach: nearly all are chorales."""
    from music21 import converter, midi

    paths = sorted(corpus_folder().joinpath(SCORE_FOLDER).glob("*.mxl"), key=lambda path: (path.stat().st_size, path))
    for path in paths[:count]:
        score = converter.parse(path, forceSource=True, storePickle=False)  # else it leaves temporary files
        name = path.stem.replace(".", "_").replace("-", "_")
        yield f"{SCORE_FOLDER}_{name}", midi.translate.music21ObjectToMidiFile(score).writestr()


def write(folder: Path, tunes: Iterable[Tune], midi_files: Iterable[tuple[str, bytes]]) -> None:
    """Model inputs in `folder`: abc/ the tunes, txt/ their descriptions, mtf/ the MIDI files in text form."""
    for kind in ("abc", "txt", "mtf"):
        folder.joinpath(kind).mkdir(parents=True, exist_ok=True)
    for tune in tunes:
        folder.joinpath("abc", f"{tune.name}.abc").write_text(tune.abc, encoding="utf-8")
        folder.joinpath("txt", f"{tune.name}.txt").write_text(describe(tune), encoding="utf-8")
    for name, data in midi_files:
        folder.joinpath("mtf", f"{name}.mtf").write_text(midi_to_mtf(data), encoding="utf-8")
