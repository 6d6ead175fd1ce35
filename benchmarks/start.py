"""How long it takes to start: `import clamp3`, the small model, its first feature and commands, and `import torch`.

    python benchmarks/start.py
    python benchmarks/start.py INDEX ANOTHER    and a text query on each of these indexes, by clamp3_search.py
Each is a new process, timed inside it from its first line on (commands: from outside). All take turns, and medians of
five are shown. The third column is the ratio to `import torch`, which all but the first, the help and queries on an
index by ONNX files need.
"""

import os
import statistics
import subprocess
import sys
import time
from functools import partial
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
QUERY = "a lively Irish reel"
COMMANDS = {"clamp3 --help": ["--help"], "clamp3 search --help": ["search", "--help"]}


def inside(work: str) -> float:
    """Seconds that `work` takes in a new process."""
    script = TIMED.format(code=str(CODE), work=work)
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def outside(words: list[str]) -> float:
    """Seconds from start to end of a command, which may keep its compiled sources, as where it is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=CODE, env=environment, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    words = {name: ["-m", "clamp3", *words] for name, words in COMMANDS.items()}
    if sys.argv[1:]:  # which take Python's own start and end as well
        words["import torch, as a process"] = ["-c", "import torch"]
    words |= {f"query on {path}": ["clamp3_search.py", QUERY, str(Path(path).resolve())] for path in sys.argv[1:]}
    contenders = {name: partial(inside, work) for name, work in WORK.items()}
    contenders |= {name: partial(outside, command) for name, command in words.items()}
    times = [{name: measure() for name, measure in contenders.items()} for _ in range(RUNS + 1)]
    found = {
        name: statistics.median(turn[name] for turn in times[1:]) for name in contenders
    }  # files are read by then
    width = max(map(len, found))
    print(f"{'':{width}}  {'ms':>8}  {'x torch':>8}")
    for name, seconds in found.items():
        print(f"{name:{width}}  {seconds * 1000:8.1f}  {seconds / found['import torch']:8.3f}")


if __name__ == "__main__":
    main()
