"""What the three training commands share: their options, and how config.py's knobs become a run."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamp3.cli.options import positive, script_parser
from clamp3.cli.settings import Knobs, configured_path
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:
    import numpy as np
    from accelerate import PartialState

    from clamp3.inputs.encoder import InputEncoder
    from clamp3.io.reports import FileIssue
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.training.data import Examples
    from clamp3.training.loop import Trainer
    from clamp3.training.settings import Lora, Settings
    from clamp3.training.start import StartWeights
    from clamp3.training.texts import JsonLines

LONGEST_WARMUP = 0.1  # of all steps of a run


def training_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the training options; `description` is the script's docstring."""
    parser = script_parser(description)
    parser.add_argument("--check", action="store_true", help="read and encode all data once, and train nothing")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves so far as a PNG, and train nothing")
    parser.add_argument("--device", help='such as "cpu" or "cuda:1"; default: an accelerator if there is one')
    parser.add_argument("--threads", type=positive, help="CPU threads of each process; default: the cores, shared")
    return parser


def settings_of(knobs: Knobs, stage: str, **others: Any) -> "Settings":
    """The knobs whose names begin with `stage` (CLAMP3 or M3), and those that all training shares."""
    from clamp3.training.settings import Settings

    return Settings(
        weights_path=Path(knobs[f"{stage}_WEIGHTS_PATH"]),
        logs_path=Path(knobs[f"{stage}_LOGS_PATH"]),
        epochs=knobs[f"{stage}_NUM_EPOCH"],
        batch_size=knobs[f"{stage}_BATCH_SIZE"],
        learning_rate=knobs[f"{stage}_LEARNING_RATE"],
        deterministic=knobs[f"{stage}_DETERMINISTIC"],
        resume=knobs[f"{stage}_LOAD_CKPT"],
        init_weights=knobs[f"{stage}_INIT_WEIGHTS"],
        early_stopping=knobs["EARLY_STOPPING"],
        wandb_log=knobs[f"{stage}_WANDB_LOG"],
        wandb_key=knobs["WANDB_KEY"],
        seed=knobs["SEED"],
        save_steps=knobs["SAVE_STEPS"],
        warmup_steps=knobs["WARMUP_STEPS"],
        longest_warmup=LONGEST_WARMUP,
        decay=knobs["RATE_DECAY"],
        workers=knobs["TRAIN_WORKERS"],
        max_skipped_share=knobs["MAX_SKIPPED_SHARE"],
        precision=knobs["TRAIN_PRECISION"],
        compile_layers=knobs["COMPILE_LAYERS"],
        recompute_layers=knobs["RECOMPUTE_LAYERS"],
        knobs={name: value for name, value in knobs.items() if name.isupper() and name != "WANDB_KEY"},
        **others,
    )


def lora_of(knobs: Knobs) -> "Lora | None":
    """The adapters that the knobs ask for. Raises UserError where they are asked for beside no weights."""
    from clamp3.errors import UserError
    from clamp3.training.settings import Lora

    if knobs["LORA_RANK"] < 0:
        raise UserError("LORA_RANK must be 0, for no adapters, or more")
    if not knobs["LORA_RANK"]:
        return None
    if not knobs["CLAMP3_INIT_WEIGHTS"]:
        raise UserError("LORA_RANK trains adapters beside weights that stay as they are: set CLAMP3_INIT_WEIGHTS too")
    return Lora(knobs["LORA_RANK"], tuple(knobs["LORA_TARGETS"]), knobs["LORA_MERGE"])


def start_of(knobs: Knobs, stage: str, settings: "Settings") -> tuple[ModelSizes, "StartWeights | None"]:
    """The model's sizes, and the weights that CLAMP3_INIT_WEIGHTS or M3_INIT_WEIGHTS names, which then decide them.

    Raises UserError where the run would write to these.
    """
    from clamp3.training.start import find_start, refuse_to_overwrite

    sizes = ModelSizes.from_knobs(knobs)
    if not settings.init_weights:
        return sizes, None
    start = find_start(settings.init_weights, stage, sizes, Path(knobs["__file__"]).parent)
    refuse_to_overwrite(start, stage, settings)
    return start.sizes, start


def existing(knob: str, value: str) -> Path:
    """The path that `knob` of config.py names. Raises UserError where there is nothing."""
    from clamp3.errors import UserError

    if not Path(value).exists():
        raise UserError(f"{knob}: there is no {value or 'path given'}; set it in config.py")
    return Path(value)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """The block in which SIGTERM and Ctrl-C end this process with one line, and with the code 143 or 130.

    Launchers send these signals to all processes, data workers too, so that any error may come on top: of a collective
    operation, of a worker process. None of them is shown.
    """
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        sys.exit(128 + number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except BaseException:
        if not received:
            raise
        for number in (*numbers, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])):
            signal.signal(number, signal.SIG_IGN if number in numbers else signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            name = "interrupted" if received[0] == signal.SIGINT else "terminated"
            print(f"{name}: the last checkpoint stays, and the same command goes on from it", file=sys.stderr)
        raise SystemExit(128 + received[0]) from None
    finally:
        if not received:
            for number, handler in before.items():
                signal.signal(number, handler)


# ---------- CLaMP 3 ----------


@stoppable()
def train_clamp3(modality: str, knobs: Knobs, args: argparse.Namespace) -> int:
    """Train CLaMP 3 on texts and music of a `modality`, "symbolic" or "audio", as config.py says."""
    others = {"save_every": knobs["SAVE_EVERY"], "hard_negatives": knobs["HARD_NEGATIVES"]}
    settings = settings_of(knobs, "CLAMP3", lora=lora_of(knobs), **others)
    if args.plot:
        return plot(settings, args)
    settings.check_suffix()

    import torch

    from clamp3.inputs.encoder import InputEncoder
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.models.layers import prepare_layers
    from clamp3.models.text import check_text_model
    from clamp3.training.loop import Trainer
    from clamp3.training.objectives import Contrastive
    from clamp3.training.start import audio_encoder_of

    sizes, start = start_of(knobs, "CLAMP3", settings)
    if start:
        settings = replace(settings, audio_encoder=audio_encoder_of(start.name))
    state = start_training(knobs, args)
    tell_sizes(knobs, sizes, state)
    encoder = InputEncoder(sizes, knobs["SYMBOLIC_AS_IS"])
    check_text_model(sizes, encoder.tokenizer)
    training, evaluation, issues = clamp3_sets(modality, knobs, encoder, state, args.check)
    if args.check:
        return check([training, evaluation], issues, state)
    refuse_too_many(issues, [training, evaluation], settings)

    torch.manual_seed(knobs["SEED"])
    model = CLaMP3Model(sizes)
    model.train_on(modality, ["text_model", "text_proj"] * knobs["FREEZE_TEXT"])
    if settings.lora:
        from clamp3.training.lora import add_adapters

        count = add_adapters(model, settings.lora)
        if state.is_main_process:
            print(f"{count:,} parameters are trained: {settings.lora}", flush=True)
    prepare_layers(model.towers.values(), settings.compile_layers, settings.recompute_layers)
    objective = Contrastive(model, modality, knobs["CLAMP3_MICRO_BATCH"])
    pad_values = {"text": encoder.tokenizer.pad_token_id}
    trainer = Trainer(objective, training, evaluation, pad_values, settings, state, show_bar, issues)
    return fit(trainer, knobs, lambda: start.load(model) if start else start_clamp3(model, knobs))


def clamp3_sets(
    modality: str, knobs: Knobs, encoder: "InputEncoder", state: "PartialState", read_later: bool
) -> tuple["Examples", "Examples", "list[FileIssue]"]:
    """The training and the evaluation set, and what is wrong with their items; nothing if all is `read_later`."""
    import numpy as np

    from clamp3.distributed import on_main
    from clamp3.training.checks import check_pairs
    from clamp3.training.data import Pairs, split

    files = {"CLAMP3_TRAIN_JSONL": knobs["CLAMP3_TRAIN_JSONL"], "CLAMP3_EVAL_JSONL": knobs["CLAMP3_EVAL_JSONL"]}

    def look_through() -> "tuple[list[JsonLines], list[FileIssue]]":
        lines = [json_lines(knob, file) for knob, file in files.items() if file or knob == "CLAMP3_TRAIN_JSONL"]
        checks = (check_pairs(part, modality, encoder.sizes.audio_hidden_size, show_loop) for part in lines)
        return lines, [] if read_later else [issue for found in checks for issue in found]

    lines, issues = on_main(state, look_through)
    if len(lines) == 2:
        parts = np.arange(len(lines[0])), np.arange(len(lines[1]))
    else:
        parts = split(len(lines[0]), knobs["EVAL_SPLIT"], knobs["SEED"])
    training = Pairs(lines[0], parts[0], encoder, modality, knobs["SEED"], True, knobs["TEXT_DROPOUT"])
    return training, Pairs(lines[-1], parts[1], encoder, modality, knobs["SEED"], False), issues


def json_lines(knob: str, file: str) -> "JsonLines":
    """The items of the JSONL file that `knob` names. Raises UserError where it has none, or cannot be read."""
    from clamp3.errors import UserError
    from clamp3.io.folders import refuse_special
    from clamp3.training.texts import JsonLines

    path = existing(knob, file)
    refuse_special(path)
    try:
        lines = JsonLines(path)
    except OSError as error:
        raise UserError(f"{knob}: {path} cannot be read: {error.strerror}") from None
    if not len(lines):
        raise UserError(f"{path}: there is no item in it")
    return lines


def start_clamp3(model: "CLaMP3Model", knobs: Knobs) -> str:
    """Give a new model its first weights, the pretrained text model's and M3's where they are there; say which."""
    from clamp3.models.releases import find_weights
    from clamp3.models.weights import start_from_m3, start_from_text_model

    pretrained = start_from_text_model(model, knobs["TEXT_MODEL_NAME"])
    path = find_weights(configured_path(knobs, knobs["M3_WEIGHTS_PATH"])) if knobs["CLAMP3_LOAD_M3"] else None
    if path:
        start_from_m3(model, path)
    text_weights = f"the weights of {knobs['TEXT_MODEL_NAME']}" if pretrained else "random weights"
    symbolic_weights = f"those of {path}" if path else "random ones"
    return f"the text tower starts with {text_weights}, the symbolic one with {symbolic_weights}"


# ---------- M3 ----------


@stoppable()
def train_m3(knobs: Knobs, args: argparse.Namespace) -> int:
    """Train M3 on folders of .abc and .mtf files, as config.py says."""
    from clamp3.errors import UserError

    settings = settings_of(knobs, "M3")
    for knob in ("LORA_RANK", "HARD_NEGATIVES"):
        if knobs[knob]:
            raise UserError(f"{knob} is for CLaMP 3: set it to 0 to train M3")
    if args.plot:
        return plot(settings, args)
    settings.check_suffix()

    import torch

    from clamp3.inputs.encoder import InputEncoder
    from clamp3.models.layers import prepare_layers
    from clamp3.models.m3 import M3Model
    from clamp3.training.loop import Trainer
    from clamp3.training.objectives import Reconstruction

    sizes, start = start_of(knobs, "M3", settings)
    state = start_training(knobs, args)
    tell_sizes(knobs, sizes, state)
    training, evaluation, issues = m3_sets(knobs, InputEncoder(sizes, knobs["SYMBOLIC_AS_IS"]), state)
    if args.check:
        return check([training, evaluation], issues, state)
    refuse_too_many(issues, [training, evaluation], settings)

    torch.manual_seed(knobs["SEED"])
    model = M3Model(sizes)
    prepare_layers([model.encoder.base], settings.compile_layers, settings.recompute_layers)
    trainer = Trainer(Reconstruction(model), training, evaluation, {}, settings, state, show_bar, issues)
    return fit(trainer, knobs, *([lambda: start.load(model)] if start else []))


def m3_sets(
    knobs: Knobs, encoder: "InputEncoder", state: "PartialState"
) -> tuple["Examples", "Examples", "list[FileIssue]"]:
    """The training and the evaluation set, and what is wrong with their files and folders."""
    from clamp3.distributed import long_work
    from clamp3.training.checks import find_pieces
    from clamp3.training.data import Pieces, split

    folders = {
        name: [existing(name, folder) for folder in knobs[name]] for name in ("M3_TRAIN_FOLDERS", "M3_EVAL_FOLDERS")
    }
    with long_work(state):
        (training, issues), (evaluation, more) = map(find_pieces, folders.values())
    if not folders["M3_EVAL_FOLDERS"]:
        parts = split(len(training), knobs["EVAL_SPLIT"], knobs["SEED"])
        training, evaluation = ([training[index] for index in part] for part in parts)
    return (
        Pieces(training, encoder, knobs["M3_MASK_RATIO"], knobs["SEED"], True),
        Pieces(evaluation, encoder, knobs["M3_MASK_RATIO"], knobs["SEED"], False),
        issues + more,
    )


# ---------- a run ----------


def start_training(knobs: Knobs, args: argparse.Namespace) -> "PartialState":
    """Join the other processes, with the knobs of config.py and the options that say how."""
    from clamp3.distributed import start

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with it
    return start(args.device, args.threads, timedelta(minutes=knobs["COLLECTIVE_TIMEOUT"]))


def tell_sizes(knobs: Knobs, sizes: ModelSizes, state: "PartialState") -> None:
    """Say which sizes the weights that training starts with have otherwise than config.py."""
    configured, found = asdict(ModelSizes.from_knobs(knobs)), asdict(sizes)
    others = [f"{name.upper()} {value}" for name, value in found.items() if value != configured[name]]
    if others and state.is_main_process:
        print(f"sizes as the weights have them, not as config.py does: {', '.join(others)}", flush=True)


def fit(trainer: "Trainer", knobs: Knobs, *start_weights: Callable[[], str]) -> int:
    """Train to the end; returns the exit code."""
    from clamp3.distributed import finish, is_collective_error
    from clamp3.errors import OneProcessError

    try:
        trainer.fit(*start_weights)
        finish(trainer.state)
    except RuntimeError as error:
        if trainer.state.num_processes == 1 or not is_collective_error(error):
            raise
        # Each process that has waited says so: which one is stuck is told by which one does not.
        raise OneProcessError(
            f"process {trainer.state.process_index} has waited in vain for the others: one of them is gone, or stuck "
            f"for more than {knobs['COLLECTIVE_TIMEOUT']:g} minutes (COLLECTIVE_TIMEOUT); the same command goes on "
            f"from the last checkpoint ({str(error).strip().splitlines()[0]})"
        ) from error
    return 0


def refuse_too_many(issues: "list[FileIssue]", sets: "list[Examples]", settings: "Settings") -> None:
    """Raise UserError where more items are bad than may be skipped."""
    from clamp3.training.checkpoints import skipped_path
    from clamp3.training.checks import SkippedItems

    total = sum(len(examples) for examples in sets)
    skipped = SkippedItems(skipped_path(settings.weights_path), total, settings.max_skipped_share)
    skipped.add(issues)
    skipped.check()


def check(sets: list["Examples"], issues: "list[FileIssue]", state: "PartialState") -> int:
    """Read all that training could read once. Returns the exit code; raises UserError, which lists what is bad."""
    from clamp3.distributed import on_main
    from clamp3.training.checks import check_examples, refuse

    def check_all() -> Counter[str]:
        found = [check_examples(examples, show_loop) for examples in sets]
        bad = {issue.file: issue for part, _ in found for issue in part}
        refuse([*bad.values(), *(issue for issue in issues if issue.file not in bad)], shown=sys.maxsize)
        return sum((remarks for _, remarks in found), Counter[str]())

    remarks = on_main(state, check_all)
    if state.is_main_process:
        print(f"all {' + '.join(str(len(examples)) for examples in sets)} items can be trained on")
        for remark, count in remarks.items():
            print(f"{count} of them: {remark}")
    return 0


def plot(settings: "Settings", args: argparse.Namespace) -> int:
    """Draw the curves so far; returns the exit code."""
    from clamp3.training.curves import draw_curves

    return draw_curves(settings.logs_path, args.plot)


def show_bar(title: str, total: int, done: int = 0, /) -> Any:
    """The progress bar of a loop over items, of which some are done."""
    from tqdm import tqdm

    return tqdm(desc=title, total=total, initial=done, unit="item", dynamic_ncols=True)


def show_loop(items: "Sequence[int] | np.ndarray", title: str) -> Iterable[int]:
    """`items` with a progress bar, if they take more than a moment."""
    from tqdm import tqdm

    return tqdm(items, desc=title, unit="item", delay=2)
