"""Humdrum, MEI and MuseScore files, against music21's own readers of them."""

import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest

from clamp3.features.reading import read_content
from clamp3.formats import other_scores
from clamp3.formats.musicxml import abc_to_musicxml
from clamp3.formats.other_scores import humdrum_to_abc, mei_to_abc
from clamp3.formats.registry import FORMATS, extensions, format_of
from conftest import ROOT, run

needs_converter21 = pytest.mark.skipif(
    find_spec("converter21") is None, reason="Humdrum and MEI take converter21, the extra `scores`"
)

KERN = """!!!COM: Nobody, in particular
!!!OTL: Two staves, three voices, a tie, a tuplet
**kern\t**kern\t**dynam
*clefF4\t*clefG2\t*
*k[f#]\t*k[f#]\t*
*M3/4\t*M3/4\t*
=1-\t=1-\t=1-
2.GG\t4g\tp
.\t8a\t.
.\t8b\t.
.\t4cc#\t.
=2\t=2\t=2
*\t*^\t*
2D 2F#\t[4dd\t2f#\t.
.\t4dd]\t.\t.
4r\t12g\t4e-\t.
.\t12a\t.\t.
.\t12b\t.\t.
*\t*v\t*v\t*
=3\t=3\t=3
4.C\t4r\tf
.\t4g 4b\t.
8BB-\t.\t.
4AA\t4een\t.
==\t==\t==
*-\t*-\t*-
"""

MEI = """<?xml version="1.0" encoding="UTF-8"?>
<mei xmlns="http://www.music-encoding.org/ns/mei" meiversion="4.0.0">
 <meiHead><fileDesc><titleStmt><title>Two staves</title></titleStmt><pubStmt/></fileDesc></meiHead>
 <music><body><mdiv><score>
  <scoreDef meter.count="3" meter.unit="4" key.sig="1s"><staffGrp>
   <staffDef n="1" lines="5" clef.shape="G" clef.line="2"/><staffDef n="2" lines="5" clef.shape="F" clef.line="4"/>
  </staffGrp></scoreDef>
  <section>
   <measure n="1"><staff n="1"><layer n="1"><note pname="g" oct="4" dur="4"/><beam><note pname="a" oct="4" dur="8"/>
     <note pname="b" oct="4" dur="8" accid="f"/></beam><note pname="c" oct="5" dur="4" accid="s"/></layer></staff>
    <staff n="2"><layer n="1"><note pname="g" oct="2" dur="2" dots="1"/></layer></staff></measure>
   <measure n="2"><staff n="1"><layer n="1"><chord dur="2"><note pname="d" oct="5"/>
     <note pname="f" oct="4" accid.ges="s"/></chord><rest dur="4"/></layer></staff>
    <staff n="2"><layer n="1"><rest dur="4"/><note pname="d" oct="3" dur="2"/></layer></staff></measure>
  </section></score></mdiv></body></music></mei>
"""


@pytest.fixture
def in_a_worker(monkeypatch):
    """The converters' route in worker processes, which start no further ones."""
    monkeypatch.setattr("multiprocessing.parent_process", lambda: True)


def notes(score) -> list[tuple[Fraction, int]]:
    """Onset in quarters and pitch of all notes of a music21 score that no tie leads to."""
    return sorted(
        (Fraction(note.getOffsetInHierarchy(score)), pitch.midi)
        for note in score.recurse().notes
        for pitch, tie in [(one.pitch, one.tie) for one in (note.notes if note.isChord else [note])]
        if tie is None or tie.type == "start"
    )


@needs_converter21
@pytest.mark.parametrize(
    ("text", "convert", "kind"), [(KERN, humdrum_to_abc, "humdrum"), (MEI, mei_to_abc, "mei")], ids=["krn", "mei"]
)
@pytest.mark.filterwarnings("ignore")
def test_notes_are_those_of_music21s_own_reader(in_a_worker, text, convert, kind):
    from music21 import converter

    remarks: list[str] = []
    abc = convert(text.encode(), remarks.append)
    found = converter.parse(abc_to_musicxml(abc), format="musicxml", forceSource=True)
    judge = converter.parse(text, format=kind, forceSource=True)
    assert notes(found) == notes(judge) and len(notes(judge)) > 7 and remarks == []


@needs_converter21
def test_files_are_read_by_their_extensions_and_nothing_is_printed(tmp_path, capfd):
    for name, text in (("a.KRN", KERN), ("a.mei", MEI)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_content(tmp_path / name, lambda _: None).count("[V:1]") >= 2
        assert format_of(tmp_path / name).modality == "symbolic"
    assert {".krn", ".mei", ".mscz", ".mscx"} < set(extensions(FORMATS))
    assert capfd.readouterr() == ("", "")


@needs_converter21
@pytest.mark.parametrize(
    ("data", "convert", "why"),
    [
        (b"", humdrum_to_abc, "not Humdrum with notes"),
        (b"a letter\n", humdrum_to_abc, "not Humdrum with notes"),
        (b"**kern\n4r\n*-\n", humdrum_to_abc, "no notes"),
        (b"<score-partwise/>", mei_to_abc, "not MEI: its root is <score-partwise>"),
        (b"<mei", mei_to_abc, "not whole XML"),
        (b'<!DOCTYPE mei [<!ENTITY a "b">]><mei>&a;</mei>', mei_to_abc, "entities"),
        (b"<mei><music/></mei>", mei_to_abc, "."),
    ],
)
def test_what_holds_no_score_is_refused(in_a_worker, data, convert, why, capfd):
    with pytest.raises(ValueError, match=why):
        convert(data)
    assert capfd.readouterr() == ("", "")


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(other_scores, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'^reading it takes converter21: pip install "clamp3\[scores\]"$'):
        humdrum_to_abc(KERN.encode())


@pytest.mark.parametrize(
    ("name", "command"), [("a b.mscz", "mscore -o 'a b.mxl' 'a b.mscz'"), ("x.MSCX", "mscore -o x.mxl x.MSCX")]
)
def test_a_musescore_file_is_named_with_the_way_out(tmp_path, name, command):
    path: Path = tmp_path / name
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="convert it with MuseScore first") as error:
        read_content(path, print)
    assert f"({command})" in str(error.value)


@needs_converter21
def test_a_folder_of_all_kinds_is_converted_by_the_command(tmp_path):
    kinds = {"a.krn": KERN, "b.mei": MEI, "c.mscz": "a score"}
    for name, text in kinds.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    script = ROOT / "preprocessing" / "abc" / "batch_xml2abc.py"
    run(sys.executable, script, tmp_path / "in", tmp_path / "out", "--workers", 1, check=1)
    failures = (tmp_path / "out" / "failures.jsonl").read_text()
    assert failures.count("\n") == 1 and "mscore -o c.mxl c.mscz" in failures
    for name, convert in (("a.krn", humdrum_to_abc), ("b.mei", mei_to_abc)):
        converted = (tmp_path / "out" / name).with_suffix(".abc")
        assert converted.read_text(encoding="utf-8") == convert(kinds[name].encode())
