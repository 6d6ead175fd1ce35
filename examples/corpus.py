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

from clamp3.formats.abc import interleave, read_abc
from clamp3.formats.midi import midi_to_mtf


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

NOTATION_FIELDS = "LQMK"  # of a tune's fields, those that its music cannot do without; the rest describe it
FIELD = re.compile(r"([A-Za-z]):\s*(.*)")
COMMENT = re.compile(r"(?<!\\)%.*")
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
            _comments, *sources = re.split(r"^(?=X:)", read_abc(path), flags=re.MULTILINE)
            for source in sources:
                number += 1
                tune = read_tune(source, collection, number)
                if tune is not None:
                    yield tune


def read_tune(source: str, collection: Collection, number: int) -> Tune | None:
    """The tune that the ABC text `source` holds, if it is whole; `number` tells it from others of its collection."""
    fields: dict[str, str] = {}  # the first of each kind
    lines = iter(source.split("\n"))
    for line in lines:
        line = COMMENT.sub("", line).replace("`", "").rstrip("\\* \t")
        if field := FIELD.fullmatch(line):
            fields.setdefault(field[1], field[2].strip())
        if "K" in fields:
            break
    title = clean_title(fields.get("T", ""))
    metre = fields.get("M", "")
    if not METRE.fullmatch(metre):
        metre, fields["M"] = "", "none"
    notation = "".join(f"{name}:{fields[name]}\n" for name in NOTATION_FIELDS if fields.get(name))
    music = "\n".join(line for line in lines if not line.startswith("%%"))
    if not title or re.search(r"[\[\]]", title) or "V" in fields or "V:" in music:
        return None
    try:
        abc = interleave(notation + music)
    except ValueError:  # no notes
        return None
    slug = re.sub(r"[^a-z0-9]+", "_", unidecode(title).lower()).strip("_")[:40]
    return Tune(
        name=f"{collection.folder}_{number:05d}_{slug}",
        abc=abc,
        title=title,
        rhythm=clean_rhythm(fields.get("R", ""), collection.from_esac),
        region=fields.get("O", "") if collection.from_esac else collection.region,
        collection=collection.title,
        metre=metre,
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
