"""Run a command, and print as JSON its wall time, its peak memory and when its first output was in place.

    python benchmarks/command.py OUTPUT_DIR COMMAND...
A script of its own, with next to no imports: on Linux a process's peak memory counts that of the process it was
forked from, too.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


def main() -> int:
    output_dir, command = Path(sys.argv[1]), sys.argv[2:]
    started, start = time.time_ns(), time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    written = [path.stat().st_mtime_ns for path in output_dir.rglob("*.npy")]
    first = (min(written) - started) / 1e9 if written else None
    print(json.dumps({"seconds": seconds, "peak_bytes": usage.ru_maxrss * RSS_UNIT, "first_output_seconds": first}))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
