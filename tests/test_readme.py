"""The README's Python runs as it stands, and all commands in README and docs/ are ones that there are."""

import re
import shlex
from functools import cache
from itertools import islice

import pytest

from clamp3.cli.names import COMMANDS, SCRIPTS
from conftest import ROOT, run_forked
from corpus import folk_tunes

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"^(?:CLAMP3_CONFIG='[^']*' |CLAMP3_CONFIG=\S+ )?(?:python|accelerate launch|torchrun|clamp3) .*", re.MULTILINE
)


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in these languages ("" for none)."""
    return [
        body
        for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if language in languages
    ]


def test_the_readme_is_short_and_its_python_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("music21")  # which the oldest set of libraries lacks
    text = PAGES[0].read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    folder = tmp_path / "demo" / "inputs" / "abc"
    folder.mkdir(parents=True)
    for tune in islice(folk_tunes(), 0, 12_000, 400):
        (folder / f"{tune.name}.abc").write_text(tune.abc, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    [block] = blocks(text, "python")
    exec(block, {})
    assert len(re.findall(r"^0\.\d{3}  \S+\.abc$", capsys.readouterr().out, re.MULTILINE)) == 5


@cache
def help_of(name: str) -> str:
    """What the command says of itself; of index, with its subcommands."""
    entry = ROOT / "code" / "clamp3" / "__main__.py"
    text = run_forked(entry, *name.split(), "--help").stdout
    if name == "index":
        text += "".join(
            run_forked(entry, name, part, "--help").stdout for part in ("build", "add", "search", "remove", "export")
        )
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_that_there_are(page):
    """Each names a script that is there or a command of clamp3, with options that its --help knows."""
    for block in blocks(page.read_text(encoding="utf-8"), "", "bash", "sh"):
        for line in COMMAND.findall(block):
            words = shlex.split(line, comments=True)
            name = next(
                (SCRIPTS[word.rpartition("/")[2]] for word in words if word.rpartition("/")[2] in SCRIPTS), None
            )
            if name is None and "clamp3" in words:
                after = words[words.index("clamp3") + 1 :]
                name = next((" ".join(after[:n]) for n in (2, 1) if " ".join(after[:n]) in COMMANDS), None)
                if after[:1] and (after[0].startswith("-") or after[0] == "COMMAND" or after[:1] == ["convert"]):
                    continue
            if name is None and re.search(r"examples/|benchmarks/|tests/|-m pytest|-c ", line):
                continue
            assert name, line
            start = next(i for i, word in enumerate(words) if word == "clamp3" or word.rpartition("/")[2] in SCRIPTS)
            for option in (word.split("=")[0] for word in words[start:] if word.startswith("--")):
                assert option in help_of(name), line


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert re.match(r"https?:", target) or (page.parent / target).exists(), f"{page.name}: {target}"
