"""Features as rows of Parquet files: the same as those of a .npy each, done once, and read by what reads features."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import eval as clamp3_eval
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.features import parts
from clamp3.features.parts import read_parts, rows_done, save_in_parts
from clamp3.io.folders import Job, Outcome, plan
from clamp3.io.rows import package
from conftest import ROOT, run_forked
from test_shards import contents, inputs, reports  # noqa: F401 (inputs is a fixture)

GLOBAL = ("--get_global", "--variant", "tiny", "--batch_tokens", "1")


def rows(folder: Path) -> list[dict]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for path in folder.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]


def by_file(folder: Path) -> dict[str, np.ndarray]:
    found = read_parts(sorted(folder.glob("*.parquet")))
    names = [path.relative_to(folder).as_posix() for path in found.files]
    return dict(zip(names, found.features, strict=True))


def written(done) -> int:
    return int(done.stdout.split(" written")[0].split()[-1])


def test_rows_are_what_files_are_by_shares_and_processes_too(inputs, tmp_path):  # noqa: F811
    """Byte by byte; each input once, failures and the manifest as in files, and changed inputs again."""
    pytest.importorskip("pyarrow")
    out, whole = tmp_path / "out", tmp_path / "whole"
    np.save(inputs / "frames.npy", np.random.default_rng(0).normal(size=(1, 9, 128)).astype(np.float32))
    run_forked("extract_clamp3.py", inputs, whole, *GLOBAL, check=1)
    files = {name.removesuffix(".npy"): np.load(whole / name)[0] for name in contents(whole)}

    command = ("extract_clamp3.py", inputs, out, *GLOBAL, "--to", "parquet")
    first = run_forked(*command, "--shard", "1/2", check=None, processes=2)
    assert 0 < written(first) == len(rows(out)) < 25 and len(list(out.glob("*.parquet"))) == 2
    last = run_forked(*command, check=1)
    assert written(first) + written(last) == len(rows(out)) == 25
    found = by_file(out)
    assert {name.rpartition(".")[0]: row.tobytes() for name, row in found.items()} == {
        name: feature.tobytes() for name, feature in files.items()
    }
    manifest = json.loads((whole / ".clamp3.json").read_text())
    assert json.loads((out / ".clamp3.json").read_text()) == {**manifest, "format": "parquet"}
    assert reports(out, "failures.jsonl") == reports(whole, "failures.jsonl") != {}
    assert reports(out, "warnings.jsonl") == reports(whole, "warnings.jsonl") != {}
    for row in rows(out):
        assert list(row) == ["file", "modality", "fingerprint", "modified", "feature"]
        assert row["modified"] == (inputs / row["file"]).stat().st_mtime_ns
        assert row["fingerprint"] == manifest["fingerprint"]
        assert row["modality"] == ("audio" if row["file"] == "frames.npy" else "symbolic")

    changed = inputs / "0" / "0.abc"
    changed.write_text(changed.read_text().replace("A", "B"))
    assert written(run_forked(*command, check=1)) == 1 and len(rows(out)) == 26
    now = by_file(out)
    assert [name for name in now if now[name].tobytes() != found[name].tobytes()] == ["0/0.abc"]

    for folder, words in ((out, ()), (whole, ("--to", "parquet"))):
        wrong = run_forked("extract_clamp3.py", inputs, folder, *GLOBAL, *words, check=2)
        assert "give another output folder" in wrong.stderr


def test_what_no_whole_part_has_is_done_again(tmp_path, texts, monkeypatch):
    pytest.importorskip("pyarrow")
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    names = ["a.txt", "a.abc", "deep/c.abc", "愛 'x'.txt", os.fsdecode(b"caf\xe9.txt"), "back\\xff.txt"]
    for name in names:
        (source / name).write_text(texts["tune_0"])
    command = ("clamp3_embd.py", source, out, *GLOBAL, "--to", "parquet", "--no_cache")
    assert written(run_forked(*command)) == 6
    assert written(run_forked(*command)) == 0
    escaped = {os.fsencode(name).decode("utf-8", "backslashreplace") for name in names}
    assert {row["file"] for row in rows(out)} == escaped
    (part,) = out.glob("*.parquet")
    partial = out / ".0123456789abcdef.partial"  # of a run that was killed as it wrote
    partial.write_bytes(part.read_bytes()[:100])
    [block] = re.findall(r"```python\n(.*?)```", ROOT.joinpath("docs", "extraction.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names_of_block: dict = {}
    exec(block.replace("OUTPUT_DIR", "out"), names_of_block)
    assert set(names_of_block["table"]["file"].to_pylist()) == escaped
    (source / "new.txt").write_text("a jig")
    assert written(run_forked(*command)) == 1 and not partial.exists() and len(rows(out)) == 7
    part.write_bytes(part.read_bytes()[:-20])
    assert f"{part} cannot be read" in run_forked(*command, check=2).stderr
    part.unlink()
    assert written(run_forked(*command)) == 6 and len(rows(out)) == 7


def jobs_of(tmp_path: Path, count: int) -> list[Job]:
    for number in range(count):
        (tmp_path / "in" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.txt").write_text("x")
    return plan(tmp_path / "in", tmp_path / "out", [".txt"], None).jobs


def made(jobs: list[Job], error: BaseException | None = None, failing: int = 4):
    for number, job in enumerate(jobs):
        if number == failing:
            yield Outcome(job, "no feature")
        else:
            feature = np.full((1, 3), number, np.float32)
            yield Outcome(job, content=feature, warnings=("mended",) if number == 3 else ())
    if error:
        raise error


def test_parts_have_so_many_rows_and_an_end_by_a_signal_keeps_what_was_made(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(parts, "ROWS", 4)
    jobs, out = jobs_of(tmp_path, 12), tmp_path / "out"
    outcomes = save_in_parts(made(jobs, KeyboardInterrupt()), out, "f")
    first = [next(outcomes) for _ in range(5)]
    assert [outcome.content for outcome in first] == [None] * 5 and len(rows(out)) == 4
    with pytest.raises(KeyboardInterrupt):
        list(outcomes)
    assert len(rows(out)) == len(rows_done(out)) == 11 and "mended" in (out / "warnings.jsonl").read_text()


def test_rows_are_kept_where_nobody_asks_for_more(tmp_path, monkeypatch):
    """As where a report stops at a full disk, or a signal comes outside of the embedding."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(parts, "ROWS", 4)
    outcomes = save_in_parts(made(jobs_of(tmp_path, 12), failing=6), tmp_path / "out", "f")
    assert [next(outcomes).failure for _ in range(5)] == [None] * 4 + ["no feature"]
    outcomes.close()
    assert sorted(row["feature"][0] for row in rows(tmp_path / "out")) == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_written_has_failed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "atomic_write", full)
    outcomes = list(save_in_parts(made(jobs_of(tmp_path, 6)), tmp_path / "out", None))
    assert [outcome.no_room for outcome in outcomes if outcome.failure != "no feature"] == [
        "No space left on device"
    ] * 5
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pyarrow is not installed: pip install pyarrow"):
        package("pyarrow", "pyarrow")


def test_what_reads_features_reads_parts(tmp_path, monkeypatch, capsys):
    """Search, evaluation and an index say of parts what they say of the same features in .npy files."""
    pytest.importorskip("pyarrow")
    names = [f"{kind}/{number}" for kind in "ab" for number in range(20)]
    features, out = vectors(*names), tmp_path / "out"
    save_features(tmp_path / "npy", features)
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.{'abc' if number % 3 else 'txt'}").write_text("x")
    jobs = plan(tmp_path / "in", out, [".txt", ".abc"], None).jobs
    pairs = [(job, features[job.target.relative_to(out).with_suffix(".npy").as_posix()]) for job in jobs]
    changed = [(job, -feature) for job, feature in pairs[:5]]
    for some, later in ((changed, 0), (pairs[:30], 1), (pairs[30:], 1)):
        outcomes = [
            Outcome(Job(job.source, job.targets, 0, modified=job.modified + later), content=feature)
            for job, feature in some
        ]
        list(save_in_parts(outcomes, out, "f"))
    np.save(tmp_path / "query.npy", vectors("q")["q.npy"])

    def found(command, *words) -> list[tuple]:
        assert answer(monkeypatch, command, *words, "--json", tmp_path / "found.jsonl") == 0
        return [
            (str(Path(*Path(record["file"]).with_suffix("").parts[-2:])), round(record["cosine"], 5))
            for record in lines(tmp_path / "found.jsonl")
        ]

    expected = found(clamp3_search, tmp_path / "query.npy", tmp_path / "npy")
    assert len(expected) == 10 == len(set(expected))
    assert found(clamp3_search, tmp_path / "query.npy", out, "--not_itself") == expected
    texts = found(clamp3_search, tmp_path / "query.npy", out, "--modality", "text", "--top_k", 40)
    assert len(texts) == 14
    for folder in (out / "a.parquet", *sorted(out.glob("*.parquet"))[:1]):
        if folder.exists():
            assert found(clamp3_search, tmp_path / "query.npy", folder)

    table = tmp_path / "known.csv"
    table.write_text("file,title\na/1.abc,Love\n")
    index = tmp_path / "index"
    assert answer(monkeypatch, clamp3_index, "build", index, out) == 0
    assert "40 files added" in capsys.readouterr().out
    assert found(clamp3_index, "search", tmp_path / "query.npy", index) == expected
    assert len(found(clamp3_index, "search", tmp_path / "query.npy", index, "--modality", "text", "--top_k", 40)) == 14
    assert answer(monkeypatch, clamp3_index, "add", index, out, "--metadata", table) == 0
    assert "0 files added, 40 unchanged" in capsys.readouterr().out
    assert len(found(clamp3_index, "search", tmp_path / "query.npy", index, "--where", "title=Love")) == 1
    list(
        save_in_parts(
            [Outcome(Job(jobs[0].source, jobs[0].targets, 0, modified=2**62), content=-pairs[0][1])], out, "f"
        )
    )
    assert answer(monkeypatch, clamp3_index, "add", index, out) == 0
    assert "1 files added, 39 unchanged" in capsys.readouterr().out

    assert answer(monkeypatch, clamp3_eval, out, tmp_path / "npy") == 0
    assert "40" in capsys.readouterr().out


def test_rows_of_other_models_and_hidden_states_are_refused(tmp_path, texts):
    pytest.importorskip("pyarrow")
    job, out = jobs_of(tmp_path, 1)[0], tmp_path / "out"
    list(save_in_parts([Outcome(job, content=np.ones((1, 3), np.float32))], out, "f"))
    list(save_in_parts([Outcome(job, content=np.ones((1, 3), np.float32))], out, "other"))
    with pytest.raises(UserError, match="features of different models, which cannot be compared"):
        read_parts(sorted(out.glob("*.parquet")))

    (tmp_path / "in" / "long.txt").write_text("a jig\n" + "word " * 200)
    states, whole = tmp_path / "states", tmp_path / "whole"
    for folder, to in ((states, "parquet"), (whole, "npy")):
        run_forked("extract_clamp3.py", tmp_path / "in", folder, *GLOBAL[1:], "--to", to)
    found = {row["file"]: np.array(row["feature"], np.float32) for row in rows(states)}
    assert found.keys() == {"0.txt", "long.txt"}
    for name, feature in found.items():
        assert np.array_equal(feature[None], np.load(whole / name.replace(".txt", ".npy")))
    with pytest.raises(UserError, match="has hidden states, in place of features: make these by --get_global"):
        read_parts(list(states.glob("*.parquet")))
