"""What a collection needs every day: several queries, diverse answers, filters, files like one, duplicates."""

import csv
import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.formats.midi import mtf_to_midi
from clamp3.io.files import content_hash
from clamp3.search.answering import Question, search_collection
from clamp3.search.collection import load_collection
from clamp3.search.combining import combined_query, diverse
from clamp3.search.filters import Condition, File, Filter
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from clamp3.search.ranking import normalized
from conftest import CODE, run_forked
from corpus import folk_tunes
from notes import read_melody, to_mtf

HIDDEN = 8
TINY = ("--variant", "tiny")


# ---------- several queries, diverse answers ----------


def unit(count: int, seed: int) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(count, HIDDEN)))


def test_several_queries_rank_by_the_sum_of_their_cosines():
    queries, files = unit(5, 0), unit(200, 1)
    one = combined_query(3 * queries[0], queries[1:3], queries[3:], weight=0.25)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    cosines = files @ queries.T
    wanted = cosines[:, :3].sum(axis=1) - 0.25 * cosines[:, 3:].sum(axis=1)
    assert np.argsort(-(files @ one)).tolist() == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(combined_query(queries[0]), queries[0], atol=1e-6)
    with pytest.raises(UserError, match="cancel each other out"):
        combined_query(queries[0], [], [2 * queries[0]], weight=1)
    with pytest.raises(UserError, match="different widths"):
        combined_query(queries[0], [np.ones(HIDDEN + 1)])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_diverse_answers_are_those_of_the_definition(share):
    """Against a plain loop over the definition of maximal marginal relevance."""
    files, query = unit(40, 2), unit(1, 3)[0]
    cosines = files @ query
    chosen: list[int] = []
    for _ in range(12):
        left = [index for index in range(40) if index not in chosen]
        worth = [
            (1 - share) * cosines[i] - share * max(files[i] @ files[j] for j in chosen) if chosen else cosines[i]
            for i in left
        ]
        chosen.append(left[int(np.argmax(worth))])
    assert diverse(cosines, files, 12, share).tolist() == chosen
    assert sorted(diverse(cosines, files, 100, share).tolist()) == list(range(40))
    with pytest.raises(ValueError, match="from 0 to 1"):
        diverse(cosines, files, 3, 1.5)


# ---------- filters ----------

FILES = [
    File(Path("/a.abc"), "symbolic", "1", {"collection": "Essen", "year": "1850"}),
    File(Path("/b.MID"), "symbolic", "2", {"collection": "O'Neill's", "year": "1903.0"}),
    File(Path("/c.mtf"), "symbolic", "3", {"collection": "Essen", "year": "unknown", "a=b": "yes"}),
    File(Path("/d.mxl"), "symbolic", "4", {}),
    File(Path("/e.wav"), "audio", "5", {"collection": "", "year": 1850}),
    File(Path("/f.txt"), "text", "6", {"collection": "愛 = <3"}),
    File(Path("/g.npy"), "feature", "7", {}),
    File(Path("/h.npy"), "audio", "8", {}),
]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "abcdefgh"),
        ({"kind": "score"}, "ad"),
        ({"kind": "midi"}, "bc"),
        ({"kind": "audio"}, "eh"),
        ({"kind": "text"}, "f"),
        ({"modality": "symbolic", "kind": "text"}, ""),
        ({"where": ["collection=Essen"]}, "ac"),
        ({"where": [" collection = Essen "]}, "ac"),
        ({"where": ["collection!=Essen"]}, "bdefgh"),
        ({"where": ["collection="]}, "degh"),
        ({"where": ["collection!="]}, "abcf"),
        ({"where": ["collection=愛 = <3"]}, "f"),
        ({"where": ["year=1850"]}, "ae"),
        ({"where": ["year=1903"]}, "b"),
        ({"where": ["year<1900"]}, "ae"),
        ({"where": ["year>=1903"]}, "b"),
        ({"where": ["year=unknown"]}, "c"),
        ({"where": ["a=b=yes"]}, "c"),
        ({"where": ["collection=Essen", "year<=1850"]}, "a"),
        ({"but": frozenset("138")}, "bdefg"),
    ],
)
def test_filters_let_through_what_they_say(options, found):
    options = {name: tuple(value) if name == "where" else value for name, value in options.items()}
    passed = Filter(**options).passed(FILES)
    assert "".join(file.path.stem for file, passes in zip(FILES, passed, strict=True) if passes) == found


@pytest.mark.parametrize(("condition", "found"), [("id={}7", [True, False]), ("id>{}7", [False, True])])
def test_long_numbers_are_told_apart(condition, found):
    """Those that are one as floating-point numbers."""
    files = [File(Path("a"), "text", "", {"id": f"1234567890123456{digit}"}) for digit in "78"]
    assert Filter(where=(condition.format("1234567890123456"),)).passed(files) == found


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("colection=Essen", "in a column colection; columns: a=b, collection, year"),
        ("Essen", "is no condition"),
        ("=Essen", "is no condition"),
        ("year<old", "year< takes a number, not old"),
        ("year>", "year> takes a number, not nothing"),
        ("year<nan", "takes a number"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(condition, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Filter(where=(condition,)).passed(FILES)


def test_an_index_finds_what_the_filter_and_the_share_of_diversity_say(tmp_path):
    """As a plain computation over its features does."""
    features = vectors(*(f"{number:02}" for number in range(60)), hidden=HIDDEN)
    save_features(tmp_path / "in", features)
    index = Index.create(tmp_path / "index")
    known = {tmp_path / "in" / name: {"number": str(number)} for number, name in enumerate(features)}
    update_index(index, tmp_path / "in", lambda: pytest.fail("nothing is to be embedded"), metadata=known)
    rows, query = normalized(np.concatenate(list(features.values()))), unit(1, 4)[0]
    only = Filter(where=("number>=20",))
    found = [int(entry.path.stem) for _, entry in index.search(query, 9, only=only, diversity=0.4)]
    cosines = rows[20:] @ query
    assert found == (20 + diverse(cosines, rows[20:], 9, 0.4)).tolist()
    hashes = frozenset(entry.hash for entry in index.entries("row < 50"))
    assert {int(entry.path.stem) for _, entry in index.search(query, 60, only=Filter(but=hashes))} == {*range(50, 60)}
    with pytest.raises(ValueError, match="without calibration"):
        index.search(query, diversity=0.5, calibrate="centre")
    index.close()


# ---------- the commands ----------


@pytest.fixture(scope="module")
def tunes(tmp_path_factory) -> Path:
    """A folder of 24 tunes, a text, a MIDI file and a table, an index of them by the small model, and a cache."""
    folder = tmp_path_factory.mktemp("everyday")
    (folder / "in").mkdir()
    for number, tune in enumerate(islice(folk_tunes(), 24)):
        (folder / "in" / f"{number}.abc").write_text(tune.abc, encoding="utf-8")
        if number == 3:
            (folder / "in" / "three.mid").write_bytes(mtf_to_midi(to_mtf(read_melody(tune.abc))))
    shutil.copy(folder / "in" / "5.abc", folder / "in" / "copy of 5.abc")
    (folder / "in" / "=1+1.txt").write_text("a slow air")
    table = "file,collection,year\n" + "".join(
        f"{n}.abc,{'Essen' if n % 2 else '@Aird'},{1800 + n}\n" for n in range(24)
    )
    (folder / "known.csv").write_text(table)
    run_forked("clamp3_index.py", "build", folder / "index", folder / "in", "--metadata", folder / "known.csv", *TINY)
    return folder


@pytest.fixture
def ask(tunes, monkeypatch, capsys):
    """What a command says in the tunes' folder: the JSON on standard output, on which there is nothing else."""
    monkeypatch.chdir(tunes)

    def asked(command, *words) -> list[dict]:
        assert answer(monkeypatch, command, *words, *TINY, "--json", "-") == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return asked


@pytest.fixture
def refused(tunes, monkeypatch, capsys):
    """What a command says instead of answering."""
    monkeypatch.chdir(tunes)

    def said(command, *words) -> str:
        with pytest.raises((SystemExit, UserError)) as error:
            answer(monkeypatch, command, *words, *TINY)
        return f"{error.value} {capsys.readouterr().err}"

    return said


def names(records: list[dict]) -> list[str]:
    """Best first; of equal ones, in the order of the alphabet."""
    ordered = sorted(records, key=lambda record: (-round(record["cosine"], 5), record["file"]))
    return [Path(record["file"]).name for record in ordered]


def test_both_commands_answer_the_same_questions(ask):
    """Of a folder and of its index; each option does what it says."""

    def both(query, *options) -> list[str]:
        of_index = names(ask(clamp3_index, "search", query, "index", *options))
        assert names(ask(clamp3_search, query, "in", *options)) == of_index, (query, options)
        return of_index

    alone = both("in/5.abc", "--top_k", "30")
    assert set(alone[:2]) == {"5.abc", "copy of 5.abc"} and len(alone) == 27
    assert both("in/5.abc", "--not_itself", "--top_k", "30") == alone[2:]
    assert both("in/5.abc", "--kind", "midi") == ["three.mid"]
    assert both("in/5.abc", "--kind", "score", "--top_k", "30") == [name for name in alone if name.endswith(".abc")]
    assert both("in/5.abc", "--modality", "text") == ["=1+1.txt"]
    several = ("--also", "in/7.abc", "in/9.abc", "--without", "in/3.abc", "--top_k", "30")
    others = both("in/5.abc", *several, "--not_itself")
    assert not {"5.abc", "copy of 5.abc", "7.abc", "9.abc", "3.abc"} & set(others) and len(others) == 22
    assert both("in/5.abc", "--also", "in/copy of 5.abc", "--top_k", "30") == alone
    assert set(both("a slow air", "--top_k", "5", "--diverse")) != set(both("a slow air", "--top_k", "5"))
    assert both("in/5.abc", "--top_k", "30", "--diverse", "0") == alone


def test_metadata_and_the_index_as_a_folder_of_references(ask, refused):
    for command in ((clamp3_search, "in/5.abc", "index"), (clamp3_index, "search", "in/5.abc", "index")):
        found = ask(*command, "--where", "collection=Essen", "--where", "year<1810", "--top_k", "30")
        assert sorted(names(found)) == ["1.abc", "3.abc", "5.abc", "7.abc", "9.abc"]
        said = refused(*command, "--where", "colour=red")
        assert said.startswith("no file has metadata in a column colour; columns: collection, year ")
    said = refused(clamp3_search, "in/5.abc", "in", "--where", "year<1810")
    assert "a folder has no metadata" in said and "clamp3_index.py build INDEX in --metadata FILE.csv" in said


def test_query_and_index_in_either_order_and_texts_named_like_folders(ask, refused):
    first = ask(clamp3_index, "search", "a slow air", "index")
    assert first == ask(clamp3_index, "search", "index", "a slow air")
    assert Path(first[0]["file"]).name == "=1+1.txt" and first[0]["cosine"] == pytest.approx(1, abs=1e-5)
    said = refused(clamp3_index, "search", "index", "index")
    assert "both index and index are indexes; if the first is the query, a text, say so by --text" in said
    assert ask(clamp3_index, "search", "index", "index", "--text")[0]["query"] == "index"
    assert "there is no index in in;" in refused(clamp3_index, "search", "x", "in")
    for text in ("in", "5.abc"):
        assert "--text" in refused(clamp3_search, text, "in")
        assert ask(clamp3_search, text, "in", "--text")[0]["query"] == text


def test_csv_is_safe_and_whole(tunes, tmp_path):
    command = ("clamp3_index.py", "search", "=cmd|x", tunes / "index", "--top_k", "30", *TINY)
    run_forked(*command, "--csv", tmp_path / "found.csv", "--json", tmp_path / "found.jsonl")
    with open(tmp_path / "found.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    records = lines(tmp_path / "found.jsonl")
    assert [row["file"] for row in rows] == [record["file"] for record in records] and len(rows) == 27
    assert [float(row["cosine"]) for row in rows] == [record["cosine"] for record in records]
    assert {row["query"] for row in rows} == {"'=cmd|x"}
    assert {row["metadata.collection"] for row in rows} == {"'@Aird", "Essen", ""}
    assert run_forked(*command, "--csv", "-").stdout == (tmp_path / "found.csv").read_text(encoding="utf-8")


def test_what_there_is_to_say_of_queries_is_said(tunes):
    """Here of letters that the small model does not know, and of a score that was mended."""
    (tunes / "odd.abc").write_text(f"X:1\nL:1/8\nM:4/4\nK:C\nCDEF GABc|{'C/D/' * 40}|\n")
    done = run_forked(CODE / "clamp3_search.py", "a slow air", "in", "--also", "静かな曲", "odd.abc", *TINY, cwd=tunes)
    assert "note: 静かな曲: the model's tokenizer does not know 3 of 4 letters" in done.stderr
    assert re.search("^note: odd.abc: music without barlines, cut into 3 bars", done.stderr, re.MULTILINE)
    assert "note:" not in run_forked(CODE / "clamp3_search.py", "ein Walzer, 中国民歌", "in", *TINY, cwd=tunes).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("q", "index", "--diverse", "--calibrate", "csls"), "do not go together"),
        (("q", "index", "--diverse", "2"), "invalid"),
        (("q", "index", "--diverse", "--passages"), "does not go with --passages"),
        (("q", "index", "--diverse", "--per_file", "1"), "does not go with --passages and --per_file"),
        (("q", "index", "--text", "--captioner", "x"), "--text takes QUERY for a text"),
        (("q", "index", "--not_itself"), "this query is a text"),
        (("q", "index", "--json", "-", "--csv", "-"), "standard output takes answers of one kind"),
        (("q", "index", "--json", "found", "--csv", "./found"), "found cannot hold answers of two kinds"),
        (("q", "index", "--where", "year"), "is no condition"),
    ],
)
def test_options_that_make_no_sense_are_refused(refused, words, said):
    assert said in refused(clamp3_index, "search", *words)


def test_a_long_text_that_is_no_condition_is_refused():
    """In a time that grows with its length alone: with its square, this would take minutes."""
    for text in ("a" + " " * 100_000 + "b", "a" + " " * 100_000):
        with pytest.raises(UserError, match="is no condition"):
            Condition.parse(text, ["year"])
    assert Condition.parse("year  <\t1850", ["year"]) == Condition("year", "<", "1850")


def test_contents_that_are_not_to_be_found_are_not_in_a_folder_either(tmp_path):
    """Whatever the sizes of the files that are asked with."""
    save_features(tmp_path, vectors("a", "b", "c"))
    but = frozenset({content_hash(tmp_path / "a.npy")})
    references = load_collection(tmp_path, None)
    np.save(tmp_path / "q.npy", np.ones(HIDDEN, np.float64))
    found = search_collection(references, Question(str(tmp_path / "q.npy"), only=Filter(but=but)), None)
    assert {record["file"] for record in found} == {"b.npy", "c.npy"}


def test_mert_features_are_audio_in_a_folder_as_in_an_index(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    save_features(tmp_path, {"in/mert.npy": rng.normal(size=(1, 6, 128)).astype(np.float32)})
    save_features(tmp_path, {"in/ready.npy": rng.normal(size=(1, 128)).astype(np.float32)})
    words = ("a reel", tmp_path / "in", "--kind", "audio", "--json", tmp_path / "found.jsonl", *TINY)
    assert answer(monkeypatch, clamp3_search, *words) == 0
    assert [record["file"] for record in lines(tmp_path / "found.jsonl")] == ["mert.npy"]
