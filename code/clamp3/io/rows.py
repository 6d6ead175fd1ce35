"""What tables for other programs share: the packages that write and read them, and the names of files in them."""

import importlib
import os
from pathlib import Path
from types import ModuleType

from clamp3.errors import UserError


class MissingPackage(UserError):
    """A package is not installed."""


def package(name: str, install: str) -> ModuleType:
    """The module `name`. Raises MissingPackage with what to install where there is none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackage(f"{install} is not installed: pip install {install}") from None


def name_in_row(path: Path) -> str:
    """What stands for a file in a row: its path; one that is not UTF-8 has \\xNN for the bytes that are not."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
