"""Runs scripts in forks of itself, which has the large libraries loaded, so that a start takes no seconds.

It reads requests from its standard input, a line of JSON each: `words` (the script and its arguments), `env`, `cwd`,
`stdout` and `stderr` (paths that it writes to), and `processes`: how many, which find each other as if torchrun had
started them. It answers each request with a line, the first exit code that is not 0, or else 0.
"""

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

CODE = Path(__file__).parent.parent / "code"
TIME_LIMIT = 300  # seconds, after which a script is killed
LIBRARIES = (
    "accelerate.utils",
    "av",
    "torch._dynamo",
    "transformers.models.auto.tokenization_auto",
    "clamp3.features.embedder",
    "clamp3.training.loop",
)


def main() -> None:
    load_libraries()
    for line in sys.stdin:
        request = json.loads(line)
        port = free_port()
        children = [start(request, rank, port) for rank in range(request["processes"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next(filter(None, codes), 0), flush=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def load_libraries() -> None:
    """All that the project imports, but nothing of the project: its settings are those of a request."""
    sys.path.insert(0, str(CODE))
    for name in LIBRARIES:
        import_module(name)
    sys.modules["torch"].set_num_threads(1)
    sys.path.remove(str(CODE))
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{CODE}{os.sep}"):
            del sys.modules[name]


def start(request: dict, rank: int, port: int) -> int:
    """A fork that runs the script, as one of the request's processes; returns its number."""
    child = os.fork()
    if child:
        return child
    if request["processes"] > 1:
        request["env"] |= launched(rank, request["processes"], port)
    signal.alarm(TIME_LIMIT)
    os._exit(code_of(request))


def launched(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would add to the environment of a process."""
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(fact) for name, fact in facts.items()}


def code_of(request: dict) -> int:
    """Run the script as Python would; returns its exit code."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # What the hub's client has read of it when it was imported.
    sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"
    script = Path(request["words"][0]).absolute()
    sys.argv = [str(script), *request["words"][1:]]
    sys.path[0] = str(script.parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
