"""What an index is given to answers as the index does: Parquet read by pyarrow, LanceDB, and Qdrant's local mode."""

import contextlib
import json
import re
import shlex
import sys

import numpy as np
import pytest

from answers import answer, save_features, vectors
from clamp3.cli.commands import index as clamp3_index
from clamp3.errors import UserError
from clamp3.search import exporting
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from clamp3.search.integrity import Damaged
from conftest import ROOT

QUERIES = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Three hundred files, some of them removed, one with metadata and one with a name that is not UTF-8."""
    monkeypatch.setattr(exporting, "BLOCK", 64)
    monkeypatch.setattr(exporting, "UPSERT", 50)
    folder = tmp_path / "in"
    save_features(folder, vectors(*(f"愛 {number}" for number in range(300)), "b\udcff"))
    index = Index.create(tmp_path / "index")
    metadata = {(folder / "愛 7.npy").resolve(): {"name": "Ein Lied", "year": "1840"}}
    update_index(index, folder, lambda: pytest.fail("nothing is to be embedded"), metadata=metadata)
    index.remove([(folder / f"愛 {number}.npy").resolve() for number in range(20, 40)])
    yield index
    index.close()


def expected(index: Index, query: np.ndarray) -> dict[str, float]:
    return {named(str(entry.path)): cosine for cosine, entry in index.search(query, 10, approximate=False)}


def named(path: str) -> str:
    return path.replace("\udcff", "\\xff")


def assert_same(index: Index, query: np.ndarray, found: list[tuple[str, float]]) -> None:
    wanted = expected(index, query)
    assert [file for file, _ in found] == list(wanted)
    np.testing.assert_allclose([cosine for _, cosine in found], list(wanted.values()), atol=1e-5)


def test_parquet(index, tmp_path, monkeypatch, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "rows.parquet"
    command = ("export", index.folder, out, "--to", "parquet")
    assert answer(monkeypatch, clamp3_index, *command) == 0 and "281 files -> " in capsys.readouterr().out
    table = parquet.read_table(out)
    rows = table.to_pylist()
    assert list(rows[0]) == ["file", "modality", "metadata", "fingerprint", "feature"]
    assert [row["file"] for row in rows] == [named(str(entry.path)) for entry in index.entries()]
    features = np.array([row["feature"] for row in rows], np.float32)
    assert np.array_equal(features, index.features[[entry.row for entry in index.entries()]])
    assert np.allclose(np.linalg.norm(features, axis=1), 1) and str(table.schema.field("feature").type).endswith("[8]")
    described = {row["file"].rpartition("/")[2]: json.loads(row["metadata"]) for row in rows}
    assert described["愛 7.npy"] == {"name": "Ein Lied", "year": "1840"} and described["愛 8.npy"] == {}
    for query in QUERIES:
        cosines = features @ query / np.linalg.norm(query)
        best = np.argsort(-cosines)[:10]
        assert_same(index, query, [(rows[place]["file"], cosines[place]) for place in best])
    with pytest.raises(UserError, match="rows.parquet already: remove it or give another name"):
        answer(monkeypatch, clamp3_index, *command)


def test_lance(index, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    out = str(tmp_path / "music.lance")
    assert exporting.export(index, out, "lance") == 281
    table = lancedb.connect(out).open_table("clamp3")
    for query in QUERIES:
        rows = table.search(query).distance_type("cosine").limit(10).to_list()
        assert_same(index, query, [(row["file"], 1 - row["_distance"]) for row in rows])
    with pytest.raises(UserError, match="a table clamp3 in .* already: remove it, or give another by --name"):
        exporting.export(index, out, "lance")
    assert exporting.export(index, out, "lance", "again") == 281


def test_qdrant(index, tmp_path):
    client_type = pytest.importorskip("qdrant_client").QdrantClient
    out = str(tmp_path / "qdrant")
    assert exporting.export(index, out, "qdrant", "music") == 281
    client = client_type(path=out)
    assert client.count("music").count == 281
    for query in QUERIES:
        points = client.query_points("music", query.tolist(), limit=10).points
        assert_same(index, query, [(point.payload["file"], point.score) for point in points])
    assert {"name": "Ein Lied", "year": "1840"} in [
        point.payload["metadata"] for point in client.scroll("music", limit=300)[0]
    ]
    client.close()
    with pytest.raises(UserError, match="a collection music in .* already"):
        exporting.export(index, out, "qdrant", "music")
    with pytest.raises(UserError, match="http://127.0.0.1:9 cannot be written: .*refused"):
        exporting.export(index, "http://127.0.0.1:9", "qdrant")


def test_what_docs_scaling_says_runs(tmp_path, monkeypatch, capsys):
    """Its exports and searches, and its Python, with the small model; Qdrant by a folder."""
    for package in ("lancedb", "qdrant_client"):
        pytest.importorskip(package)
    text = ROOT.joinpath("docs", "scaling.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    save_features(tmp_path / "FOLDER", vectors("a", "b", hidden=128))
    with contextlib.closing(Index.create(tmp_path / "INDEX")) as index:
        metadata = {tmp_path / "FOLDER" / "a.npy": {"year": "1840"}}
        update_index(index, tmp_path / "FOLDER", lambda: pytest.fail("nothing is to be embedded"), metadata=metadata)
    commands = re.findall(r"^python code/clamp3_index.py (export .*)", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = command.replace("http://localhost:6333", "music.qdrant").split()
        assert answer(monkeypatch, clamp3_index, *words) == 0
    searches = re.findall(r"^python code/clamp3_index.py (search .*)", text, re.MULTILINE)
    assert len(searches) == 2
    for command in searches:
        words = shlex.split(command.replace("http://localhost:6333", "music.qdrant"))
        assert answer(monkeypatch, clamp3_index, *words, "--variant", "tiny") == 0
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace('"saas"', '"tiny", "cpu"'), names)
    shown = re.findall(r"^(-?0\.\d{3}) \S+/([ab])\.npy$", capsys.readouterr().out, re.MULTILINE)
    assert len(shown) == 4 and shown[:2] == shown[2:]


PACKAGES = {"parquet": "pyarrow", "lance": "lancedb", "qdrant": "qdrant_client"}


@pytest.mark.parametrize("to", PACKAGES)
def test_what_fails_is_said_and_leaves_nothing(index, tmp_path, monkeypatch, to):
    module = PACKAGES[to]
    install = module.replace("_", "-")
    with monkeypatch.context() as patched:
        for name in [name for name in sys.modules if name.split(".")[0] == module] + [module]:
            patched.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"{install} is not installed: pip install {install}$"):
            exporting.export(index, str(tmp_path / "out"), to)
    with Index.create(tmp_path / "empty").snapshot(), pytest.raises(UserError, match="is empty"):
        exporting.export(Index(tmp_path / "empty"), str(tmp_path / "out"), to)
    pytest.importorskip(module)
    with open(index.folder / index.meta["features"], "r+b") as file:
        file.seek(200 * 32)  # row 200, in the fourth block
        file.write(b"\1\2\3\4")
    with pytest.raises(UserError) as raised:
        exporting.export(index, str(tmp_path / "out"), to)
    assert "is not what was written" in str(raised.value)
    assert isinstance(raised.value, Damaged)
    if to == "lance":
        with pytest.raises(ValueError, match="not found"):
            sys.modules["lancedb"].connect(str(tmp_path / "out")).open_table("clamp3")
    elif to == "qdrant":
        client = sys.modules["qdrant_client"].QdrantClient(path=str(tmp_path / "out"))
        assert not client.collection_exists("clamp3")
        client.close()
    else:
        assert not [path for path in tmp_path.iterdir() if path.name not in ("in", "index", "empty")]
