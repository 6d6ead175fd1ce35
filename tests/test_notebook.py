"""notebooks/quickstart.ipynb runs from its first cell to its last, and what it keeps is what it gives."""

import json

import pytest

from conftest import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def kinds(notebook: dict) -> list[list[str]]:
    """Of each cell's outputs: a stream's name, or the types of data."""
    cells = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[output.get("name") or min(output["data"]) for output in outputs] for outputs in cells]


def test_the_notebook_runs_and_keeps_its_outputs(monkeypatch, tmp_path):
    """Tables, a player and a map; numbers may differ in their last digits."""
    monkeypatch.syspath_prepend(str(NOTEBOOK.parent))
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from run import executed

    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    found = executed(NOTEBOOK)
    assert kinds(found) == kinds(kept)
    shown = {kind for cell in kinds(found) for kind in cell}
    assert {"stdout", "text/markdown", "text/html", "image/png"} <= shown and "stderr" not in shown
    text = json.dumps(found)
    assert "a_blast_of_wind.abc" in text and "data:audio/mpeg;base64," in text
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")
