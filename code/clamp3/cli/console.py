"""CLaMP 3 joins texts in 100 languages, sheet music, MIDI and sound in one space.

Find the files of a folder that are closest to a text, or to another file:
    clamp3 search "a lively Irish reel" FOLDER --variant tiny
    clamp3 search QUERY.mid FOLDER --variant tiny
Make features of all files once, and use them often:
    clamp3 embed FOLDER FEATURES --get_global
The small model `tiny` is part of the package and knows folk tunes; without --variant, the released weights are used,
which are downloaded once (2.6 GB). `clamp3 COMMAND --help` explains a command and shows its command lines; `python -m
clamp3` is the same command, for torchrun and accelerate launch. CLAMP3_CONFIG, a JSON object or a file with one, sets
the knobs of training and of your own models; `clamp3 info --knobs` lists them.
"""

import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterable
from importlib import import_module

from clamp3 import __version__
from clamp3.cli.names import COMMANDS, GROUPS, SCRIPTS, Command, for_console
from clamp3.cli.options import run

# What else people may call a command.
SYNONYMS = {
    **{script.removesuffix(".py"): name for script, name in SCRIPTS.items()},
    **{"embedding": "embed", "features": "embed", "encode": "embed", "find": "search", "query": "search"},
    **{"similarity": "score", "evaluate": "eval", "retrieval": "eval", "zeroshot": "zero-shot", "maeb": "mteb"},
    **{"predict": "classify", "inference": "classify", "probe": "train classifier", "mert": "extract-mert"},
    **{"check": "doctor", "diagnose": "doctor", "version": "info", "config": "info", "finetune": "train"},
}
MODELS, WEIGHTS = (
    ("saas", "c2", "m3", "tiny"),
    (".pth", ".safetensors"),
)  # `clamp3 convert saas OUT` needs no "weights"


def main() -> None:
    """Run the command that the command line names; exits with its code."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        run(show_help, keeps_work=False)
    if words[0] in ("-V", "--version"):
        run(show_version, keeps_work=False)
    if words[0] == "convert" and words[1:] and (words[1] in MODELS or words[1].endswith(WEIGHTS)):
        words = ["convert", "weights", *words[1:]]
    for length in (2, 1):
        if command := COMMANDS.get(" ".join(words[:length])):
            sys.argv = [f"clamp3 {command.name}", *words[length:]]
            run_command(command.name)
    sys.exit(explain(words))


def run_command(name: str) -> None:
    """Run the command with the options of the command line; exits with its code."""
    command = COMMANDS[name]
    run(lambda: import_module(command.module).main(), command.keeps_work)


def show_version() -> int:
    print(f"clamp3 {__version__}")
    return 0


def show_help() -> int:
    """What this is, and a line for each command."""
    print(f"usage: clamp3 COMMAND …\n\n{__doc__}")
    for title, commands in GROUPS.items():
        print(f"{title}:")
        print_commands(commands)
    return 0


def print_commands(commands: Iterable[Command]) -> None:
    first = max(map(len, COMMANDS)) + 4
    width = max(shutil.get_terminal_size().columns, first + 40)
    for command in commands:
        summary = for_console((import_module(command.module).__doc__ or "").split("\n")[0])
        print(textwrap.fill(f"  {command.name:{first - 2}}{summary}", width, subsequent_indent=" " * first))


def explain(words: list[str]) -> int:
    """Say what the words may have meant, which name no command; returns the exit code."""
    members = [command for command in COMMANDS.values() if command.name.split(" ")[0] == words[0]]
    if members and words[1:] in ([], ["-h"], ["--help"]):
        print(f"usage: clamp3 {words[0]} {'|'.join(command.name.split(' ')[1] for command in members)} …\n")
        print_commands(members)
        return 0 if words[1:] else 2
    name = " ".join(words[:2] if members else words[:1])
    print(f"error: there is no command {name!r}{suggestion(name)}; `clamp3 --help` lists all", file=sys.stderr)
    return 2


def suggestion(name: str) -> str:
    """The command that may have been meant, for people."""
    plain = name.lower().removesuffix(".py").replace("_", "-")
    known = {**SYNONYMS, **{command: command for command in COMMANDS}}
    known |= {command.split(" ")[-1]: command for command in COMMANDS}
    spelled = {word.replace("_", "-"): command for word, command in known.items()}
    close = difflib.get_close_matches(plain, spelled, n=1)
    return f"; did you mean `clamp3 {spelled[close[0]]}`?" if close else ""
