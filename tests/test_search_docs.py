"""The commands and the Python of docs/search.md run as they stand, with the small model."""

import importlib
import re
import shlex

from answers import answer
from conftest import ROOT
from test_passages import TUNE


def test_what_docs_search_says_runs(tmp_path, monkeypatch, capsys):
    text = ROOT.joinpath("docs", "search.md").read_text(encoding="utf-8")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "QUERIES").mkdir()
    for name in ("QUERY.abc", "tune.abc", "FOLDER/a.abc", "QUERIES/a.abc"):
        (tmp_path / name).write_text(TUNE)
    (tmp_path / "FOLDER" / "b.txt").write_text("a reel\nan air")
    (tmp_path / "tunes.csv").write_text("file,collection,year\na.abc,Essen,1840\n")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        _python, script, *words = shlex.split(command)
        name = script.removesuffix(".py").removeprefix("clamp3_")
        module = importlib.import_module(f"clamp3.cli.commands.{name}")
        model = ("--variant", "tiny") if "duplicates" not in words else ()
        assert answer(monkeypatch, module, *words, *model) == 0, command
    assert (tmp_path / "found.jsonl").stat().st_size
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert "tune.abc {'bars': " in capsys.readouterr().out
