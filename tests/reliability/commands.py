"""Every command that writes, over real music, and how two runs' outputs are compared; what `kills` kills."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from clamp3.features.manifest import MANIFEST_FILE
from clamp3.formats.abc import read_abc, split_tunes
from clamp3.formats.audio import SAMPLING_RATE
from clamp3.formats.midi import mtf_to_midi
from clamp3.io.folders import FAILURES_FILE, WARNINGS_FILE
from conftest import CODE, MERT_TINY, ROOT, SmallModel, TrainingData, run_forked
from corpus import corpus_folder, describe
from notes import read_melody, to_mtf, to_sound
from parsers import first_tunes
from training_runs import differences

PREPROCESSING = ROOT / "preprocessing"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
REPORTS = (FAILURES_FILE, WARNINGS_FILE, MANIFEST_FILE)


@dataclass(frozen=True)
class Command:
    """A command line, for an output folder, and what else a run of it needs."""

    words: Callable[[Path], list[object]]  # the script and its arguments
    compare: Callable[[Path, Path], list[str]]  # the outputs of an undisturbed run, and of one that was killed
    prepare: Callable[[Path], None] = lambda output: None  # what is there before the first start
    environment: Callable[[Path], dict[str, str]] = lambda output: {}
    processes: tuple[int, ...] = (1,)

    def line(self, output: Path, processes: int) -> list[str]:
        start = (sys.executable,) if processes == 1 else TORCHRUN
        return [str(word) for word in (*start, *self.words(output))]


@dataclass
class Bench:
    """Inputs of all kinds in `folder`, made when they are first asked for; `scale` 1 is for seconds of work."""

    folder: Path
    model: SmallModel
    data: TrainingData
    scale: float = 1.0
    made: set[str] = field(default_factory=set)

    def count(self, number: int) -> int:
        return max(4, int(number * self.scale))

    def inputs(self, name: str, files: Callable[[], Iterable[tuple[str, bytes | str]]]) -> Path:
        """The folder `name` with these files, some of them in a subfolder."""
        folder = self.folder / "inputs" / name
        if name not in self.made:
            self.made.add(name)
            for number, (file, content) in enumerate(files()):
                path = folder / ("sub" if number % 3 == 0 else "") / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    # ---------- inputs ----------

    def tunes(self, number: int, step: int = 1) -> Iterable[tuple[int, Any]]:
        return enumerate(first_tunes()[::step][: self.count(number)])

    def model_inputs(self) -> Path:
        rng = np.random.default_rng(0)

        def files() -> Iterable[tuple[str, bytes | str]]:
            for number, tune in self.tunes(240):
                yield f"{number}.abc", tune.abc
                if number % 4 == 0:
                    yield f"{number}_t.txt", describe(tune)
                    yield f"{number}_m.mtf", to_mtf(read_melody(tune.abc))

        folder = self.inputs("model", files)
        for number in range(self.count(40)):
            if not (path := folder / f"{number}_a.npy").exists():
                np.save(path, rng.standard_normal((1, 3 + number, 128), np.float32))
        return folder

    def symbolic(self) -> Path:
        return self.inputs("symbolic", lambda: ((f"{number}.abc", tune.abc) for number, tune in self.tunes(400)))

    def scores(self) -> Path:
        paths = sorted((corpus_folder() / "bach").glob("*.mxl"), key=lambda path: path.stat().st_size)
        return self.inputs("scores", lambda: ((path.name, path.read_bytes()) for path in paths[: self.count(80)]))

    def books(self) -> Path:
        """Books of three tunes of standard ABC, each of which becomes three outputs."""
        source = read_abc(sorted((corpus_folder() / "oneills1850").glob("*.abc"))[0])
        tunes = [tune for tune in split_tunes(source)[: self.count(300)] if "|" in tune]
        return self.inputs(
            "books", lambda: ((f"{n}.abc", "\n\n".join(tunes[n : n + 3])) for n in range(0, len(tunes), 3))
        )

    def short_tunes(self) -> Path:
        return self.inputs("short", lambda: ((f"{number}.abc", tune.abc) for number, tune in self.tunes(80, 15)))

    def mtf_texts(self) -> Iterable[tuple[int, str]]:
        return ((number, to_mtf(read_melody(tune.abc))) for number, tune in self.tunes(800))

    def mtf(self) -> Path:
        return self.inputs("mtf", lambda: ((f"{number}.mtf", text) for number, text in self.mtf_texts()))

    def midi(self) -> Path:
        return self.inputs("midi", lambda: ((f"{number}.mid", mtf_to_midi(text)) for number, text in self.mtf_texts()))

    def sound(self) -> Path:
        folder = self.folder / "inputs" / "sound"
        if "sound" not in self.made:
            self.made.add("sound")
            (folder / "sub").mkdir(parents=True)
            for number, tune in self.tunes(60, 20):
                samples = to_sound(read_melody(tune.abc), 11, SAMPLING_RATE, "fiddle")
                place = folder / ("sub" if number % 3 == 0 else "")
                soundfile.write(place / f"{number}.{('wav', 'flac')[number % 2]}", samples, SAMPLING_RATE)
        return folder

    def mixed(self) -> Path:
        rng = np.random.default_rng(1)

        def files() -> Iterable[tuple[str, bytes | str]]:
            for number, tune in self.tunes(120, 10):
                yield f"{number}.abc", tune.abc
                yield f"{number}_t.txt", describe(tune)
                if number % 3 == 0:
                    yield f"{number}_m.mid", mtf_to_midi(to_mtf(read_melody(tune.abc)))

        folder = self.inputs("mixed", files)
        for number in range(self.count(10)):
            if not (path := folder / f"{number}_s.wav").exists():
                soundfile.write(path, rng.standard_normal(SAMPLING_RATE * 3) / 9, SAMPLING_RATE)
        return folder

    # ---------- commands ----------

    def environment(self, **knobs: object) -> dict[str, str]:
        return {**self.model.environment(**knobs), "WANDB_MODE": "offline"}

    def extraction(self, script: str, inputs: Callable[[], Path], *options: str) -> Command:
        def words(output: Path) -> list[object]:
            return [CODE / script, inputs(), output / "features", "--batch_tokens", "64", *options]

        return Command(words, same_files, environment=lambda output: self.environment(), processes=(1, 2))

    def conversion(self, script: str, inputs: Callable[[], Path], *options: str) -> Command:
        return Command(lambda output: [PREPROCESSING / script, inputs(), output / "converted", *options], same_files)

    def embedding(self) -> Command:
        def words(output: Path) -> list[object]:
            tiny = ("--variant", "tiny", "--batch_tokens", "64", "--get_global")
            return [CODE / "clamp3_embd.py", self.mixed(), output / "features", *tiny]

        return Command(words, same_files, processes=(1, 2))

    def mert(self) -> Command:
        def words(output: Path) -> list[object]:
            places = ("--input_path", self.sound(), "--output_path", output / "features", "--model_path", MERT_TINY)
            return [PREPROCESSING / "audio/extract_mert.py", *places, "--batch_seconds", "5"]

        return Command(words, same_files, processes=(1, 2))

    def index(self, action: str) -> Command:
        """build, or add to or remove from an index that is there."""
        folder = self.index_inputs()
        options = ["--variant", "tiny", "--batch_tokens", "64"] if action != "remove" else ["--missing"]

        def words(output: Path) -> list[object]:
            given = [] if action == "remove" else [folder / "music"]
            return [CODE / "clamp3_index.py", action, output / "index", *given, *options]

        def prepare(output: Path) -> None:
            source = {"add": "small", "remove": "whole"}.get(action)
            if source:
                shutil.copytree(folder / source, output / "index")

        return Command(words, same_index, prepare)

    def index_inputs(self) -> Path:
        """music/; an index of a part of it, small/; and one of it and of files that are gone since, whole/."""
        folder = self.folder / "inputs" / "index"
        if folder.exists():
            return folder
        music = folder / "music"
        shutil.copytree(self.mixed(), music)
        script, options = CODE / "clamp3_index.py", ("--variant", "tiny")
        run_forked(script, "build", folder / "small", music / "sub", *options)
        shutil.copytree(music, folder / "gone")
        run_forked(script, "build", folder / "whole", music, *options)
        run_forked(script, "add", folder / "whole", folder / "gone", *options)
        shutil.rmtree(folder / "gone")
        return folder

    def training(self, script: str, kind: str) -> Command:
        def environment(output: Path) -> dict[str, str]:
            knobs = {
                "CLAMP3_TRAIN_JSONL": str(self.data.folder / f"{kind}.jsonl"),
                "M3_TRAIN_FOLDERS": [str(self.data.abc)],
                "CLAMP3_WEIGHTS_PATH": str(output / "run" / "weights_clamp3.pth"),
                "M3_WEIGHTS_PATH": str(output / "run" / "weights_m3.pth"),
                "EVAL_SPLIT": 0.2,
                "CLAMP3_BATCH_SIZE": 4,
                "M3_BATCH_SIZE": 4,
                "CLAMP3_NUM_EPOCH": 2,
                "M3_NUM_EPOCH": 2,
                "CLAMP3_LEARNING_RATE": 1e-3,
                "TRAIN_WORKERS": 1,
                "SAVE_STEPS": 2,
                "SAVE_EVERY": 1,
                "CLAMP3_WANDB_LOG": False,
                "M3_WANDB_LOG": False,
            }
            return self.environment(**knobs)

        return Command(lambda output: [CODE / script], same_checkpoints, environment=environment, processes=(1, 2))

    def commands(self) -> dict[str, Command]:
        return {
            "extract_clamp3": self.extraction("extract_clamp3.py", self.model_inputs, "--get_global"),
            "extract_m3": self.extraction("extract_m3.py", self.symbolic),
            "xml2abc": self.conversion("abc/batch_xml2abc.py", self.scores),
            "interleaved_abc": self.conversion("abc/batch_interleaved_abc.py", self.books),
            "abc2xml": self.conversion("abc/batch_abc2xml.py", self.short_tunes),
            "midi2mtf": self.conversion("midi/batch_midi2mtf.py", self.midi, "--m3_compatible"),
            "mtf2midi": self.conversion("midi/batch_mtf2midi.py", self.mtf),
            "extract_mert": self.mert(),
            "clamp3_embd": self.embedding(),
            "index build": self.index("build"),
            "index add": self.index("add"),
            "index remove": self.index("remove"),
            "train_m3": self.training("train_m3.py", "symbolic"),
            "train_clamp3_symbolic": self.training("train_clamp3_symbolic.py", "symbolic"),
            "train_clamp3_audio": self.training("train_clamp3_audio.py", "audio"),
        }


# ---------- what must be the same ----------


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def same_files(whole: Path, broken: Path) -> list[str]:
    """The same files with the same bytes; lists of remarks hold the same lines."""
    found, wanted = names(broken), names(whole)
    problems = [f"there is no {name}" for name in sorted(wanted - found)]
    problems += [f"{name} is left over" for name in sorted(found - wanted)]
    for name in sorted(found & wanted):
        first, second = (folder / name for folder in (whole, broken))
        if first.name == "features.sqlite":  # whose order follows that of the work
            continue
        if first.name in (FAILURES_FILE, WARNINGS_FILE):
            same = sorted(first.read_text().splitlines()) == sorted(second.read_text().splitlines())
        else:
            same = first.read_bytes() == second.read_bytes()
        if not same:
            problems.append(f"{name} differs")
    return problems


def same_index(whole: Path, broken: Path) -> list[str]:
    """The same files in the index, and the same answers to two queries, all files ranked."""
    answers = []
    for output in (whole, broken):
        script, found = CODE / "clamp3_index.py", []
        for words in (("info", "--list"), ("search", "a lively reel"), ("search", "a slow air", "--exact")):
            target = output / "answers.json"
            more = ("--variant", "tiny", "--no_cache", "--top_k", "9999") if words[0] == "search" else ()
            run_forked(script, words[0], output / "index", *words[1:], *more, "--json", target)
            found.append([json.loads(line) for line in target.read_text().splitlines()])
            target.unlink()
        answers.append(found)
    problems = []
    for first, second in zip(*answers, strict=True):
        wanted, found = ({row["file"]: row for row in rows if "file" in row} for rows in (first, second))
        if found.keys() != wanted.keys():
            problems.append(f"{len(found)} files in it, not {len(wanted)}")
            continue
        for file, row in wanted.items():
            if abs(row.get("cosine", 0) - found[file].get("cosine", 0)) > 1e-6:
                problems.append(f"{file} has another cosine")
            if row.get("metadata") != found[file].get("metadata") or row["modality"] != found[file]["modality"]:
                problems.append(f"{file} has other facts")
    kinds = [{_numbered(name) for name in names(output)} for output in (whole, broken)]
    return problems + [f"{name} is left over" for name in sorted(kinds[1] - kinds[0])]


def _numbered(name: str) -> str:
    return "".join(letter for letter in name if not letter.isdigit())


def same_checkpoints(whole: Path, broken: Path) -> list[str]:
    """The same weights files, bit for bit the same in what they hold; of the others, the same names."""
    found, wanted = names(broken), names(whole)
    problems = [f"{name} is left over" for name in sorted(found - wanted)]
    problems += [f"there is no {name}" for name in sorted(wanted - found)]
    for name in sorted(name for name in wanted & found if name.endswith(".pth")):
        checkpoints = [torch.load(folder / name, weights_only=True) for folder in (broken, whole)]
        problems += [f"{name}: {text[:200]}" for text in differences(*checkpoints)[:2]]
    return problems


def make_bench(folder: Path, scale: float = 1.0) -> Bench:
    """A bench with a small model and training data of its own."""
    from conftest import save_small_model, write_training_data

    os.environ.setdefault("CLAMP3_CACHE", str(folder / "cache"))
    (folder / "small").mkdir(parents=True)
    return Bench(folder, save_small_model(folder / "small"), write_training_data(folder / "data", 48), scale)
