"""examples/ray_embed.py on a local Ray of two processors: an Embedder's features, and no work that is done twice."""

import subprocess
import sys

import numpy as np
import pytest

from clamp3 import Embedder
from conftest import ROOT
from test_api import JIG, MTF
from test_jobs import lines_of_code

SCRIPT = ROOT / "examples" / "ray_embed.py"


def test_it_goes_on_where_it_was_killed(tmp_path):
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    from clamp3.formats.midi import mtf_to_midi

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(9):
        folder.joinpath(f"{number}.abc").write_text(JIG.replace("K:D", f"K:{'CDEFGAB'[number % 7]}"))
    folder.joinpath("a.txt").write_text("a jig")
    folder.joinpath("bad.abc").write_text("K:C\n")
    folder.joinpath("bad.mid").write_bytes(b"no MIDI")
    np.save(folder / "sound.npy", np.random.default_rng(0).normal(size=(1, 9, 128)).astype(np.float32))

    def run() -> dict[str, dict]:
        command = [sys.executable, SCRIPT, folder, out, "tiny", 1, 0, 4]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        rows = [row for path in out.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
        assert len({row["path"] for row in rows}) == len(rows)
        return {row["path"]: row for row in rows}

    first = run()
    whole, torn = sorted(out.glob("*.parquet"))[:2]
    time = whole.stat().st_mtime_ns
    torn.write_bytes(torn.read_bytes()[:-20])
    folder.joinpath("new.mid").write_bytes(mtf_to_midi(MTF))
    second = run()
    assert len(first) == 13 and first.keys() < second.keys() and len(second) == 14
    assert whole.stat().st_mtime_ns == time and not torn.exists()

    paths = sorted(second)
    features, errors = Embedder.from_pretrained("tiny", "cpu").embed_files(paths, normalize=True, errors="return")
    found = np.array([second[path]["feature"] for path in paths], np.float32)
    np.testing.assert_allclose(found, features, atol=1e-5)
    assert [second[path]["error"] for path in paths] == [str(errors.get(place, "")) for place in range(len(paths))]
    assert len(errors) == 2


def test_it_is_short():
    assert lines_of_code(SCRIPT) <= 50
