"""The README's Python runs as it stands, with the small model in place of the released weights."""

import re
from importlib.util import find_spec
from itertools import islice

import numpy as np
import pytest
import soundfile

from conftest import ROOT
from corpus import corpus_folder, folk_tunes
from notes import read_melody, to_mtf, to_sound

pytest.importorskip("music21")  # which the oldest set of libraries lacks


def test_the_examples_run_and_find_what_they_should(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", ROOT.joinpath("README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tunes = list(islice(folk_tunes(), 0, 12_000, 400))
    (tmp_path / "demo" / "inputs" / "abc").mkdir(parents=True)
    for tune in tunes:
        tmp_path.joinpath("demo", "inputs", "abc", f"{tune.name}.abc").write_text(tune.abc, encoding="utf-8")
    melody = read_melody(tunes[0].abc)
    (tmp_path / "tune.abc").write_text(tunes[0].abc)
    (tmp_path / "piece.mtf").write_text(to_mtf(melody))
    (tmp_path / "notes.txt").write_text("An Irish tune")
    (tmp_path / "score.mxl").write_bytes((corpus_folder() / "bach" / "bwv404.mxl").read_bytes())
    from clamp3.formats.midi import mtf_to_midi

    (tmp_path / "piece.mid").write_bytes(mtf_to_midi(to_mtf(melody)))
    for name in ("song.mp3", "recording.flac"):
        soundfile.write(name, to_sound(melody, 6, 24_000, "fiddle"), 24_000)

    names = {"abc_1": tunes[1].abc, "abc_2": tunes[2].abc, "midi": mtf_to_midi(to_mtf(melody))}
    names |= {"tune": tunes[0].abc, "mert_features": np.ones((1, 3, 128), np.float32)}
    assert len(blocks) >= 4
    for block in blocks:
        if "pandas" in block and find_spec("pandas") is None:  # which nothing here needs
            continue
        exec(block.replace('"saas"', '"tiny"', 1), names)
    assert names["similarity"].shape == (2, 2) and names["anything"].shape == (5, 128)
    assert names["rewards"].shape == (2,) and names["alike"].shape == (2, 2)
    assert list(names["errors"]) == [1] and np.isnan(names["good"][1]).all()
    printed = capsys.readouterr().out
    assert re.search(r"^cosine -?0\.\d{3}$", printed, re.MULTILINE)
    assert len(re.findall(r"^0\.\d{3}  \S+\.abc$", printed, re.MULTILINE)) == 5
    if find_spec("pandas"):
        assert len((tmp_path / "features.csv").read_text().splitlines()) == len(tunes) + 1
