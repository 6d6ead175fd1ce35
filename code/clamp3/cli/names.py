"""The commands: what each is called, as a script and after `clamp3`."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Command:
    """A command `clamp3 NAME`, whose module in clamp3/cli/commands has that name, with _ for spaces and hyphens."""

    name: str
    script: str | None = None  # that runs it too: in code/, or with its path
    keeps_work: bool = False  # whether the same command, once it was interrupted, goes on where it stopped

    @property
    def module(self) -> str:
        return f"clamp3.cli.commands.{re.sub('[ -]', '_', self.name)}"


GROUPS = {
    "features": (
        Command("embed", "clamp3_embd.py", keeps_work=True),
        Command("extract", "extract_clamp3.py", keeps_work=True),
        Command("extract-m3", "extract_m3.py", keeps_work=True),
        Command("extract-mert", "preprocessing/audio/extract_mert.py", keeps_work=True),
    ),
    "search and evaluation": (
        Command("search", "clamp3_search.py"),
        Command("index", "clamp3_index.py"),
        Command("score", "clamp3_score.py"),
        Command("eval", "clamp3_eval.py"),
        Command("map", "clamp3_map.py"),
        Command("mteb", "mteb_eval.py", keeps_work=True),
    ),
    "servers": (Command("web", "clamp3_web.py"), Command("mcp", "clamp3_mcp.py")),
    "classification": (
        Command("zero-shot", "zero_shot.py"),
        Command("train classifier", "train_cls.py"),
        Command("classify", "inference_cls.py"),
    ),
    "training": (
        Command("train symbolic", "train_clamp3_symbolic.py", keeps_work=True),
        Command("train audio", "train_clamp3_audio.py", keeps_work=True),
        Command("train m3", "train_m3.py", keeps_work=True),
        Command("make-jsonl"),
    ),
    "conversion": (
        Command("convert xml2abc", "preprocessing/abc/batch_xml2abc.py", keeps_work=True),
        Command("convert abc2xml", "preprocessing/abc/batch_abc2xml.py", keeps_work=True),
        Command("convert interleave", "preprocessing/abc/batch_interleaved_abc.py", keeps_work=True),
        Command("convert midi2mtf", "preprocessing/midi/batch_midi2mtf.py", keeps_work=True),
        Command("convert mtf2midi", "preprocessing/midi/batch_mtf2midi.py", keeps_work=True),
        Command("convert weights"),
        Command("export", "clamp3_export.py"),
    ),
    "installation": (Command("doctor", "clamp3_doctor.py"), Command("info")),
}
COMMANDS = {command.name: command for commands in GROUPS.values() for command in commands}
SCRIPTS = {PurePosixPath(command.script).name: name for name, command in COMMANDS.items() if command.script}
# A script's name in running text or in a command line, there with what starts it.
SCRIPT = re.compile(
    r"(?P<launcher>\b(?:accelerate launch|torchrun|python -m torch\.distributed\.launch)\b.*? )?"
    rf"(?<![\w./-])(?:python )?(?:code/|preprocessing/\w+/)?\b(?P<script>{'|'.join(map(re.escape, SCRIPTS))})\b"
)
# A whole command that a message advises; those of docstrings begin with "python".
INDEX_COMMAND = re.compile(r"(?<![\w./-])(?<!python )clamp3_index\.py(?= (?:add|build|check|remove|repair) \S)")


def as_called(text: str) -> str:
    """`text`, which calls commands by their scripts' names, with those after `clamp3` if this one was called so.

    Else commands of an index, with their words, become ones that can be pasted where this one was given.
    """
    if sys.argv[0].removeprefix("clamp3 ") in COMMANDS:
        return for_console(text)
    script = shlex.quote(str(Path(sys.argv[0]).parent / "clamp3_index.py"))
    return INDEX_COMMAND.sub(lambda _: f"python {script}", text)


def for_console(text: str) -> str:
    """`text` with the names after `clamp3` in place of the scripts'."""
    return SCRIPT.sub(lambda found: f"{_start(found['launcher'])}clamp3 {SCRIPTS[found['script']]}", text)


def _start(launcher: str | None) -> str:
    return f"{launcher}-m " if launcher else ""
