"""Answers from raw files, by the documented commands: features, search, scores and evaluation of real tunes."""

import base64
import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import eval as clamp3_eval
from clamp3.cli.commands import score as clamp3_score
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.search.metrics import evaluate, frechet_distance, group_similarity
from clamp3.search.pairing import pair_by_csv, stem
from clamp3.search.ranking import normalized
from clamp3.sizes import ModelSizes
from conftest import BIN, MERT_TINY, run, run_forked
from corpus import folk_tunes
from golden_model import golden_json
from synthesizer import render

corpus = pytest.importorskip("music21").corpus  # which the oldest set of libraries lacks

PYTHON = BIN / "python"
MERT = ("--mert", MERT_TINY)


@dataclass
class Raw:
    """A folder of raw files of all kinds, and a model with random weights that reads them."""

    folder: Path
    files: list[str]
    env: dict[str, str]
    embedder: Embedder

    def expected(self) -> dict[str, np.ndarray]:
        """The features (1, hidden) of all files through the library, by the outputs' names."""
        features = self.embedder.embed_files([self.folder / name for name in self.files])
        return {str(Path(name).with_suffix(".npy")): row[None] for name, row in zip(self.files, features, strict=True)}


@pytest.fixture(scope="module")
def raw(small_model, tmp_path_factory) -> Raw:
    """Tunes in standard and in interleaved ABC, chorales, MIDI, MTF, sound, texts and MERT features."""
    sizes: ModelSizes = replace(small_model.sizes, audio_hidden_size=64)  # which the small MERT gives
    torch.manual_seed(0)
    model = CLaMP3Model(sizes)
    weights = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({"model": model.state_dict()}, weights)
    env = small_model.environment(AUDIO_HIDDEN_SIZE=64, CLAMP3_WEIGHTS_PATH=str(weights))

    folder = tmp_path_factory.mktemp("raw")
    for name in ("tunes", "scores", "midi", "sound", "texts/deep"):
        (folder / name).mkdir(parents=True)
    for number, tune in enumerate(islice(folk_tunes(), 12)):
        (folder / "tunes" / f"{number}.abc").write_text(tune.abc, encoding="utf-8")
    (folder / "tunes" / "scale.ABC").write_text("X:1\nT:A scale\nM:4/4\nL:1/8\nK:G\nGABc defg|gfed cBAG|]\n")
    for name in ("bwv404", "bwv405"):
        (folder / "scores" / f"{name}.mxl").write_bytes(corpus.getWork(f"bach/{name}").read_bytes())
    entries = golden_json("mtf.json")
    midi = [base64.b64decode(entry["midi_base64"]) for entry in entries[:2]]
    for number, data in enumerate(midi):
        (folder / "midi" / f"{number}.mid").write_bytes(data)
    (folder / "midi" / "two.mtf").write_text(entries[2]["mtf"])
    soundfile.write(folder / "sound" / "a.wav", render(midi[0], 12, 24_000), 24_000)
    soundfile.write(folder / "sound" / "b.flac", render(midi[1], 7, 44_100), 44_100)
    (folder / "texts" / "a.txt").write_text("A lively reel\nfrom Ireland")
    (folder / "texts" / "deep" / "愛 & $x 'q'.txt").write_text("爱的曲子", encoding="utf-8")
    np.save(folder / "sound" / "mert.npy", np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    return Raw(folder, files, env, Embedder(model, sizes, mert=MERT_TINY))


@pytest.fixture(scope="module")
def features(raw, tmp_path_factory) -> Path:
    """What clamp3_embd.py makes of the raw files."""
    folder = tmp_path_factory.mktemp("features")
    save_features(folder, raw.expected())
    return folder


def outputs(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.load(path) for path in folder.rglob("*.npy")}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, feature in wanted.items():
        np.testing.assert_allclose(found[name], feature, atol=2e-5, rtol=1e-4)


# ---------- clamp3_embd.py ----------


def test_raw_files_of_all_kinds_become_features_and_bad_ones_are_named(raw, tmp_path):
    """One short sound is mended and three files are bad; what is there already is not done again."""
    shutil.copytree(raw.folder, tmp_path / "in")
    for name, content in {"bad.mid": b"no midi", "texts/latin.txt": b"caf\xe9", "sound/bad.wav": b"RIFF"}.items():
        (tmp_path / "in" / name).write_bytes(content)
    soundfile.write(tmp_path / "in" / "sound" / "short.wav", np.ones(4000) * 0.1, 24_000)
    (tmp_path / "in" / "notes.doc").write_bytes(b"x")
    command = [PYTHON, "clamp3_embd.py", tmp_path / "in", tmp_path / "out", "--get_global", *MERT]
    done = run(*command, env=raw.env, check=1)
    found = outputs(tmp_path / "out")
    assert found.pop("sound/short.npy").shape == (1, 96)
    assert_same(found, raw.expected())
    assert f"{len(raw.files) + 1} written" in done.stdout and "3 failed" in done.stdout and "1 .doc" in done.stdout
    failures = {Path(line["file"]).name: line["reason"] for line in lines(tmp_path / "out" / "failures.jsonl")}
    assert failures.keys() == {"bad.mid", "latin.txt", "bad.wav"} and "not UTF-8" in failures["latin.txt"]
    warnings = lines(tmp_path / "out" / "warnings.jsonl")
    (short,) = [warning["reason"] for warning in warnings if warning["file"].endswith("short.wav")]
    others = [warning["reason"] for warning in warnings if not warning["file"].endswith("short.wav")]
    assert "repeated up to 1 s" in short and all("longer than the 62 characters" in reason for reason in others), (
        others
    )

    for name in ("sound/a.npy", "tunes/3.npy"):
        (tmp_path / "out" / name).unlink()
    done = run_forked(*command[1:], env=raw.env, check=1)
    assert "2 written" in done.stdout and f"{len(raw.files) - 1} already there, 3 failed" in done.stdout
    assert outputs(tmp_path / "out").keys() - {"sound/short.npy"} == found.keys()


def test_two_processes_share_raw_files_and_give_hidden_states(raw, tmp_path):
    done = run_forked("clamp3_embd.py", raw.folder, tmp_path / "out", *MERT, env=raw.env, processes=2)
    assert done.stdout.count(f"{len(raw.files)} written") == 1
    states = raw.embedder.embed_files([raw.folder / name for name in raw.files], pooled=False)
    names = [str(Path(name).with_suffix(".npy")) for name in raw.files]
    assert_same(outputs(tmp_path / "out"), {name: state[None] for name, state in zip(names, states, strict=True)})


def test_an_option_without_effect_on_raw_files_is_refused(raw, tmp_path):
    """Raw files are always converted, so there is nothing to take as it is."""
    done = run_forked("clamp3_embd.py", raw.folder, tmp_path / "out", "--as_is", env=raw.env, check=2)
    assert "unrecognized arguments: --as_is" in done.stderr


def test_raw_files_that_would_have_one_output_are_refused(raw, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.mid", "a.wav"):
        (tmp_path / "in" / name).write_bytes(b"x")
    done = run_forked("clamp3_embd.py", tmp_path / "in", tmp_path / "out", env=raw.env, check=2)
    assert "a.mid" in done.stderr and "a.wav" in done.stderr and not (tmp_path / "out").exists()


# ---------- clamp3_search.py ----------


def test_a_file_finds_itself_among_raw_files_and_features(raw, features, tmp_path):
    """A folder of both kinds: half the files are features already. One that is neither is named."""
    for name in raw.files[::2]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(raw.folder / name, tmp_path / "in" / name)
    for name in raw.files[1::2]:
        target = tmp_path / "in" / Path(name).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(features / target.relative_to(tmp_path / "in"), target)
    (tmp_path / "in" / "bad.mid").write_bytes(b"no midi")
    query = "tunes/3.abc"
    command = [PYTHON, "clamp3_search.py", raw.folder / query, tmp_path / "in", "--top_k", "5"]
    done = run(*command, *MERT, "--json", tmp_path / "found.jsonl", env=raw.env, check=1)
    found = lines(tmp_path / "found.jsonl")
    expected = raw.expected()
    rows = normalized(np.concatenate(list(expected.values())))
    cosines = rows @ rows[list(expected).index("tunes/3.npy")]
    assert [record["rank"] for record in found] == [1, 2, 3, 4, 5]
    names = list(expected)
    assert [str(Path(record["file"]).with_suffix(".npy")) for record in found] == [
        names[index] for index in np.argsort(-cosines)[:5]
    ]
    np.testing.assert_allclose([record["cosine"] for record in found], np.sort(-cosines)[:5] * -1, atol=1e-5)
    used, *table = done.stdout.splitlines()
    assert (
        used.startswith("weights: ")
        and table[0].split() == ["rank", "cosine", "file"]
        and table[1].split()[:2] == ["1", "1.0000"]
    )
    half = len(raw.files) // 2
    assert f"{half} features read, {len(raw.files) - half} made, 1 files failed" in done.stdout
    assert "bad.mid" in done.stdout and "weights.pth" in done.stdout


def test_a_text_in_any_language_is_a_query(raw, features):
    """And loads the tower of texts alone."""
    done = run_forked("clamp3_search.py", "爱的曲子", features, env=raw.env)
    assert done.stdout.splitlines()[2].split(maxsplit=2) == ["1", "1.0000", "texts/deep/愛 & $x 'q'.npy"]
    assert len(done.stdout.splitlines()) == 1 + 1 + 10 + 1 + 1


def test_what_cannot_be_searched_is_said(tmp_path, monkeypatch, capsys):
    save_features(tmp_path, vectors("in/a", "in/b", "in/deep/c", "q"))
    save_features(tmp_path, {"wide.npy": np.ones((1, 9), np.float32), "zero.npy": np.zeros((1, 8), np.float32)})
    for words, complaint in (
        (("nowhere.mid", tmp_path / "in"), "there is no file nowhere.mid"),
        ((tmp_path / "in", tmp_path / "in"), "is a folder"),
        (("  ", tmp_path / "in"), "the query is empty"),
        ((tmp_path / "q.npy", tmp_path / "none"), "there is no file or folder"),
        ((tmp_path / "wide.npy", tmp_path / "in"), "in/a.npy has a feature of 8 numbers, .*wide.npy one of 9"),
        ((tmp_path / "q.npy", tmp_path), "wide.npy has a feature of 9 numbers, .*q.npy one of 8"),
    ):
        with pytest.raises(UserError, match=complaint):
            answer(monkeypatch, clamp3_search, *words)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.doc").write_bytes(b"x")
    with pytest.raises(UserError, match="nothing in .*empty has a feature"):
        answer(monkeypatch, clamp3_search, tmp_path / "q.npy", tmp_path / "empty")
    capsys.readouterr()
    assert answer(monkeypatch, clamp3_search, tmp_path / "zero.npy", tmp_path / "in") == 0
    assert [row.split() for row in capsys.readouterr().out.splitlines()[1:4]] == [
        ["1", "0.0000", "a.npy"],
        ["2", "0.0000", "b.npy"],
        ["3", "0.0000", "deep/c.npy"],
    ]
    np.save(tmp_path / "in" / "nan.npy", np.full((1, 8), np.nan, np.float32))
    np.save(tmp_path / "in" / "whole.npy", np.ones((1, 8), np.int64))
    assert answer(monkeypatch, clamp3_search, tmp_path / "q.npy", tmp_path / "in") == 1
    printed = capsys.readouterr().out
    assert "2 files failed" in printed and "NaN" in printed and "floating-point" in printed


def test_a_query_needs_no_library_that_takes_long_to_import(tmp_path):
    """PyTorch alone: not transformers, accelerate, or FFmpeg's libraries where there is no sound."""
    (tmp_path / "jig.txt").write_text("a lively jig")
    blocked = "import runpy, sys; sys.modules.update(dict.fromkeys(('transformers', 'accelerate', 'av'))); "
    blocked += f"sys.argv[1:] = ['a jig', {str(tmp_path)!r}, '--variant', 'tiny']; "
    done = run(PYTHON, "-c", f"{blocked} runpy.run_path('clamp3_search.py', run_name='__main__')")
    assert "jig.txt" in done.stdout


def test_one_process_answers(features):
    done = run_forked("clamp3_search.py", features / "tunes" / "3.npy", features, check=2, processes=2)
    assert done.stderr.count("error: this command works in one process") == 1


# ---------- clamp3_score.py and clamp3_eval.py ----------


def test_raw_files_are_scored_and_evaluated_against_features_of_the_same_names(raw, features, tmp_path):
    folders = (raw.folder, features, *MERT, "--json", tmp_path / "answers.jsonl")
    done = run(PYTHON, "clamp3_score.py", *folders, env=raw.env)
    scores = lines(tmp_path / "answers.jsonl")
    assert [score["query"] for score in scores] == sorted(raw.files, key=lambda name: Path(name).parts)
    for score in scores:
        assert stem(score["query"]) == stem(score["reference"])
        assert score["cosine"] == pytest.approx(1, abs=1e-5) and score["percentile"] == 100
    assert "without a partner" not in done.stdout and f"mean of {len(raw.files)} pairs: cosine 1.0000" in done.stdout

    run(PYTHON, "clamp3_eval.py", *folders, "--by_folder", env=raw.env)
    records = lines(tmp_path / "answers.jsonl")
    assert [record["folder"] for record in records[::2]] == [
        None,
        "midi",
        "scores",
        "sound",
        "texts",
        "texts/deep",
        "tunes",
    ]
    assert {record["direction"] for record in records} == {"query_to_reference", "reference_to_query"}
    assert all(record["MRR"] == record["Hit@1"] == record["nDCG@10"] == [1, 1, 1] for record in records)
    assert records[0]["queries"] == records[0]["references"] == len(raw.files)


@pytest.fixture
def folders(tmp_path):
    """Queries and references by name: pairs, three queries for one reference, partners missing, and a collision."""
    save_features(tmp_path / "q", vectors("a", "b/a", "b/c.1", "b/c.2", "b/c.3", "alone", "No. 5", "No. 6"))
    save_features(tmp_path / "r", vectors("a.x", "b/a", "b/c", "z", "No. 5", "No. 6", seed=1))
    return tmp_path / "q", tmp_path / "r"


def cosine(folders, query, reference):
    first, second = (np.load(folder / name)[0] for folder, name in zip(folders, (query, reference), strict=True))
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def test_pairs_are_told_by_names_and_what_names_do_not_tell_is_said(folders, tmp_path, monkeypatch, capsys):
    assert answer(monkeypatch, clamp3_score, *folders, "--json", tmp_path / "s.jsonl") == 1
    scores = lines(tmp_path / "s.jsonl")
    pairs = [(score["query"], score["reference"]) for score in scores]
    assert pairs == [
        ("a.npy", "a.x.npy"),
        ("b/a.npy", "b/a.npy"),
        *[(f"b/c.{number}.npy", "b/c.npy") for number in (1, 2, 3)],
    ]
    assert [score["cosine"] for score in scores] == pytest.approx([cosine(folders, *pair) for pair in pairs], abs=1e-6)
    printed = capsys.readouterr().out
    undecided, shared, alone = (
        printed[printed.index(title) :].split(":\n")[1]
        for title in ("not scored", "several queries for one reference", "without a partner")
    )
    assert undecided.count("2 references have its name up to the first dot, such as No. 5.npy") == 2
    assert shared.count("shares b/c.npy with 2 more") == 3
    assert "alone.npy  a query without" in alone and "z.npy      a reference without" in alone


def test_a_csv_file_decides(folders, tmp_path, monkeypatch):
    pairs = [("No. 5.npy", "No. 6.npy"), ("No. 5.npy", "z.npy"), ("b/a.npy", "a.x.npy")]
    table = tmp_path / "pairs.csv"
    table.write_text("\ufeffquery,reference\n\n" + "".join(f'"{query}", {reference}\n' for query, reference in pairs))
    assert answer(monkeypatch, clamp3_score, *folders, "--pairs", table, "--json", tmp_path / "s.jsonl") == 0
    scores = lines(tmp_path / "s.jsonl")
    assert [(score["query"], score["reference"]) for score in scores] == pairs
    others = [
        cosine(folders, query.relative_to(folders[0]), reference.relative_to(folders[1]))
        for query in folders[0].rglob("*.npy")
        for reference in folders[1].rglob("*.npy")
        if (query.relative_to(folders[0]).as_posix(), reference.relative_to(folders[1]).as_posix()) not in pairs
    ]
    assert len(others) == 8 * 6 - 3
    below = [100 * np.mean(np.array(others) < score["cosine"]) for score in scores]
    assert [score["percentile"] for score in scores] == pytest.approx(below)
    for content, complaint in (
        ("a.npy\n", ":1: a line must be query,reference, not a.npy"),
        ("a.npy,z.npy\na.npy,gone.npy\n", ":2: no reference gone.npy has a feature"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=complaint):
            answer(monkeypatch, clamp3_score, *folders, "--pairs", table)
    with pytest.raises(UserError, match="pairs.csv cannot be read"):
        pair_by_csv(tmp_path / "no" / "pairs.csv", [], [])


def test_folders_as_groups(folders, tmp_path, monkeypatch, capsys):
    words = (*folders, "--group", "--frechet", "--json", tmp_path / "g.jsonl")
    assert answer(monkeypatch, clamp3_score, *words) == 0
    first, second = (np.concatenate([np.load(path) for path in folder.rglob("*.npy")]) for folder in folders)
    (record,) = lines(tmp_path / "g.jsonl")
    assert record["queries"] == 8 and record["references"] == 6
    assert record["group_similarity"] == pytest.approx(group_similarity(first, second), abs=1e-6)
    assert record["frechet_distance"] == pytest.approx(frechet_distance(first, second))
    with pytest.raises(SystemExit):
        answer(monkeypatch, clamp3_score, *folders, "--frechet")


def test_figures_with_several_right_references_and_by_folder(folders, tmp_path, monkeypatch, capsys):
    assert answer(monkeypatch, clamp3_eval, *folders, "--by_folder", "--json", tmp_path / "e.jsonl") == 0
    records = lines(tmp_path / "e.jsonl")
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")) for folder in folders]
    for record in records:
        queries, references = (
            [name for name in side if record["folder"] in (None, str(Path(name).parent))] for side in names
        )
        assert record["queries"] == len(queries) and record["references"] == len(references)
        sides = [(folders[0], queries), (folders[1], references)]
        if record["direction"] == "reference_to_query":
            sides.reverse()
        (_, askers), (_, candidates) = sides
        right = {asker: [i for i, name in enumerate(candidates) if stem(name) == stem(asker)] for asker in askers}
        asking = [asker for asker in askers if right[asker]]
        rows = [
            np.concatenate([np.load(folder / name) for name in chosen])
            for (folder, _), chosen in zip(sides, (asking, candidates), strict=True)
        ]
        for figure, estimate in evaluate(*rows, [right[asker] for asker in asking]).items():
            assert record[figure][0] == pytest.approx(estimate.value), (record["folder"], figure)
    assert [record["folder"] for record in records] == [None, None, ".", ".", "b", "b"]
    printed = capsys.readouterr().out
    assert "all: 8 queries, 2 with several relevant references, 6 references" in printed
    assert "alone.npy  a query without a reference" in printed
    shutil.rmtree(folders[0] / "b")
    for name in ("a", "No. 5", "No. 6"):
        (folders[0] / f"{name}.npy").unlink()
    with pytest.raises(UserError, match="nothing to compare: no query .such as alone.npy."):
        answer(monkeypatch, clamp3_eval, *folders)


SCRIPTS = ("clamp3_embd", "clamp3_search", "clamp3_score", "clamp3_eval", "zero_shot", "train_cls", "inference_cls")


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS])
def test_help_teaches_and_needs_no_libraries(script):
    blocked = (
        "import runpy, sys; sys.modules['numpy'] = None; sys.argv[1:] = ['--help']; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    assert f"python {script} " in run(PYTHON, "-c", blocked).stdout
