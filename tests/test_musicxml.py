"""MusicXML to ABC: every note comes out, whatever else the score holds."""

import contextlib
import gc
import inspect
import io
import random
import re
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from xml.etree import ElementTree

import pytest

from clamp3.errors import RepairWarning, ignore
from clamp3.formats import musicxml
from clamp3.formats.abc import interleave
from clamp3.formats.musicxml import abc_to_musicxml, musicxml_to_abc
from clamp3.formats.musicxml_cleaning import clean
from clamp3.formats.musicxml_time import first_below, number, text_below
from clamp3.formats.mxl import extracted, parsed
from conftest import ROOT, run
from corpus import corpus_folder
from golden_model import golden_json
from score_readers import abc_notes, musicxml_notes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # abctoolkit's, of its pyparsing
CASES = golden_json("abc.json")
SCORES = ROOT / "tests" / "cases" / "scores"
ignore_repairs = pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
CONTAINER = '<container><rootfiles><rootfile full-path="{}"/></rootfiles></container>'


def tune(body: str, head: str = "") -> str:
    return f"X:1\nT:A title\n{head}L:1/8\nK:C\n{body}\n"


def rows(abc: str) -> list[str]:
    return [line for line in interleave(abc).splitlines() if line.startswith("[V:")]


def archive(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name.replace("__", "/").replace("META/", "META-INF/"), content)
    return data.getvalue()


# ---------- MusicXML ----------


@pytest.fixture(scope="module")
def score() -> bytes:
    """The XML of a chorale."""
    return extracted((corpus_folder() / CASES[0]["corpus_path"]).read_bytes())


def test_archives_may_name_their_score_as_they_like(score):
    expected = CASES[0]["standard_abc"]
    for name in ("score.musicxml", "sub__愛.XML", "META__score.xml", "no extension"):
        inner = name.replace("__", "/").replace("META/", "META-INF/")
        data = archive(**{"cover.xml": b"<no/>", name: score, "META__container.xml": CONTAINER.format(inner).encode()})
        assert musicxml_to_abc(data) == expected
    with pytest.warns(RepairWarning, match="no META-INF/container.xml"):
        assert musicxml_to_abc(archive(**{"score.xml": score})) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_xml_is_read_as_it_is_encoded(score, encoding):
    text = re.sub(r"^<\?xml.*?\?>", f'<?xml version="1.0" encoding="{encoding}"?>', score.decode("utf-8"), count=1)
    text = text.replace("Soprano", "Discantus é")
    assert 'nm="Discantus é"' in musicxml_to_abc(text.encode(encoding))


def test_a_doctype_is_no_reason_to_refuse(score):
    doctype = (
        b'<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 3.0 Partwise//EN" "http://localhost:9/p.dtd">'
    )
    data = re.sub(rb"<!DOCTYPE.*?>", b"", score, flags=re.DOTALL).replace(
        b"<score-partwise", doctype + b"<score-partwise", 1
    )
    assert doctype in data and musicxml_to_abc(data) == CASES[0]["standard_abc"]


def timewise(score: bytes) -> bytes:
    """`score`, which has measures in parts, with parts in measures."""
    root = ElementTree.fromstring(score)
    root.tag = "score-timewise"
    measures: list[ElementTree.Element] = []
    for part in root.findall("part"):
        root.remove(part)
        for index, measure in enumerate(part):
            if index == len(measures):
                measures.append(ElementTree.SubElement(root, "measure", measure.attrib))
            ElementTree.SubElement(measures[index], "part", part.attrib).extend(measure)
    return ElementTree.tostring(root, encoding="utf-16")


@ignore_repairs
@pytest.mark.parametrize(
    "name",
    [
        "bach/bwv404.mxl",
        "beach/prayer_of_a_tired_child.musicxml",  # a piano's two staves
        "haydn/opus1no1/movement4.mxl",  # repeats
        "bach/bwv8.6.mxl",  # endings
    ],
)
def test_parts_in_measures_are_read_as_measures_in_parts(tmp_path, name):
    partwise = extracted((corpus_folder() / name).read_bytes())
    expected = musicxml_to_abc(partwise)
    assert musicxml_to_abc(timewise(partwise)) == expected
    (tmp_path / "a.mxl").write_bytes(archive(**{"score.xml": timewise(partwise)}))
    assert musicxml_to_abc(tmp_path / "a.mxl") == expected


def test_a_part_that_some_measures_lack_stays_in_step(score):
    root = ElementTree.fromstring(timewise(score))
    for measure, part in ((1, 2), (3, 0)):
        found = root.findall("measure")[measure]
        found.remove(found.findall("part")[part])
    expected = [row.split("[V:")[1:] for row in rows(musicxml_to_abc(score))]
    expected[1][2], expected[3][0] = "3]X|", "1]X|"
    assert [row.split("[V:")[1:] for row in rows(musicxml_to_abc(ElementTree.tostring(root)))] == expected


def bomb(_score: bytes) -> bytes:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    return f'<!DOCTYPE score-partwise [<!ENTITY e0 "boom">{entities}]><score-partwise>&e11;</score-partwise>'.encode()


DAMAGES = {
    "empty.xml": (lambda score: b"", "empty file"),
    "text.xml": (lambda score: b"X:1\nK:C\nC|\n", "not whole XML"),
    "truncated.xml": (lambda score: score[: len(score) // 2], "not whole XML"),
    "page.musicxml": (lambda score: b"<html><p/></html>", "not MusicXML: its root is <html>"),
    "entities.xml": (bomb, "declares XML entities"),
    "external.xml": (
        lambda score: b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><score-partwise>&e;</score-partwise>',
        "declares XML entities",
    ),
    "no_notes.xml": (lambda score: re.sub(rb"<note.*?</note>", b"", score, flags=re.DOTALL), "no notes"),
    "encoding.xml": (lambda score: b'<?xml version="1.0" encoding="klingon"?><score-partwise/>', "not whole XML"),
    "octave.xml": (lambda score: re.sub(rb"<octave>\d", b"<octave>99999999", score), "an octave of three digits"),
    "words.xml": (
        lambda score: score.replace(b"<duration>", b"<duration>some "),
        "cannot be converted to ABC: ValueError",
    ),
    "cut.mxl": (lambda score: archive(**{"a.xml": score})[:500], "not a whole .mxl archive"),
    "flipped.mxl": (
        lambda score: archive(**{"a.xml": score})[:200] + b"\xff" * 20 + archive(**{"a.xml": score})[220:],
        "not a whole .mxl archive",
    ),
    "no_container.mxl": (lambda score: archive(**{"a.txt": score}), "it has no META-INF/container.xml"),
    "no_root.mxl": (lambda score: archive(**{"META__container.xml": b"<container/>"}), "names no score"),
    "missing.mxl": (lambda score: archive(**{"META__container.xml": CONTAINER.format("b.xml").encode()}), "no item"),
    "zeros.mxl": (lambda score: archive(**{"a.xml": bytes(101 << 20)}), "more than 100 MB"),
}


@ignore_repairs
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_scores_are_refused_in_one_line(score, name):
    damage, reason = DAMAGES[name]
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        musicxml_to_abc(damage(score))
    assert "\n" not in str(raised.value)


@ignore_repairs
def test_conversions_leave_no_trace_on_the_next(score, capfd):
    other = tune("U:T=!fermata!\nTC D|\nV:9\nTE F|")
    plain = tune("TC D|E F|")
    before = abc_to_musicxml(plain), musicxml_to_abc(score)
    abc_to_musicxml(other)
    with pytest.raises(ValueError, match="cannot be converted"):
        musicxml_to_abc(DAMAGES["words.xml"][0](score))
    musicxml_to_abc(corpus_folder() / "haydn/opus1no1/movement5.mxl")
    assert (abc_to_musicxml(plain), musicxml_to_abc(score)) == before
    assert capfd.readouterr() == ("", "")


def test_what_stops_the_converter_is_left_out_with_a_warning():
    with pytest.warns(RepairWarning, match="read without lyric"):
        assert "\nV:1" in musicxml_to_abc(corpus_folder() / "schubert/Lindenbaum.xml")


# ---------- every note, at its place ----------


def sounding(data: bytes) -> list[list[tuple[Fraction, float, Fraction]]]:
    """The (onset, pitch, duration) of each part's notes, as music21 reads them, in quarters."""
    from music21 import converter

    parts = []
    for part in converter.parseData(extracted(data), format="musicxml").parts:
        parts.append(
            sorted(
                (Fraction(element.getOffsetInHierarchy(part)), note.pitch.ps, Fraction(element.quarterLength))
                for element in part.recurse().notes
                for note in getattr(element, "notes", [element])
                if hasattr(note, "pitch") and "Harmony" not in element.classes
            )
        )
    return [part for part in parts if part]


def read_back(data: bytes) -> list[list[tuple[Fraction, float, Fraction]]]:
    return sounding(abc_to_musicxml(interleave(musicxml_to_abc(data))).encode())


METRE = "<time><beats>4</beats><beat-type>4</beat-type></time>"


def measures(*contents: str, head: str = "<key><fifths>0</fifths></key>") -> bytes:
    """A score of one part; its measures, in eighths of a 4/4 metre."""
    first = f"<attributes><divisions>2</divisions>{head}{METRE}</attributes>"
    bodies = "".join(
        f'<measure number="{number}">{first if number == 1 else ""}{content}</measure>'
        for number, content in enumerate(contents, 1)
    )
    return (
        '<score-partwise><part-list><score-part id="P1"><part-name/></score-part></part-list>'
        f'<part id="P1">{bodies}</part></score-partwise>'
    ).encode()


def quarter(step: str, more: str = "", octave: int = 5) -> str:
    return (
        f"<note><pitch><step>{step}</step><octave>{octave}</octave></pitch><duration>2</duration>"
        f"<voice>1</voice><type>quarter</type>{more}</note>"
    )


BAR = "".join(map(quarter, "CDEF"))
CASE_PITCHES = {
    "voice_names.musicxml": 2,
    "compound_meter.musicxml": 10,
    "metric_modulation.musicxml": 4,
    "octave_shift_continue.musicxml": 8,
    "pedal_change.musicxml": 4,
    "lyric_newline.musicxml": 14,
    "drum_octave.musicxml": 5,
}


@ignore_repairs
@pytest.mark.parametrize("name", CASE_PITCHES)
def test_every_note_of_the_cases_comes_out(name):
    written = abc_to_musicxml(interleave(musicxml_to_abc(SCORES / name)))
    root = ElementTree.fromstring(written.encode())
    assert sum(note.find("rest") is None for note in root.iter("note")) == CASE_PITCHES[name]


@ignore_repairs
def test_a_metre_is_read_as_numbers_and_never_run(tmp_path):
    """abc2xml evaluates it as Python."""
    written = tmp_path / "written"
    for metre in (
        f"open({str(written)!r},'w')/4",
        f"__import__('os').mkdir({str(written)!r})/4",
        "-1e400/4",
        "9**9**9/4",
    ):
        with pytest.warns(RepairWarning, match="4/4 assumed"):
            abc_to_musicxml(f"X:1\nL:1/8\nM:{metre}\nK:C\nCDEF|\n")
    assert not written.exists()
    assert "<beats>2+3</beats>" in abc_to_musicxml("X:1\nL:1/8\nM:2+3/8\nK:C\nCDEFG|\n")


@pytest.mark.parametrize("name", ["empty_bar_two_parts", "no_divisions", "wedge_stop_other_part"])
def test_notes_keep_their_places(name):
    data = (SCORES / f"{name}.musicxml").read_bytes()
    back = read_back(data)
    if name == "empty_bar_two_parts":
        assert back[1][0][0] == 8
    elif name == "no_divisions":
        assert back == [[(0, 72, 1), (1, 74, 1), (2, 76, 2)]]
    else:
        assert back == [[(0, 72, 2), (2, 74, 2)], [(0, 60, 2), (2, 62, 2)]]
    assert "x495" not in musicxml_to_abc(data)


@ignore_repairs
def test_a_tie_to_another_voice_keeps_the_pitch():
    back = read_back((SCORES / "tie_across_voices.musicxml").read_bytes())
    assert [pitch for part in back for _, pitch, _ in part] == [66, 66]


def test_quarter_tones_are_kept():
    source = (SCORES / "microtone_alter.musicxml").read_bytes()
    abc = musicxml_to_abc(source)
    assert [pitch for _, _, pitch in abc_notes(abc)] == [72.5, 73.5, 74.5, 77.5]
    assert [pitch for _, pitch, _ in read_back(source)[0]] == [72.5, 73.5, 74.5, 77.5]
    with pytest.warns(RepairWarning, match="rounded to quarter tones"):
        musicxml_to_abc(source.replace(b"<alter>0.5", b"<alter>0.3"))


@pytest.mark.parametrize("name", ["S.XML", "sub\\score.xml"])
def test_the_only_score_of_an_archive_is_read(name):
    score = measures(BAR)
    data = archive(**{name: score, "__MACOSX/._s.xml": b"", "META__container.xml": CONTAINER.format("b.xml").encode()})
    with pytest.warns(RepairWarning, match="its only score was read"):
        assert musicxml_to_abc(data) == musicxml_to_abc(score)
    with pytest.warns(RepairWarning, match="its only score was read"):
        assert musicxml_to_abc(SCORES / "w3c_container.mxl")


def test_xml_in_another_encoding_than_it_declares_is_read_with_a_remark():
    text = '<?xml version="1.0" encoding="{}"?>' + measures(BAR).decode().replace(
        "<part-name/>", "<part-name>é</part-name>"
    )
    for declared, real in (("utf-8", "latin-1"), ("utf-16", "utf-8"), ("utf-8", "utf-16")):
        with pytest.warns(RepairWarning, match="not in the encoding"):
            assert 'nm="é"' in musicxml_to_abc(text.format(declared).encode(real))


def direction(kind: str) -> str:
    return f"<direction><direction-type>{kind}</direction-type></direction>"


INSERTED = [
    *(
        direction(f'<{kind} type="{type_}"/>')
        for kind in ("wedge", "pedal", "octave-shift", "dashes", "bracket", "x")
        for type_ in ("start", "stop", "continue", "change", "crescendo", "sostenuto", "discontinue", "resume")
    ),
    *(
        direction(f"<{kind}/>")
        for kind in (
            "rehearsal",
            "segno",
            "coda",
            "words",
            "symbol",
            "dynamics",
            "damp",
            "damp-all",
            "eyeglasses",
            "harp-pedals",
            "string-mute",
            "scordatura",
            "image",
            "principal-voice",
            "percussion",
            "accordion-registration",
            "staff-divide",
            "other-direction",
            "metronome",
        )
    ),
    direction(
        "<metronome><beat-unit>quarter</beat-unit><beat-unit-dot/><per-minute>ca. 60-72</per-minute></metronome>"
    ),
    direction("<metronome><beat-unit>quarter</beat-unit><beat-unit>half</beat-unit></metronome>"),
    direction('<words default-y="high">a&#10;b</words>'),
    "<print new-system='yes'/>",
    "<sound tempo='fast'/>",
    "<listening><sync type='none'/></listening>",
    "<grouping type='start'/>",
    "<bookmark id='a'/>",
    "<link/>",
    "<figured-bass><figure/></figured-bass>",
    "<harmony><root><root-step>C</root-step></root><kind text='a&#10;B'>a-b-c</kind></harmony>",
    "<harmony><numeral><numeral-root>1</numeral-root></numeral><kind>major</kind><staff>3</staff></harmony>",
    "<barline location='middle'><bar-style>dashed</bar-style></barline>",
    "<barline location='left'><ending number='1 and&#10;2' type='start'/></barline>",
    "<attributes><measure-style><measure-repeat type='stop'/></measure-style></attributes>",
    "<attributes><measure-style number='3'><slash type='start'/></measure-style></attributes>",
    "<attributes><staff-details number='x'><staff-lines>five</staff-lines></staff-details></attributes>",
    "<attributes><key><fifths>99</fifths></key><directive>Allegro</directive></attributes>",
    "<attributes><clef number='4'><sign>G</sign><line>2</line></clef></attributes>",
    "<unknown a='b'><note/></unknown>",
]


@ignore_repairs
@pytest.mark.parametrize("seed", range(10))
def test_what_the_notes_do_not_need_changes_none_of_them(seed):
    rng = random.Random(seed)
    plain = [
        [quarter(step) for step in "CDEF"],
        [quarter(step) for step in "GABC"],
        [quarter(step) for step in "EGEC"],
    ]
    expected = sounding(measures(*("".join(bar) for bar in plain)))
    for first in range(seed, len(INSERTED), 10):
        for bar in range(3):
            bars = [list(bar) for bar in plain]
            bars[bar].insert(rng.randrange(5), INSERTED[first])
            assert read_back(measures(*("".join(bar) for bar in bars))) == expected, INSERTED[first]


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("<duration>2<", "<duration>2000000000<"),
        ("<duration>2<", "<duration>999999999<"),
        ("<octave>5<", "<octave>300000000<"),
        ("<octave>5<", "<octave><!-- x -->300000000<"),
    ],
)
def test_endless_values_are_refused(text, wrong):
    data = measures(BAR).decode().replace(text, wrong, 1)
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(ValueError, match="duration|octave"):
            musicxml_to_abc(f'<?xml version="1.0" encoding="{encoding}"?>{data}'.encode(encoding))


def test_endless_voices_are_refused_and_endless_verses_are_not():
    many = "".join(quarter("C").replace("<voice>1", f"<voice>{voice}") for voice in range(5000))
    with pytest.raises(ValueError, match="voices"):
        musicxml_to_abc(measures(many))
    with pytest.warns(RepairWarning, match="lyric"):
        musicxml_to_abc(measures(quarter("C", '<lyric number="20201128"><text>la</text></lyric>')))


@ignore_repairs
def test_bytes_flipped_at_random_do_no_more_than_fail(score):
    rng = random.Random(0)
    for _ in range(30):
        data = bytearray(score)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            assert interleave(musicxml_to_abc(bytes(data)))


def test_the_round_trip_is_measured(tmp_path):
    command = (sys.executable, ROOT / "benchmarks" / "roundtrip.py", "--limit", 3)
    assert "3 of 3 (100.0%) keep every pitch and duration" in run(*command).stdout
    run(*command, "--time_limit", 0, "--workers", 1, "--markdown", tmp_path / "table.md")
    assert tmp_path.joinpath("table.md").read_text().count(" | not compared | takes longer than 0 s") == 3


def test_a_tie_to_another_pitch_binds_nothing():
    tied = (
        quarter("G").replace("<octave>", "<alter>1</alter><octave>").replace("<voice>", '<tie type="start"/><voice>')
    )
    data = measures(tied + quarter("G") + quarter("E") * 2)
    with pytest.warns(RepairWarning, match="ties to a note of another pitch"):
        assert read_back(data) == [[(0, 80, 1), (1, 79, 1), (2, 76, 1), (3, 76, 1)]]


def test_a_part_without_measures_is_passed_over():
    clef = "<clef><sign>G</sign><line>2</line><clef-octave-change>-1</clef-octave-change></clef>"
    data = measures(BAR, head=clef).replace(b"</part>", b'</part><part id="P2"/>')
    with pytest.warns(RepairWarning, match="part-list"):
        assert [pitch for part in read_back(data) for _, pitch, _ in part] == [72, 74, 76, 77]


def test_grace_notes_at_a_parts_end_are_closed():
    grace = quarter("C").replace("<duration>2</duration>", "").replace("<note>", "<note><grace/>")
    abc = musicxml_to_abc(measures(BAR + grace))
    assert abc.count("{") == abc.count("}") == 1


def test_alter_decides_where_the_accidental_says_otherwise_and_the_accidental_where_there_is_none():
    cases = ("1", "natural", 80), ("1", "slash-flat", 80), ("", "sharp", 80), ("0", "sharp", 79)
    for alter, accidental, pitch in cases:
        altered = f"<alter>{alter}</alter>" if alter else ""
        source = quarter("G", f"<accidental>{accidental}</accidental>").replace("<octave>", f"{altered}<octave>")
        assert read_back(measures(source + quarter("E") * 3))[0][0] == (0, pitch, 1)


@pytest.mark.parametrize(
    "body",
    [
        "_e2- _e2 e2 e2|e8|",  # an accidental that a tie repeats holds up to the barline
        "c/16 d/16 e/32 f3/32 g29/4|c8|",  # shorter than a 64th
        "^/c2 _/d2 ^3/2F2 c2|c8|",  # microtones
        "[^/ce]2 [ce]2 z4|",
        '"^50%"c2 "^a \\"b\\" c"d2 e4|c8|',  # text that is no comment and no end of text
        "(9:4:3cde (3:2:2ed f2 g2 z2/3|c8|",
    ],
)
def test_abc_goes_to_musicxml_note_for_note(body):
    abc = tune(body)
    assert musicxml_notes(abc_to_musicxml(abc).encode()) == abc_notes(abc)


# ---------- as fast as it is ----------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "utf-16-be", "iso-8859-1", "cp1251", "cp037", "utf-7", "utf-32", "shift_jis"]
)
def test_entities_are_refused_in_every_encoding(encoding):
    declared = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE score-partwise [<!ENTITY e "C">]>'
    data = declared + measures(BAR).decode().replace("<step>C", "<step>&e;", 1)
    with pytest.raises(ValueError, match="declares XML entities|multi-byte encodings|not whole XML"):
        musicxml_to_abc(data.encode(encoding))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ('<!DOCTYPE score-partwise SYSTEM "a.dtd"><score-partwise>&e;</score-partwise>', "undefined entity"),
        ("<score-partwise><x:part/></score-partwise>", "unbound prefix"),
        (f"<score-partwise>{'<a>' * 2000}{'</a>' * 2000}</score-partwise>", "elements within elements"),
    ],
)
def test_xml_that_parses_only_in_part_is_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        musicxml_to_abc(wrong.encode())


def asked(name: str) -> set[str]:
    """The paths that a function of xml2abc asks notes for."""
    source = inspect.getsource(getattr(musicxml.xml2abc.Parser, name))
    return set(re.findall(r"\b(?:n|note|nttn)\s*\.\s*find\w*\s*\(\s*'([^']+)'", source))


def test_notes_by_path_answer_as_elements_do():
    root = parsed((corpus_folder() / "beach/prayer_of_a_tired_child.musicxml").read_bytes())
    twice = ElementTree.fromstring(
        "<note><pitch><step/></pitch><pitch><alter>1</alter><step>C</step></pitch><tie type='stop'/><tie/><notations/>"
        "<notations><tied type='stop'/><slur/><slur/></notations><notations><tied/></notations></note>"
    )
    paths = set.union(*map(asked, ("doNote", "ntAbc", "doNotations"))) | set(musicxml.xml2abc.note_ornamentation_map)
    assert {"voice", "pitch/step", "ornaments/tremolo"} < paths and all(path.count("/") < 2 for path in paths)
    for element in (twice, *list(root.iter("note"))[:100], *list(root.iter("notations"))[:100]):
        by_path = musicxml._ByPath(element)
        for path in paths:
            assert by_path.find(path) is element.find(path)
            assert by_path.findtext(path) == element.findtext(path)
            assert by_path.findtext(path, "1") == element.findtext(path, "1")
            assert by_path.findall(path) == element.findall(path)
            if "/" in path:
                assert first_below(element, *path.split("/")) is element.find(path)
                assert text_below(element, *path.split("/")) == element.findtext(path)


@ignore_repairs
@pytest.mark.parametrize("path", sorted(SCORES.glob("*.m*l")), ids=lambda path: path.stem)
def test_the_converter_reads_a_clean_tree_as_it_reads_its_text(path):
    root = parsed(extracted(path.read_bytes()))
    clean(root)
    copy = ElementTree.fromstring(ElementTree.tostring(root))
    assert musicxml._written(root) == musicxml._written(copy)


@pytest.mark.parametrize("collects", [True, False])
def test_a_score_leaves_no_garbage_and_the_collector_as_it_was(collects):
    """Read by threads too, whole or damaged, since that turns it off for the process meanwhile."""
    score = SCORES.joinpath("no_divisions.musicxml").read_bytes()

    def read(data):
        with contextlib.suppress(ValueError):
            musicxml_to_abc(data, ignore)

    read(score)
    gc.collect()
    try:
        gc.disable()
        read(score)
        assert gc.collect() == 0
        if collects:
            gc.enable()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, 20 * [score, score[:200]]))
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_whole_numbers_are_int_and_others_exact():
    assert [(number(text), type(number(text))) for text in ("+12 ", "4.0", "7/2", "-.5")] == [
        (12, int),
        (4, int),
        (Fraction(7, 2), Fraction),
        (Fraction(-1, 2), Fraction),
    ]
    assert {number(text) for text in (None, "", "x", "1e9", "1/0", "9" * 40)} == {None}
