"""MusicXML <-> ABC, standard ABC -> interleaved ABC, and the three commands."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamp3.errors import RepairWarning
from clamp3.formats.abc import count_tunes, interleave, interleave_file, is_interleaved, read_abc, split_tunes
from clamp3.formats.musicxml import abc_to_musicxml, musicxml_to_abc
from conftest import ROOT, run
from corpus import corpus_folder
from golden_model import golden_json

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # abctoolkit's, of its pyparsing
CASES = golden_json("abc.json")
SCRIPTS = ROOT / "preprocessing" / "abc"
ignore_repairs = pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
CONTAINER = '<container><rootfiles><rootfile full-path="{}"/></rootfiles></container>'
NOTE = re.compile(r"[_^=]*[A-Ga-g][,']*[\d/]*")
NO_NOTES = re.compile(r'\[[A-Za-z]:[^\]]*\]|"[^"]*"|![^!]*!')


def tune(body: str, head: str = "") -> str:
    return f"X:1\nT:A title\n{head}L:1/8\nK:C\n{body}\n"


def rows(abc: str) -> list[str]:
    return [line for line in interleave(abc).splitlines() if line.startswith("[V:")]


def notes(abc: str) -> list[str]:
    """The notes of the lines of music in `abc`."""
    lines = (re.sub("%.*", "", line) for line in abc.split("\n") if not re.match("%|[A-Za-z]:(?![|:])", line))
    return NOTE.findall(NO_NOTES.sub("", "\n".join(lines)))


# ---------- against the original ----------


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["corpus_path"])
def test_interleaving_is_the_originals(case):
    assert interleave(case["standard_abc"]) == case["interleaved_abc"]
    assert interleave(case["interleaved_abc"]) == case["interleaved_abc"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["corpus_path"])
def test_standard_abc_is_the_originals(case):
    path = corpus_folder() / case["corpus_path"]
    assert musicxml_to_abc(path) == musicxml_to_abc(path.read_bytes()) == case["standard_abc"]


@ignore_repairs
@pytest.mark.parametrize(
    "name",
    [
        "bach/bwv171.6.mxl",  # line ends in part names
        "bach/bwv8.6.mxl",  # endings
        "beach/prayer_of_a_tired_child.musicxml",  # a piano's two staves
        "haydn/opus1no1/movement4.mxl",
        "schumann_robert/opus41no1/movement5.mxl",  # a bar over two lines
        "trecento/PMFC_06_8-In Verde Prato.xml",
    ],
)
def test_other_scores_are_interleaved_as_by_the_originals_routines(name):
    from abctoolkit.rotate import rotate_abc
    from abctoolkit.utils import remove_bar_no_annotations, remove_information_field, strip_empty_bars

    standard = musicxml_to_abc(corpus_folder() / name)
    lines = remove_information_field(standard.splitlines(keepends=True), [*"XTCWwZ", "%%MIDI"])
    with contextlib.redirect_stdout(io.StringIO()):  # it says so where barlines differ
        stripped, _ = strip_empty_bars(remove_bar_no_annotations(lines))
    assert interleave(standard) == "".join(rotate_abc(stripped))


# ---------- standard ABC -> interleaved ABC ----------


@pytest.mark.golden
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("z2|:C|D E|\nF:|1G|]", ["C|", "D E|", "F:|1", "G|]"]),
        ("C2 |[1 D :|[2 E |\n| F ||\n|: G ::\n", ["C2|", "[1 D:|", "[2 E|", "F|:", "G::"]),
        ("C:||:D:|:E||:F:||G[|]|]", ["C::", "D::", "E|:", "F:|", "G|]"]),
        ("C D\\\nE|F $G | % a | remark\nA*\nB|", ["C D E|", "F G|", "A B|"]),
        ('"Am"C "^a|b::c"D|"^say \\"x\\""E|', ['"Am"C "^abc"D|', '"^say x"E|']),
        (
            "C|\nM:3/4\nK:G % sharp\nw:la|la\nN:no | bar\nD|[L:1/16][CE]2|",
            ["C|", "[M:3/4] [K:G] D|", "[L:1/16][CE]2|"],
        ),
        ("P:A\n|:C:|\nP:B\n|:D:|", ["[P:A]|:C::", "[P:B] D:|"]),
        ("Z3|C|Z2|D|Z|", ["C|", "Z|", "Z|", "D|"]),
        ("C|D|\n\nE|F\nThe end of the tune.\n", ["C|", "D|", "E|", "F|"]),
        ("A:|\nd:|\nC", ["A:|", "d:|", "C|"]),
        ("C|!D.C.!|D|(E|F)", ["C|", "!D.C.! D|", "(E|", "F)|"]),
    ],
)
def test_the_bars_of_a_tune(body, expected):
    assert rows(tune(body)) == [f"[V:1]{bar}" for bar in expected]


@pytest.mark.golden
def test_a_tune_without_voices_is_one_voice():
    assert interleave(tune("C|", "R:reel\nM:2/4\n%%MIDI program 1\nW:words\n").replace("L:1/8\n", "")) == (
        "R:reel\nL:1/16\nM:2/4\nK:C\nV:1 treble\n[V:1]C|\n"
    )
    assert "\nV:1 bass-8\n" in interleave(tune("C|").replace("K:C", "K:C clef=bass-8"))


@pytest.mark.golden
@pytest.mark.parametrize(
    "body",
    [
        "V:S treble\nV:B clef=bass\n[V:S]c|d|\n[V:B]C|D|\n[V:S]e|]\n[V:B]E|]",
        "V:S treble\nc|\nV:B clef=bass\nC|D|E|]\nV:S\nd|e|]",
        "V:S treble\nV:B clef=bass\nV:S\nc|d|\ne|]\nV:B\nC|D|E|]",
        "[V:S treble]c|d|e|][V:B clef=bass]C|D|E|]",
        "[V:S treble]c|\n[V:B clef=bass]C|\n[V:S]d|\n[V:B]D|\n[V:S]e|]\n[V:B]E|]",
    ],
)
def test_voices_however_they_are_written(body):
    expected = "L:1/8\nK:C\nV:1 treble\nV:2 clef=bass\n[V:1]c|[V:2]C|\n[V:1]d|[V:2]D|\n[V:1]e|][V:2]E|]\n"
    assert interleave(tune(body)) == expected
    assert interleave(tune(body, "%%score (S | B)\n")) == f"%%score (1 | 2)\n{expected}"


@pytest.mark.golden
def test_empty_bars_go_where_all_voices_have_them():
    assert rows(tune("V:1\nz8|z8|C8|z8|D8|z8|x8|]\nV:2\nZ|c8|z8|z8|z8|z8|Z|]")) == [
        "[V:1]z8|[V:2]c8|",
        "[V:1]C8|[V:2]z8|",
        "[V:1]z8|[V:2]z8|",
        "[V:1]D8|][V:2]z8|]",
    ]


@pytest.mark.golden
def test_voices_of_unequal_length_are_filled_up():
    # A bar with nothing in it, as MusicXML has them, is one if then all voices agree.
    assert rows(tune("V:1\nC| |D|\nV:2\nE|F|G|")) == ["[V:1]C|[V:2]E|", "[V:1]X|[V:2]F|", "[V:1]D|[V:2]G|"]
    with pytest.warns(RepairWarning, match="voice 2 is 2 bars short"):
        filled = rows(tune("V:1\nC|D|E|]\nV:2\nF|"))
    assert filled == ["[V:1]C|[V:2]F|", "[V:1]D|[V:2]X|", "[V:1]E|][V:2]X|]"]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("abc", "reason"),
    [
        ("", "neither a key"),
        ("A letter to a friend, as they begin.\n", "neither a key"),
        (tune("z4|z4|]"), "no notes"),
        (tune("% nothing"), "no notes"),
        (tune('"Am"z4|!segno!z4|'), "no notes"),
        (tune("C|") + "\n" + tune("D|"), "2 tunes"),
    ],
)
def test_what_has_no_interleaved_form_is_refused(abc, reason):
    for convert in (interleave, abc_to_musicxml):
        with pytest.raises(ValueError, match=reason):
            convert(abc)


@pytest.mark.golden
def test_a_file_is_split_into_its_tunes(tmp_path):
    head = "%abc-2.1\nM:3/4\n%%staffsep 20\nA remark.\n\n"
    path = tmp_path / "tunes.abc"
    path.write_text(f"{head}{tune('C|')}\n{tune('% no notes')}\n{tune('D|')}", encoding="utf-8", newline="\r\n")
    first, second = split_tunes(read_abc(path))
    assert (
        first.startswith("M:3/4\n%%staffsep 20\nX:1\n") and rows(first) == ["[V:1]C|"] and rows(second) == ["[V:1]D|"]
    )
    assert count_tunes(path) == 2 and interleave_file(path) == [interleave(first), interleave(second)]
    interleaved = CASES[0]["interleaved_abc"]
    assert split_tunes(interleaved) == [interleaved]
    assert count_tunes(tmp_path / "none.abc") == 1


@pytest.mark.golden
@pytest.mark.parametrize(
    "data",
    [
        "T:Fête\r\nK:C\r\nC|\r\n".encode("utf-8-sig"),
        "T:Fête\rK:C\rC|".encode("latin-1"),
        "T:Fête\nK:C\nC|\n".encode("utf-16"),
    ],
    ids=["utf-8", "latin-1", "utf-16"],
)
def test_text_is_read_whatever_its_encoding(data):
    assert read_abc(data) == "T:Fête\nK:C\nC|\n"


def test_charsets_that_are_named_are_heeded():
    text = "%%abc-charset iso-8859-2\nT:Říp\nK:C\nC|\n"
    assert read_abc(text.encode("iso-8859-2")) == text


@pytest.mark.golden
@pytest.mark.parametrize("data", [b"", b"K:C\n\0\0C|"], ids=["empty", "binary"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(ValueError, match="empty file|not text"):
        read_abc(data)


def test_folk_tunes_lose_no_note():
    paths = sorted(corpus_folder().glob("*/*.abc"))[::12]
    tunes = [tune for path in paths for tune in split_tunes(read_abc(path)) if "\nV:" not in tune]
    assert len(tunes) > 500
    for source in tunes:
        remarks: list[str] = []
        interleaved = interleave(source, remarks.append)
        if any("without barlines" in remark for remark in remarks):  # with accidentals that the cuts would have ended
            continue
        _, _, music = source.partition("\nK:")
        assert notes(interleaved.replace("[V:1]", "")) == notes(music.partition("\n")[2].replace('\\"', "")), source
        assert is_interleaved(interleaved) and interleave(interleaved) == interleaved


DURATIONS = st.sampled_from(["", "", "2", "3", "4", "/"])
BARS = st.lists(
    st.tuples(st.sampled_from(["", "", "^", "_", "="]), st.sampled_from([*"CDEFGABcdefgab", "C,", "c'"]), DURATIONS),
    min_size=1,
    max_size=5,
).map(lambda bar: "".join("".join(note) for note in bar))
BARLINES = st.sampled_from(["|", "|", "|", ":|", "||", "|:", "::", ":|1", "|]"])


@st.composite
def scores(draw) -> tuple[str, list[list[str]]]:
    """A tune in several voices in standard ABC, and its bars, a list for each voice."""
    count = draw(st.integers(1, 6))
    barlines = draw(st.lists(BARLINES, min_size=count, max_size=count))
    voices = draw(st.lists(st.lists(BARS, min_size=count, max_size=count), min_size=1, max_size=4))
    gap = st.sampled_from(["", " ", "\n", "\n ", " % 3\n", '"Am"', "!p!"])
    text = "X:1\nT:any\nM:4/4\nL:1/8\nK:D\n"
    for number, bars in enumerate(voices, 1):
        text += f"V:{number}\n"
        for bar, barline in zip(bars, barlines, strict=True):
            text += f"{bar}{draw(gap)} {barline}{draw(st.sampled_from([' ', chr(10)]))}"
        text += "\n"
    return text, [[bar + barline for bar, barline in zip(bars, barlines, strict=True)] for bars in voices]


@given(scores())
def test_interleaving_loses_no_bar_and_once_is_enough(score):
    text, voices = score
    interleaved = interleave(text)
    found = [re.split(r"\[V:\d\]", re.sub(r'\s|"Am"|!p!', "", row))[1:] for row in rows(interleaved)]
    assert found == [list(bars) for bars in zip(*voices, strict=True)]
    assert interleave(interleaved) == interleaved


SCRAPS = """C D2 z Z3 | |: :| :: |] [|] |1 [2 [V:1] [V:2] V:1 V:T§bass K:C X:1 L:1/8 [K:D] P:A w:la %%score§(1§2) [CE]
%%begintext +: " "Am" !p! ! % \\ * $ (3 { & - § § ¶ ¶ ¶¶ T:é ¤ M:3/0 愛""".split()
SCRAPS = [scrap.replace("§", " ").replace("¶", "\n").replace("¤", "\r") for scrap in SCRAPS]


@ignore_repairs
@given(st.lists(st.sampled_from(SCRAPS), max_size=40).map("".join))
def test_whatever_is_interleaved_stays_so(text):
    try:
        interleaved = interleave(text)
    except ValueError:
        return
    assert is_interleaved(interleaved) and interleave(interleaved) == interleaved


@pytest.mark.golden
@settings(max_examples=40, deadline=None)
@given(st.lists(BARS, min_size=1, max_size=4))
def test_simple_tunes_come_back_from_musicxml(bars):
    text = tune("".join(f"{bar}|" for bar in bars), "M:4/4\n")
    for source in (text, interleave(text)):
        back = interleave(musicxml_to_abc(abc_to_musicxml(source).encode()))
        assert notes(back.replace("[V:1]", "")) == notes("\n".join(bars))


@pytest.mark.golden
def test_bad_ties_and_short_notes_of_abc_come_out_as_written():
    source = tune("A-^A|B-B|(3C/8D/8E/8|", "M:4/4\n")
    written = abc_to_musicxml(source)
    assert [int(alter) for alter in re.findall(r"<alter>(.*?)</alter>", written)] == [1]
    divisions = int(re.search(r"<divisions>(.*?)<", written)[1])
    durations = [int(duration) / divisions for duration in re.findall(r"<duration>(.*?)<", written)]
    assert durations == [0.5] * 4 + [1 / 24] * 3
    assert written.count('<tie type="stop"') == 1


def test_no_file_is_included():
    assert "root:" not in abc_to_musicxml(tune("%%abc-include /etc/passwd\nC|"))
    assert "root:" not in abc_to_musicxml(tune("I:abc-include /etc/passwd\nC|", "%%abc-include /etc/passwd\n"))


# ---------- the commands ----------

ODD_NAMES = ["it's $HOME.v1.mxl", 'say "hi".MXL', "愛 `date`.mxl", "caf\udce9.mxl", "-x.mxl"]


@pytest.mark.parametrize("name", ["batch_xml2abc.py", "batch_interleaved_abc.py", "batch_abc2xml.py"])
def test_help_says_how(name):
    assert (
        f"python preprocessing/abc/{name} INPUT_DIR OUTPUT_DIR" in run(sys.executable, SCRIPTS / name, "--help").stdout
    )


def convert(name: str, source, target, check: int = 0) -> dict[str, str]:
    """Run a command; what it names as failed, with the reasons."""
    run(sys.executable, SCRIPTS / name, source, target, "--workers", 1, cwd=source, check=check)
    failures = target / "failures.jsonl"
    remarks = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    return {remark["file"].rpartition("/")[2]: remark["reason"] for remark in remarks}


def test_scores_go_through_all_three_commands(tmp_path):
    folders = [tmp_path / name for name in ("scores", "standard", "interleaved", "xml")]
    (folders[0] / "sub").mkdir(parents=True)
    for case in CASES[:2]:
        shutil.copy(corpus_folder() / case["corpus_path"], folders[0] / "sub")
    for name in ODD_NAMES:
        shutil.copy(corpus_folder() / CASES[0]["corpus_path"], folders[0] / name)
    shutil.copy(corpus_folder() / "ryansMammoth" / "AnnieHughesJig.abc", folders[0])

    assert convert("batch_xml2abc.py", folders[0], folders[1]) == {}
    for case in CASES[:2]:
        assert (
            folders[1].joinpath("sub", case["corpus_path"][5:-4] + ".abc").read_text("utf-8") == case["standard_abc"]
        )
    assert convert("batch_interleaved_abc.py", folders[1], folders[2]) == {}
    assert convert("batch_abc2xml.py", folders[2], folders[3]) == {}
    outputs = sorted(path.stem for path in folders[3].rglob("*.xml"))
    assert outputs == sorted([name.rpartition(".")[0] for name in ODD_NAMES] + ["bwv404", "bwv431"])
    for case in CASES[:2]:
        assert (
            folders[2].joinpath("sub", case["corpus_path"][5:-4] + ".abc").read_text("utf-8")
            == case["interleaved_abc"]
        )
        back = musicxml_to_abc(folders[3] / "sub" / (case["corpus_path"][5:-4] + ".xml"))
        assert notes(interleave(back)) == notes(case["interleaved_abc"])


def test_files_of_several_tunes_have_numbered_outputs_and_bad_ones_are_named(tmp_path):
    source, interleaved, xml = (tmp_path / name for name in ("abc", "interleaved", "xml"))
    source.mkdir()
    book = corpus_folder() / "airdsAirs" / "book6.abc"
    shutil.copy(book, source / "book.ABC")
    shutil.copy(corpus_folder() / "ryansMammoth" / "AnnieHughesJig.abc", source / "jig 愛.abc")
    damaged = {
        "empty.abc": b"",
        "binary.abc": b"\x89PNG\0\0",
        "prose.abc": b"Dear friend,\n",
        "rests.abc": b"K:C\nz4|\n",
    }
    for name, data in damaged.items():
        (source / name).write_bytes(data)
    assert convert("batch_interleaved_abc.py", source, interleaved, check=1).keys() == damaged.keys()
    tunes = split_tunes(read_abc(book))
    written = sorted(path for path in interleaved.glob("book_*.abc"))
    assert [path.read_text("utf-8") for path in written] == [interleave(tune) for tune in tunes] and len(tunes) > 100
    assert written[0].name == "book_001.abc" and (interleaved / "jig 愛.abc").exists()

    shutil.rmtree(interleaved)
    (source / "book.ABC").write_text("".join(tunes[:3]), encoding="utf-8")
    assert convert("batch_abc2xml.py", source, xml, check=1).keys() == damaged.keys()
    assert sorted(path.name for path in xml.glob("*.xml")) == ["book_1.xml", "book_2.xml", "book_3.xml", "jig 愛.xml"]


# ---------- what is no music, and music without barlines ----------

ODD = Path(__file__).parent / "cases" / "abc"


def played(abc: str, folder: Path) -> list[tuple[int, int]]:
    """Onset and pitch of all notes, as abc2midi reads them."""
    if not shutil.which("abc2midi"):
        pytest.skip("abc2midi, of the package abcmidi, is the judge here")
    source, target = folder / "a.abc", folder / "a.mid"
    source.write_text(abc if abc.startswith("X:") else f"X:1\n{abc}")
    target.unlink(missing_ok=True)
    subprocess.run(["abc2midi", source, re.match(r"X:\s*(\d*)", source.read_text())[1], "-o", target], check=False)
    found = []
    for notes_of_track in mido.MidiFile(target).tracks:
        now = 0
        for message in notes_of_track:
            now += message.time
            if message.type == "note_on" and message.velocity:
                found.append((now, message.note))
    return sorted(found)


def test_line_breaks_of_old_books_swallow_no_bar():
    assert interleave_file(ODD / "excl_first_last.abc")[0].endswith("[V:1]cBAG FEDC|\n[V:1]c8|]\n")
    assert rows(tune("!f!C D|!E F|!trill!G|!\nA|")) == ["[V:1]!f!C D|", "[V:1]E F|", "[V:1]!trill!G|", "[V:1]A|"]


def test_text_between_tunes_is_no_music():
    first, second = interleave_file(ODD / "free_text.abc")
    assert first.endswith("[V:1]CDEF GABc|\n[V:1]c8|\n") and second.endswith("[V:1]c8|\n[V:1]d8|\n")


@pytest.mark.parametrize(
    ("tuplet", "plain"), [("(3::2ab", "(3:2:2ab"), ("(3::abc", "(3:2:3abc"), ("(2::ab", "(2:3:2ab")]
)
def test_tuplets_are_no_repeats(tuplet, plain):
    assert rows(tune(f"C {tuplet} D|E|")) == [f"[V:1]C {plain} D|", "[V:1]E|"]


@pytest.mark.parametrize("body", ["Z1000|" * 10_000 + "C|", "Z99999999|C|", "X1414360|C|", "C|" + "Z" + "9" * 5000])
def test_rests_beyond_measure_are_refused(body):
    for convert in (interleave, abc_to_musicxml):
        with pytest.raises(ValueError, match="its rests last for more than"):
            convert(tune(body))


def test_bars_are_bounded_by_voices_too():
    voices = "".join(f"V:{number}\nC|\n" for number in range(1, 2001))
    with pytest.raises(ValueError, match="2000 voices of 201"):
        interleave(tune(f"{voices}V:1\n" + "D|" * 200))


def test_open_text_blocks_take_linear_time():
    start = time.perf_counter()
    assert rows(tune("C|\n" + "%%begintext\n" * 20_000 + "D|")) == ["[V:1]C|", "[V:1]D|"]
    assert time.perf_counter() - start < 5
    assert rows(tune("C|\n%%begintext\nA|\n%%endtext\nD|")) == ["[V:1]C|", "[V:1]D|"]


# Each is played the same before and after; the second tune is what the notation means where abc2midi does not know it.
KINDS = {
    "accidentals of their notes alone": ("%%MIDI nobarlines\n^FFGA|^F^GFG|[K:G]=FFGF|", None),
    "… and again of bars": ("%%MIDI nobarlines\n^FFGA|\n%%MIDI barlines\n^FFGA|", None),
    "macro": ("m: ~G3 = G{A}G{F}G\n~G3ABc2|~G3c3z2|", "G{A}G{F}GABc2|G{A}G{F}Gc3z2|"),
    "macro for all notes": (
        "m: ~n2 = (3o/n/m/ n\n~G2 ABc2z2|~B,2 ~c'2 d4|~g22",
        "(3A/G/F/ G ABc2z2|(3C/B,/A,/ B, (3d'/c'/b/ c' d4|~g22",
    ),
    "macro within": ("CDEF|\nm: ~G2 = GA\n~G2 EF|", "CDEF|GA EF|"),
    "user symbols": ("U: W = !fermata!\nWC4 D4|\nU: W = !accent!\nWE4 F4|", None),
    "overlay": ("C4 D4 & E8|F8 & A4 B4 & G8|", None),
    "spacers": ("C y D y2 E F|y C4|yy|D4|", None),
    "fields within lines": ("CDEF[K:G]GAFF|F8|[M:3/4][L:1/16]F12|[L:1/8]F6|", None),
    "fields between lines": ("CDEFGAFF|\nK:G\nGAFFGAFF|\nM:3/4\nL:1/16\nF12|\nQ:1/4=90\nF12|", None),
    "fields in voices": ("V:1\nL:1/4\nK:G\nFFFF|\nV:2\nFFFFFFFF|\nV:1\nF4|\nV:2\nF8|", None),
    "inline voices": ("[V:1]C8|D8|\n[V:2]E8|F8|\n[V:1]G8|\n[V:2]A8|", None),
    "long rests": ("V:1\nC8|Z2|D8|X|E8|\nV:2\nC8|D8|E8|Z2|", None),
    "old decorations": ("+trill+C4 +fermata+D4|+p+E8|", None),
    "continued lines": ("CDEF\\\nGABc|\\ % a remark\nK:G\nF8|\\\nF8|", None),
    "words and symbols": ("CDEF GABc|\nw:la la|la\nW:C|D|\ns: !p! * \nC8|", None),
    "remarks": ("CDEF % some | thing\n% CDE|\nGABc|C8|%end", None),
    "thick barlines": ("[|CDEFGABc|]C8|]", None),
    "repeats": ("|:CDEFGABc::C8:|:D8:||:E8:|\n|:F8:|", None),
    "repeats with many colons": ("|::CDEFGABc::|C8|", None),
    "a repeat that begins at the end": ("CDEFGABc|C8|:|", None),
    "endings": ("|:CDEFGABc|1C8:|2D8||\n|:CDEF [1 GABc:|\n[2D8||", None),
    "endings for several times": ("|:CDEFGABc|[1,3C8:|[2D8:|[4 E8||\n|:CDEFGABc|[1-3C8:|[4D8|]", None),
    "an ending behind a line break": ("|:CDEFGABc|\\\n1 C8:|2 D8||", "|:CDEFGABc|1 C8:|2 D8||"),
    "lengths that stand before their notes": ("CDEF GABc | 4=A2F2 | 62 | G8 | 4", None),
    "parts": ("P:A\n|:C8|D8:|\nP:B\nE8|F8||", None),
    "ties over barlines": ("C8-|C8|[CE]8-|\n[CE]8|c8.-|c8|", None),
    "broken rhythm": ("C>DE<F G>>A c2|C>D[CE]<E {c}F>G z2|", None),
    "tuplets": ("(3CDE (3:2:2C2D (5CDEFG z|(3C2D2E2 (6CDEFGA|", None),
    "accidentals in all octaves": ("^CcC,C|CcC,C|^C4-|C4C4|", None),
    "quarter tones": ("^/C4 _/D4|^3/2C4 C4|", None),
    "a sum as metre": ("[M:2+3/8]CDEFG|[M:(3+2)/8]CDEFG|", None),
    "clefs of voices": ("V:1 clef=treble-8\nC8|\nV:2 clef=treble+8\nC8|", None),
    "empty bars": ("C8| |D8||[|]E8|", None),
    "old line ends": ("CDEF!\nGABc|C8!|", None),
    "signs of other programs": ("CDEF$GA`Bc|C8|\nD8*\nE8|", None),
    "fractions": ("C/D//E/F// G3/2A/4B/4 c3/|", None),
    "text blocks and free text": (
        "C8|\n%%begintext\nD8|\n%%endtext\nE8|\n\nA tune that she had from her uncle.\n",
        None,
    ),
}


@ignore_repairs
@pytest.mark.parametrize(("body", "meaning"), KINDS.values(), ids=KINDS)
def test_interleaved_tunes_are_played_as_before(tmp_path, body, meaning):
    head = "X:1\nT:t\nM:4/4\nL:1/8\nK:C\n"
    found = interleave(head + body + "\n")
    assert is_interleaved(found) and played(found, tmp_path) == played(head + (meaning or body) + "\n", tmp_path)


@pytest.mark.parametrize("metre", ["2/4", "3/4", "3/8", "2+3/8", "(3+2)/8", "C", "C|", "none", ""])
@pytest.mark.parametrize("key", ["C", "C octave=-1", "D exp ^f _b", "HP", "A minor ^g", "Gdor clef=bass"])
def test_unit_lengths_and_keys_are_the_players(tmp_path, metre, key):
    source = f"X:1\nT:t\nM:{metre}\nK:{key}\nFGAB|cdef|\n".replace("M:\n", "")
    assert played(interleave(source), tmp_path) == played(source, tmp_path)


def test_an_octave_named_with_the_key_is_that_of_its_clef():
    for key, clef in (("A min -8va", "treble-8"), ("G clef=bass +8", "bass+8"), ("G octave=1", "treble octave=1")):
        assert f"\nV:1 {clef}\n" in interleave(tune("C|").replace("K:C", f"K:{key}"))


def test_what_of_voices_is_not_read_is_said():
    remarks: list[str] = []
    interleave(tune("V:1 clef=treble-8\nC|\ns:!p!\nV:1 clef=treble-8\nD|\nV:2\nE|\nV:2 octave=1\nF|"), remarks.append)
    assert len(remarks) == 2 and "symbols below the notes" in remarks[0] and "voice 2 changes its octave" in remarks[1]


@pytest.mark.parametrize(
    "unit",
    ["^FGAF", "(3ABc", "A>B", "{fg}a2", '"^Am"A2', "[CEG]4", "!trill!A", "(AB)", "=c_B", "[K:D]FC"],
)
def test_music_without_barlines_is_cut_between_notes(tmp_path, unit):
    remarks = []
    source = f"X:1\nM:none\nL:1/8\nK:C\n{unit}E {(unit + ' DFC') * 30}\n"
    found = interleave(source, remarks.append)
    bars = [line for line in found.splitlines() if line.startswith("[V:")]
    assert len(bars) > 2 and max(map(len, bars)) <= 62 and "cut into" in remarks[0]
    assert is_interleaved(found) and played(found, tmp_path) == played(source, tmp_path)


def long_music(*voices: str) -> str:
    return "X:1\nM:none\nL:1/8\nK:C\n" + "".join(f"V:{number}\n{music}\n" for number, music in enumerate(voices, 1))


@pytest.mark.parametrize(
    ("source", "ends"),
    [
        (long_music("CDEF GABc\nd e f g a b c d\nCDEF GABc dcBA GFED CDEF GABc C8 E8 G8"), ["c|", "d|", "G8|"]),
        (long_music("CDEF GABc \\\nd e f g !breath!a2 b2 CDEF GABc dcBA GFED HC4 E8 G8 c8"), ["a2|", "C4|", "c8|"]),
        (long_music("CDEF GABc (dcBA) cBAG FEDC CDEF GABc dcBA (GABc dcBA) (CDEF) C2 D2"), ["A)|", "D2|"]),
        (long_music("CDEF !fermata!G4 " * 6, "C,4 (E,2D,2) " * 6), ["G4|"] * 6),
        (long_music("CDEF G^FED !fermata!C4 " * 6, f"[C,G,]12{' [C,G,]12' * 5}", "C,72"), ["C4|"] * 6),
        (long_music("CDEF GABc " * 9, "C,144"), ["|"] * 2),
        (long_music("CDEF (3GAB c>d " * 9, "E2F3 (3CDE " * 5), ["|"] * 3),
        (long_music("CDEF GABc " * 9).replace("M:none", "M:4/4"), ["|"] * 2),
        (long_music("CDEF G^FBc " * 9 + "|F2" + " GABc" * 20 + ":|"), ["|", "|", "|", ":|"]),
        (long_music("^CDEF GABC (CDEF) [K:D]cdef [K:Eb]BAGE " * 4), ["F)|"] * 4 + ["E|"]),
    ],
)
def test_music_without_barlines_is_cut_where_phrases_end(tmp_path, source, ends):
    remarks: list[str] = []
    found = interleave(source, remarks.append)
    bars = [bar for line in found.splitlines() if line.startswith("[V:") for bar in re.findall(r"\[V:.*?\|", line)]
    assert [
        bar[-len(end) :] for bar, end in zip([b for b in bars if b.startswith("[V:1]")], ends, strict=True)
    ] == ends
    assert max(map(len, bars)) <= 62 and remarks[0] == f"music without barlines, cut into {len(ends)} bars"
    assert is_interleaved(found) and played(found, tmp_path) == played(source, tmp_path)


@pytest.mark.parametrize("body", ["C/D/^E/^F/" * 4 + "C/4" * 16 + "|C8|", "C4 & " + "CDEF " * 20])
def test_long_bars_of_a_metre_and_overlays_are_not_cut(body):
    remarks: list[str] = []
    assert len(rows(tune(body, "M:4/4\n" if "&" not in body else ""))) == 2 - ("&" in body) and not remarks


def test_short_music_without_barlines_is_one_bar():
    remarks = []
    assert interleave(tune("CDEF"), remarks.append).endswith("[V:1]CDEF|\n") and not remarks
