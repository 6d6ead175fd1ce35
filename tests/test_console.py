"""The command `clamp3`: it lists, teaches and starts the same commands as the scripts, also out of a built package."""

import ast
import os
import re
import shlex
import subprocess
import sys
import wave
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from clamp3 import __version__
from clamp3.cli.console import suggestion
from clamp3.cli.names import COMMANDS, SCRIPT, SCRIPTS, for_console
from conftest import CODE, ROOT, run_forked

PATHS = [ROOT / ("" if "/" in script else "code") / script for c in COMMANDS.values() if (script := c.script)]


@pytest.fixture(scope="module")
def entry(tmp_path_factory) -> Path:
    """What an installation puts on the path as `clamp3`, for this repository."""
    path = tmp_path_factory.mktemp("bin") / "clamp3"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(CODE)!r})\nfrom clamp3.cli.console import main\n"
        'if __name__ == "__main__":\n    main()\n'
    )
    return path


def python(*words, path=CODE, **options) -> subprocess.CompletedProcess:
    env = {**os.environ, "CLAMP3_CONFIG": "", "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=60, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


# ---------- the table of commands ----------


def test_every_script_and_every_module_is_in_the_table():
    scripts = {*CODE.glob("*.py"), *ROOT.glob("preprocessing/*/*.py")}
    assert scripts - {CODE / "config.py", CODE / "utils.py"} == set(PATHS)
    modules = {path.stem for path in (CODE / "clamp3" / "cli" / "commands").glob("[!_]*.py")}
    assert modules == {command.module.rpartition(".")[2] for command in COMMANDS.values()}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_script_holds_its_command_lines_and_one_call(path):
    """They are the beginning of the command's own help."""
    name = SCRIPTS[path.name]
    module = ast.parse(path.read_text(encoding="utf-8"))
    *taught, _where = ast.get_docstring(module, clean=False).splitlines()
    assert import_module(COMMANDS[name].module).__doc__.splitlines()[: len(taught)] == taught
    assert ast.unparse(module.body[-1]) == f"if __name__ == '__main__':\n    run_command({name!r})"


def test_command_lines_are_rewritten_whatever_starts_them():
    cases = {
        "python clamp3_search.py X Y": "clamp3 search X Y",
        "python code/clamp3_index.py add": "clamp3 index add",
        "python preprocessing/abc/batch_xml2abc.py A B": "clamp3 convert xml2abc A B",
        "torchrun --nproc_per_node 2 train_m3.py --check": "torchrun --nproc_per_node 2 -m clamp3 train m3 --check",
        "python -m torch.distributed.launch --use_env train_m3.py": "python -m torch.distributed.launch --use_env -m "
        "clamp3 train m3",
        "what clamp3_embd.py takes": "what clamp3 embed takes",
    }
    assert {text: for_console(text) for text in cases} == cases
    for untouched in ("my_zero_shot.py", "songs/zero_shot.py", "clamp3_search.python", "accelerate launch mine.py"):
        assert for_console(untouched) == untouched


# ---------- what it says ----------


def test_help_lists_all_commands_without_a_large_library():
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'transformers'))); sys.argv = ['clamp3', {}]"
    )
    script = f"{blocked}; from clamp3.cli.console import main; main()"
    shown = python("-c", script.format("'--help'")).stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +\S", shown, re.MULTILINE), name
    assert not SCRIPT.search(shown)
    assert python("-c", script.format("'--version'")).stdout == f"clamp3 {__version__}\n"


def test_help_of_every_command_is_the_scripts_in_the_names_of_the_console():
    """In one process, for a start each would take long."""
    each = (
        "import sys\nfrom clamp3.cli import console\nfrom clamp3.cli.names import COMMANDS\n"
        "for name in COMMANDS:\n    sys.argv = ['clamp3', *name.split(), '--help']\n"
        "    try:\n        console.run = lambda main, keeps_work: sys.exit(main())\n        console.main()\n"
        "    except SystemExit as end:\n        print('\\x1e', end.code)\n"
    )
    shown = python("-c", each, check=True).stdout.split("\x1e 0\n")[:-1]
    assert len(shown) == len(COMMANDS)
    for name, text in zip(COMMANDS, shown, strict=True):
        assert text.startswith(f"usage: clamp3 {name} ") and f"    clamp3 {name}" in text or "-m clamp3" in text
        assert for_console(import_module(COMMANDS[name].module).__doc__).strip() in text and not SCRIPT.search(text)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("serch", "search"),
        ("embd", "embed"),
        ("clamp3_embd.py", "embed"),
        ("Index", "index"),
        ("zero_shot", "zero-shot"),
        ("inference_cls", "classify"),
        ("evaluate", "eval"),
        ("train_cls", "train classifier"),
        ("train simbolic", "train symbolic"),
        ("midi2mtf", "convert midi2mtf"),
        ("convert midi2mft", "convert midi2mtf"),
        ("batch_abc2xml.py", "convert abc2xml"),
        ("extract_m3", "extract-m3"),
        ("docter", "doctor"),
    ],
)
def test_a_wrong_name_suggests_the_right_one(said, meant):
    assert suggestion(said) == f"; did you mean `clamp3 {meant}`?"


def test_wrong_names_end_with_one_line(entry):
    done = run_forked(entry, "serch", "a reel", check=2)
    assert (
        done.stderr == "error: there is no command 'serch'; did you mean `clamp3 search`?; `clamp3 --help` lists all\n"
    )
    done = run_forked(entry, "\x1b[2Jqqqqq", check=2)
    assert "\x1b" not in done.stderr and done.stderr.count("\n") == 1 and "did you mean" not in done.stderr
    assert "symbolic|audio|m3" in run_forked(entry, "train", check=2).stdout
    assert "symbolic|audio|m3" in run_forked(entry, "train", "--help").stdout
    done = run_forked(entry, "index", "info", "nowhere", check=2)
    assert done.stderr == "error: there is no index in nowhere; clamp3 index build nowhere FOLDER makes one\n"


# ---------- without the extras ----------

EXTRAS = ("wandb", "matplotlib", "faiss", "sklearn", "converter21", "music21", "mteb", "soundfile", "mido")


@pytest.fixture(scope="module")
def core(entry) -> Path:
    """The command, where no package of the extras can be imported."""
    path = entry.with_name("core")
    path.write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n{entry.read_text()}")
    return path


def test_the_core_alone_embeds_and_searches(core, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "jig.abc").write_text("X:1\nL:1/8\nM:6/8\nK:D\n|: dAF DFA | ded cBA | dcd efg | fdf ecA :|\n")
    (folder / "song.txt").write_text("Chinese folk song in 2/4")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, 24_000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(48_000) / 20) * 9000).astype("<i2").tobytes())
    run_forked(core, "index", "build", tmp_path / "index", folder, "--variant", "tiny")
    found = run_forked(core, "search", "Irish jig in D major", tmp_path / "index", "--variant", "tiny").stdout
    assert re.search(r"^ +1 .*jig\.abc", found, re.MULTILINE) and "tone.wav" in found


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("train m3 --plot curves.png", 'pip install "clamp3[train]"'),
        ("train classifier FOLDER probe.safetensors --labels folder --variant tiny", 'pip install "clamp3[classify]"'),
        ("search reel FOLDER/b/1.krn --variant tiny", 'pip install "clamp3[scores]"'),
        ("index build INDEX FOLDER/1.npy --approximate", "pip install faiss-cpu"),
        ("mteb --list", "pip install 'mteb>=2.26,<3'"),
    ],
)
def test_a_missing_extra_is_one_line(words, advice, core, tmp_path):
    for name in ("folder/a/1.abc", "folder/b/1.krn"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("**kern\n4c\n*-\n" if name.endswith("krn") else "X:1\nL:1/8\nK:D\nDEF|\n")
    np.save(tmp_path / "folder" / "1.npy", np.ones((1, 8), np.float32))
    given = [word.replace("FOLDER", "folder").replace("INDEX", "index") for word in words.split()]
    env = {**os.environ, "CLAMP3_CONFIG": '{"M3_LOGS_PATH": "logs.txt"}'}
    (tmp_path / "logs.jsonl").write_text('{"epoch": 1, "train_loss": 1.0, "eval_loss": 1.0}\n')
    done = run_forked(core, *given, cwd=tmp_path, env=env, check=None)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert len([line for line in (done.stdout + done.stderr).splitlines() if advice in line]) == 1, done


def test_the_commands_of_the_document_run(entry, tmp_path):
    """docs/install.md, in a folder with tunes, one after the other."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "tunes").mkdir()
    (tmp_path / "tunes" / "jig.abc").write_text("X:1\nL:1/8\nM:6/8\nK:D\n|: dAF DFA | ded cBA | dcd efg :|\n")
    for line in "".join(blocks).splitlines():
        *settings, words = re.fullmatch(r"(?:(\w+)='(.*)' )?clamp3 (.*)", line).groups()
        env = {**os.environ, "CLAMP3_CONFIG": "", **({settings[0]: settings[1]} if settings[0] else {})}
        done = run_forked(entry, *shlex.split(words), env=env, cwd=tmp_path)
    assert "PATCH_LENGTH = 256" in done.stdout


# ---------- a built package ----------


def test_a_built_package_has_the_knobs_and_the_commands_of_the_repository(tmp_path):
    """What the wheel holds: `pip wheel` takes much longer, and `.ci/fresh_install` does it."""
    build = ("setup.py", "-q", "build", "--build-base", tmp_path / "base", "build_py", "--build-lib", tmp_path / "lib")
    python(*map(str, build), cwd=ROOT, check=True)
    built = tmp_path / "lib"
    assert (built / "clamp3" / "cli" / "config.py").read_bytes() == (CODE / "config.py").read_bytes()
    (tmp_path / "empty").mkdir()
    (built / "config.py").write_text("raise SystemExit('somebody else is called config')")
    show = ("-m", "clamp3", "info", "--knobs")
    knobs = python(*show, path=built, cwd=tmp_path / "empty", check=True).stdout
    assert knobs == python(*show, cwd=tmp_path / "empty", check=True).stdout and "PATCH_LENGTH = 512" in knobs
    assert f"in {built / 'clamp3'}\n" in python("-m", "clamp3", "info", path=built, cwd=tmp_path / "empty").stdout


# ---------- weights ----------


def test_weights_become_a_folder_that_every_command_takes(entry, tmp_path):
    done = run_forked(entry, "convert", "tiny", tmp_path / "model", "--towers", "text", "symbolic")
    assert "symbolic.safetensors: " in done.stdout and "is whole" in done.stdout
    assert not (tmp_path / "model" / "audio.safetensors").exists()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a lively reel")
    for number, model in enumerate((("--weights", tmp_path / "model"), ("--variant", "tiny"))):
        run_forked(entry, "extract", tmp_path / "in", tmp_path / str(number), "--get_global", *model)
    first, second = (tmp_path / name / "a.npy" for name in "01")
    assert first.read_bytes() == second.read_bytes()
    assert "did you mean `clamp3 convert xml2abc`" in run_forked(entry, "convert", "xml2abd", check=2).stderr
