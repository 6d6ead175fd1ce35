"""Memory that is free again, returned to the system."""

import ctypes
import sys
import time

INTERVAL = 10  # seconds; a return takes some 50 ms
_next_return = 0.0


def return_freed_memory() -> None:
    """Let the C library return the memory that it keeps for later to the system, if it has not just done so.

    Batches of all sizes and features that stay leave gaps in glibc's heap, which then grows for ever, though nothing
    is held: see benchmarks/memory.py. Other C libraries have no such call, and nothing is done.
    """
    global _next_return
    if sys.platform != "linux" or time.monotonic() < _next_return:
        return
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    _next_return = time.monotonic() + INTERVAL
