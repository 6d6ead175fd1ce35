"""docs/python.md runs as it stands, with the small model in place of the released weights."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile

from conftest import ROOT
from test_api import JIG, tone

OPTIONAL = ("sklearn", "sentence_transformers", "datasets")


@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_the_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    text = ROOT.joinpath("docs", "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune.abc").write_text(JIG)
    (tmp_path / "notes.txt").write_text("An Irish tune")
    soundfile.write("song.wav", tone(), 24_000)
    names: dict = {}
    run = 0
    for block in blocks:
        if any(package in block and find_spec(package) is None for package in OPTIONAL):
            continue
        exec(block.replace('"saas"', '"tiny"'), names)
        run += 1
    assert len(blocks) == 8 and run >= 5
    assert names["features"].shape == (3, 128) and names["rows"] is not None
    assert names["layers"].shape[1:] == names["states"].shape and names["means"].shape[0] == len(names["layers"])
    assert "no bars of ABC" in capsys.readouterr().out
    assert np.isfinite(names["added"]).all()
