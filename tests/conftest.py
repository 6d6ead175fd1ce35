"""A small CLaMP 3 on disk, as a user would have it: weights, text model folder, and the settings that name them."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from clamp3.io.workers import cores
from clamp3.sizes import ModelSizes
from corpus import Tune, folk_tunes
from golden_model import golden_json, golden_sizes, save_checkpoint

ROOT = Path(__file__).parent.parent
CODE = ROOT / "code"
BIN = Path(sys.executable).parent
MERT_TINY = ROOT / "tests" / "golden" / "mert_tiny"
# Models this small gain nothing from threads, and on busy cores threads that spin while they wait lose a lot.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
torch.set_num_threads(1)
# A test run in the background ignores Ctrl-C, and so would the commands that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's, with its ids


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer in `folder` that knows any language, with XLM-R's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a lively reel from Ireland in D major", "the slow air of the sea"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


@pytest.hookimpl(optionalhook=True)  # the oldest set of libraries has no pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as many tests wait for the processes that they start; four at most."""
    return min(4, cores() + 1)


@pytest.fixture(scope="session")
def corpus_tunes() -> list[Tune]:
    """All folk tunes of music21's corpus, read once: that takes seconds."""
    return list(folk_tunes())


@dataclass
class SmallModel:
    """A folder with the golden model, and the ways to it."""

    folder: Path
    sizes: ModelSizes
    clamp3: Path
    m3: Path

    def knobs(self, **changes) -> dict[str, object]:
        """What CLAMP3_CONFIG has to say for the scripts to use this model."""
        dims = golden_json("model.json")["dims"]
        return {
            **{name: value for name, value in dims.items() if name.isupper()},
            "TEXT_MODEL_NAME": str(self.folder),
            "CLAMP3_WEIGHTS_PATH": str(self.clamp3),
            "M3_WEIGHTS_PATH": str(self.m3),
            **changes,
        }

    def environment(self, **changes) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "CLAMP3_CONFIG": json.dumps(self.knobs(**changes))}
        return {**os.environ, **offline, "PYTHONPATH": ""}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """No test sees or fills the user's cache of features."""
    os.environ["CLAMP3_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_log() -> None:
    """The library's log goes to pytest, also after a test whose command ran in this process and printed it."""
    logger = logging.getLogger("clamp3")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)  # which `clamp3 export` raises


def save_small_model(folder: Path) -> SmallModel:
    golden = golden_json("model.json")
    save_tokenizer(folder, golden["dims"]["text"]["vocab_size"])
    sizes = golden_sizes(folder)
    model = SmallModel(folder, sizes, folder / "weights_clamp3_small.pth", folder / "weights_m3_small.pth")
    save_checkpoint(model.clamp3, golden["state_dict_shapes"], modality="symbolic")
    save_checkpoint(model.m3, golden["m3_state_dict_shapes"])
    return model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> SmallModel:
    return save_small_model(tmp_path_factory.mktemp("model"))


@dataclass
class TrainingData:
    """A folder with real tunes as training items, one a line in each of the JSONL files."""

    folder: Path
    symbolic: Path
    audio: Path
    abc: Path  # the tunes' folder

    def rows(self, path: Path) -> list[dict]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_training_data(folder: Path, count: int) -> TrainingData:
    """Folk tunes in ABC, their descriptions in the fields of M4-RAG, and random features in place of audio."""
    from corpus import describe, folk_tunes

    data = TrainingData(folder, folder / "symbolic.jsonl", folder / "audio.jsonl", folder / "abc")
    data.abc.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with open(data.symbolic, "w", encoding="utf-8") as symbolic, open(data.audio, "w", encoding="utf-8") as audio:
        for number, tune in enumerate(islice(folk_tunes(), count)):
            item = {"id": f"tune {number}", "title": tune.title, "genres": [tune.rhythm], "analysis": describe(tune)}
            item |= {"artists": None, "tags": [], "language": "en", "translations": None}
            if number % 2:
                item["translations"] = {"language": "de", "analysis": f"Ein Lied: {tune.title}", "scene": None}
            data.abc.joinpath(f"{number}.abc").write_text(tune.abc, encoding="utf-8")
            np.save(folder / f"{number}.npy", rng.standard_normal((1, rng.integers(3, 30), 128), np.float32))
            symbolic.write(json.dumps({**item, "filepaths": [f"abc/{number}.abc"]}) + "\n")
            audio.write(json.dumps({**item, "filepaths": [f"{number}.npy"]}) + "\n")
    return data


@pytest.fixture(scope="session")
def training_data(tmp_path_factory) -> TrainingData:
    return write_training_data(tmp_path_factory.mktemp("data"), 48)


@pytest.fixture
def trainer_of(small_model, training_data, tmp_path):
    """Makes a trainer of the golden model whose weights and logs go to a folder of the test."""
    from training_runs import make_trainer

    def make(kind: str = "symbolic", output: str = "run", data_folder=training_data.folder, **options):
        return make_trainer(kind, small_model.folder, data_folder, tmp_path / output, **options)

    return make


@pytest.fixture
def told(caplog):
    """What the library has logged since the last call."""
    caplog.set_level(logging.INFO, "clamp3")

    def text() -> str:
        found = caplog.text
        caplog.clear()
        return found

    return text


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """The symbolic texts of the golden values, by name."""
    return {entry["name"]: entry["text"] for entry in golden_json("patchilizer.json")}


def run(*command, env=None, cwd=CODE, check: int | None = 0, stderr=subprocess.PIPE) -> subprocess.CompletedProcess:
    """Run a command as a user would; fail, with its output, if its exit code is not `check`."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=300)
    return as_expected(done, check)


def run_forked(*command, env=None, cwd=CODE, check: int | None = 0, processes: int = 1) -> subprocess.CompletedProcess:
    """`run` for a script and its arguments, without Python's start and the import of the large libraries.

    Several `processes` find each other, as if torchrun had started them. Each script is also run as a user would, by
    `run` in some test.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in printed:
            path.touch()
        request = {"words": [str(word) for word in command], "env": env or dict(os.environ), "cwd": str(cwd)}
        server = fork_server()
        request |= {"processes": processes, "stdout": str(printed[0]), "stderr": str(printed[1])}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        done = subprocess.CompletedProcess(request["words"], code, *(path.read_text() for path in printed))
    return as_expected(done, check)


@cache
def fork_server() -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests" / "forks.py")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def as_expected(done: subprocess.CompletedProcess, check: int | None) -> subprocess.CompletedProcess:
    if check is not None and done.returncode != check:
        pytest.fail(f"{' '.join(done.args)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
