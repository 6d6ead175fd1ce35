"""Converters for tests of the driver: what a file says, they do. (Worker processes import them from here.)"""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from clamp3.errors import Note, warn
from clamp3.features.reading import read_file
from clamp3.inputs.encoder import InputEncoder


def obey(path: Path, note: Note = warn) -> str | bytes | list[str]:
    """The file in capitals, unless its first word is one of these."""
    word, *rest = path.read_text().split() or [""]
    if word == "exit":
        os._exit(int(rest[0]))
    if word == "quit":
        sys.exit("quits")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "stumble" and not (before := path.with_suffix(".stumbled")).exists():
        before.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "take":  # so many MB
        bytearray(int(float(rest[0]) * 1e6))
    if word == "remove":
        shutil.rmtree(rest[0])
    if word == "search":  # which lets no other thread run
        print("searching", flush=True)
        re.match("(a*)*b", "a" * 40)
    if word == "sleep":
        print("asleep", flush=True)
        time.sleep(float(rest[0]))
    if word == "refuse":
        raise ValueError(" ".join(rest))
    if word == "fail":
        raise KeyError(rest[0])
    if word == "mend":
        for what in rest:
            note(what)
    if word == "pieces":
        return [piece.upper() for piece in rest]
    return path.read_bytes() if word == "bytes" else path.read_text().upper()


def count(path: Path) -> int:
    """How many pieces `obey` makes of a file, unless its second word is one of the above."""
    word, *rest = path.read_text().split() or [""]
    if rest == ["count"]:
        obey(path.with_suffix(".how"))
    return len(rest) if word == "pieces" else 1


def read_or_obey(encoder: InputEncoder, path: Path, note: Note) -> np.ndarray:
    """What a score is as the models' input, unless its first word is one of the above."""
    if path.read_text().split()[0] in ("kill", "sleep"):
        obey(path)
    return read_file(encoder, path, note)
