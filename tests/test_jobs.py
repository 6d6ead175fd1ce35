"""The jobs of examples/jobs run on folk tunes with the small model, and each is short enough to be copied."""

import ast
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from clamp3 import Embedder
from clamp3.formats.midi import mtf_to_midi
from clamp3.models.releases import TINY, tiny_sizes
from conftest import ROOT
from test_api import MTF

pytest.importorskip("music21")  # which the oldest set of libraries lacks
from corpus import folk_tunes  # noqa: E402
from notes import read_melody, to_mtf  # noqa: E402

JOBS = ROOT / "examples" / "jobs"
pytestmark = pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")


@pytest.fixture(autouse=True)
def jobs_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(JOBS))


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def tunes():
    """Ten of each rhythm."""
    known = list(islice(folk_tunes(), 1500))
    return [tune for rhythm in ("jig", "reel", "air") for tune in [t for t in known if t.rhythm == rhythm][:10]]


@pytest.fixture(scope="module")
def paths(tunes, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tunes")
    for number, tune in enumerate(tunes):
        folder.joinpath(f"{number:02}.abc").write_text(tune.abc, encoding="utf-8")
    folder.joinpath("99.abc").write_text("K:C\n")  # a bad one, which costs the others nothing
    return sorted(folder.glob("*.abc"))


def lines_of_code(path: Path) -> int:
    """All but empty lines, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in docstrings]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_there_are_eleven_of_fifteen_lines_at_most():
    lengths = {path.name: lines_of_code(path) for path in JOBS.glob("*.py")}
    assert len(lengths) == 11 and max(lengths.values()) <= 15, lengths


def test_sidecar(tiny, paths):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    client = TestClient(import_module("sidecar").create_app("tiny"))
    answer = client.post("/texts", json=["a jig", "a reel"])
    np.testing.assert_allclose(answer.json(), tiny.embed_text(["a jig", "a reel"], normalize=True), atol=1e-5)
    midi = mtf_to_midi(MTF)
    answer = client.post("/file", files={"upload": midi})
    np.testing.assert_allclose(answer.json(), tiny.embed_midi([midi], normalize=True)[0], atol=1e-5)
    refused = client.post("/file", files={"upload": b"nothing"})
    assert refused.status_code == 422 and refused.json()["error"].startswith("item 0: ")


def test_reward(tiny, tunes):
    pieces = [tunes[0].abc, "no music\nK:C\n", tunes[-1].abc]
    found = import_module("reward").rewards(
        tiny, ["jig", "reel", "hornpipe"], [pieces[0], Path("none.abc"), pieces[2]]
    )
    np.testing.assert_allclose(found[[0, 2]], tiny.scores(["jig", "hornpipe"], [pieces[0], pieces[2]]), atol=1e-6)
    assert found[1] == -1


def test_m3_baseline(tunes):
    pytest.importorskip("sklearn")
    m3 = Embedder.from_pretrained(TINY / "m3.safetensors", "cpu", sizes=tiny_sizes())
    pieces, labels = [tune.abc for tune in tunes], [tune.rhythm for tune in tunes]
    assert import_module("m3_baseline").accuracy(m3, pieces, labels) > 0.5  # a third by chance


def test_all_layers(tiny, tunes):
    pieces, labels = [tune.abc for tune in tunes], [tune.rhythm for tune in tunes]
    found = import_module("all_layers").separation(tiny, pieces, labels)
    assert found.shape == (tiny._model.towers["symbolic"].config.num_hidden_layers + 1,) and (found > 0).all()
    one_by_one = [tiny.embed_symbolic([piece], layers="all")[0][-1] for piece in pieces]
    unit = one_by_one - np.mean(one_by_one, axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = [(float(unit[i] @ unit[j]), labels[i] == labels[j]) for i in range(len(unit)) for j in range(i)]
    same, different = ([cosine for cosine, alike in pairs if alike is wanted] for wanted in (True, False))
    assert found[-1] == pytest.approx(np.mean(same) - np.mean(different), abs=1e-5)


def test_big_folder(tiny, paths, tmp_path):
    embed_folder = import_module("big_folder").embed_folder
    embed_folder(tiny, paths[0].parent, tmp_path, size=12)
    shards = sorted(tmp_path.glob("*.npz"))
    assert [shard.name for shard in shards] == ["00000000.npz", "00000012.npz", "00000024.npz"]
    loaded = [np.load(shard) for shard in shards]
    assert [path for one in loaded for path in one["paths"]] == [str(path) for path in paths]
    features = np.concatenate([one["features"] for one in loaded])
    np.testing.assert_allclose(features[:-1], tiny.embed_files(paths[:-1], normalize=True), atol=1e-5)
    assert np.isnan(features[-1]).all() and loaded[-1]["errors"][-1] == "no notes"
    written = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    embed_folder(tiny, paths[0].parent, tmp_path, size=12)
    assert [shard.stat().st_mtime_ns == before for shard, before in zip(shards, written, strict=True)] == [
        *(True, False, True),
    ]


def nearest(tiny, paths, text: str, k: int = 5) -> list[tuple[str, float]]:
    rows, cosines = tiny.top_k([text], tiny.embed_files(paths[:-1]), k)
    return [(str(paths[row]), float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True)]


def agree(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [path for path, _ in found] == [path for path, _ in expected]
    np.testing.assert_allclose([cosine for _, cosine in found], [cosine for _, cosine in expected], atol=1e-5)


def test_lancedb(tiny, paths, tmp_path):
    pytest.importorskip("lancedb")
    job = import_module("lancedb_search")
    agree(job.search(tiny, job.build(tiny, paths, tmp_path), "a jig", 5), nearest(tiny, paths, "a jig"))


def test_qdrant(tiny, paths):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    job = import_module("qdrant_search")
    job.build(tiny, client, paths)
    agree(job.search(tiny, client, "a jig", 5), nearest(tiny, paths, "a jig"))


def test_faiss(tiny, paths):
    pytest.importorskip("faiss")
    job = import_module("faiss_search")
    agree(job.search(tiny, *job.build(tiny, paths), "a jig", 5), nearest(tiny, paths, "a jig"))


def test_pandas(tiny, paths):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": [str(path) for path in paths], "id": range(len(paths))}, index=range(7, 38))
    found = import_module("pandas_table").with_features(tiny, table)
    assert list(found.columns[:4]) == ["path", "id", "error", "clamp3_0"] and found.index.equals(table.index)
    np.testing.assert_allclose(found.iloc[:-1, 3:], tiny.embed_files(paths[:-1], normalize=True), atol=1e-5)
    assert found.iloc[-1, 3:].isna().all() and found["error"].iloc[-1] == "no notes"


def test_symurbench(tiny, tunes, tmp_path):
    """Its own tasks over folk tunes in MIDI: retrieval, and classification by LightAutoML."""
    pandas, benchmark = pytest.importorskip("pandas"), pytest.importorskip("symurbench.benchmark")
    tasks, pieces = pytest.importorskip("symurbench.tasks"), tunes * 2
    for number, tune in enumerate(pieces):
        (tmp_path / f"{number}.mid").write_bytes(mtf_to_midi(to_mtf(read_melody(tune.abc))))
    names = [f"{number}.mid" for number in range(len(pieces))]
    half = len(tunes)
    pandas.DataFrame({"midi_score": names[:half], "midi_performance": names[half:]}).to_csv(tmp_path / "pairs.csv")
    labels = [("jig", "reel", "air").index(tune.rhythm) for tune in pieces]
    pandas.DataFrame({"midi_file": names, "target": labels}).to_csv(tmp_path / "labels.csv")
    asked = [
        getattr(tasks, name).pass_args(str(tmp_path / file), str(tmp_path))
        for name, file in (("ScorePerformanceRetrievalASAP", "pairs.csv"), ("GenreClassificationMMD", "labels.csv"))
    ]
    extractor = import_module("symurbench_features").Features(tiny)
    one = extractor.extract_features_from_file(str(tmp_path / "3.mid"))
    np.testing.assert_allclose(one, tiny.embed_files([tmp_path / "3.mid"])[0], atol=1e-6)
    found = benchmark.Benchmark([extractor], asked)
    found.run_all_tasks()
    retrieval, classes = (found.get_result_dict()[task.name]["CLaMP 3"] for task in asked)
    assert retrieval["R@1_sp"] == retrieval["R@1_ps"] == 100 and min(classes.values()) > 0.9, (retrieval, classes)


def test_frechet(tiny, tunes):
    linalg = pytest.importorskip("scipy.linalg")
    job = import_module("frechet").frechet_distance
    jigs, reels = ([tune.abc for tune in tunes if tune.rhythm == rhythm] for rhythm in ("jig", "reel"))
    assert job(tiny, jigs, jigs) == pytest.approx(0, abs=1e-3)
    a, b = (tiny.embed_any(pieces).astype(np.float64) for pieces in (jigs, reels))
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    covariances = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + covariances
    assert job(tiny, jigs, reels) == pytest.approx(expected, rel=1e-3)
