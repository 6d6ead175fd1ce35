"""What the library tells its users: the errors that are theirs to mend, and remarks on inputs that it has mended."""

import re
import warnings
from collections.abc import Callable


class UserError(ValueError):
    """Wrong settings, weights or folders: commands print its message without a traceback and exit with 2."""


class OneProcessError(UserError):
    """What one process of several may meet alone: so it is that one which must say so."""


class RepairWarning(UserWarning):
    """An input is damaged or out of the ordinary, and was read all the same: the message says what was done."""


# What readers call with a remark on an input that they have mended or read in part.
Note = Callable[[str], None]

# How the input encoder's remarks begin on ABC whose voices stand one after another, and on bars that are longer than a
# patch. Summaries count them.
WAS_STANDARD = "standard ABC, which was interleaved first"
LONG_BARS = "bars longer than the"
IN_WORDS = "a picture, in the words of"  # how the remark begins that has the caption of one


NO_MEMORY = re.compile(
    "out of memory|not enough memory|allocate memory|bad_alloc|failed to map segment|can't start new thread"
    "|^could not create a primitive$",  # of oneDNN
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` is about too little memory: Python's, a device's, or that for loading a library."""
    said = isinstance(error, RuntimeError | ImportError | OSError) and NO_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(said)


def ignore(message: str) -> None:
    """The `Note` of those who want no remarks."""


def warn(message: str) -> None:
    """The default `Note`: a RepairWarning. Pass another one to collect remarks, in threads above all."""
    warnings.warn(RepairWarning(message), stacklevel=3)
