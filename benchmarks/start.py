"""How long it takes to start: `import clamp3`, the small model, its first feature and commands, and `import torch`.

    python benchmarks/start.py
Each is a new process, timed inside it from its first line on (commands: from outside), the median of five. The third
column is the ratio to `import torch`, which all but the first and the help need.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CODE = Path(__file__).parent.parent / "code"
RUNS = 5
TIMED = (
    "import sys, time; sys.path.insert(0, {code!r}); start = time.perf_counter(); {work}; "
    "print(time.perf_counter() - start)"
)
LOAD = "from clamp3 import Embedder; embedder = Embedder.from_pretrained('tiny', 'cpu')"
WORK = {
    "import torch": "import torch",
    "import clamp3": "import clamp3",
    "from_pretrained('tiny')": LOAD,
    "and a first feature": f"{LOAD}; embedder.embed_text(['a lively Irish reel'])",
}
COMMANDS = {"clamp3 --help": ["--help"], "clamp3 search --help": ["search", "--help"]}


def inside(work: str) -> float:
    """Seconds that `work` takes in a new process."""
    script = TIMED.format(code=str(CODE), work=work)
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def outside(words: list[str]) -> float:
    """Seconds from start to end of a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clamp3", *words], cwd=CODE, capture_output=True, check=True)
    return time.perf_counter() - start


def median(measure: Callable[[], float]) -> float:
    measure()  # files come from the disk
    return statistics.median(measure() for _ in range(RUNS))


def main() -> None:
    found = {name: median(lambda work=work: inside(work)) for name, work in WORK.items()}
    found |= {name: median(lambda words=words: outside(words)) for name, words in COMMANDS.items()}
    print(f"{'':24}  {'ms':>8}  {'x torch':>8}")
    for name, seconds in found.items():
        print(f"{name:24}  {seconds * 1000:8.1f}  {seconds / found['import torch']:8.3f}")


if __name__ == "__main__":
    main()
