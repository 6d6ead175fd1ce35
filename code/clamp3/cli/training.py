"""What the three training commands share: their options, and how config.py's knobs become a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import positive, script_parser
from clamp3.cli.settings import Knobs, configured_path
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:
    from accelerate import PartialState

    from clamp3.inputs.encoder import InputEncoder
    from clamp3.training.data import Examples
    from clamp3.training.settings import Settings


def training_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the training options; `description` is the script's docstring."""
    parser = script_parser(description)
    parser.add_argument("--check", action="store_true", help="read and encode all data once, and train nothing")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves so far as a PNG, and train nothing")
    parser.add_argument("--device", help='such as "cpu" or "cuda:1"; default: an accelerator if there is one')
    parser.add_argument("--threads", type=positive, help="CPU threads of each process; default: the cores, shared")
    return parser


def settings_of(knobs: Knobs, stage: str, **others) -> "Settings":
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
        wandb_log=knobs[f"{stage}_WANDB_LOG"],
        wandb_key=knobs["WANDB_KEY"],
        seed=knobs["SEED"],
        save_steps=knobs["SAVE_STEPS"],
        warmup_steps=knobs["WARMUP_STEPS"],
        decay=knobs["RATE_DECAY"],
        workers=knobs["TRAIN_WORKERS"],
        precision=knobs["TRAIN_PRECISION"],
        compile_layers=knobs["COMPILE_LAYERS"],
        recompute_layers=knobs["RECOMPUTE_LAYERS"],
        **others,
    )


def existing(knob: str, value: str) -> Path:
    """The path that `knob` of config.py names. Raises UserError where there is nothing."""
    from clamp3.errors import UserError

    if not Path(value).exists():
        raise UserError(f"{knob}: there is no {value or 'path given'}; set it in config.py")
    return Path(value)


# ---------- CLaMP 3 ----------


def train_clamp3(modality: str, knobs: Knobs, args: argparse.Namespace) -> int:
    """Train CLaMP 3 on texts and music of a `modality`, "symbolic" or "audio", as config.py says."""
    import torch

    from clamp3.distributed import finish, start
    from clamp3.inputs.encoder import InputEncoder
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.models.layers import prepare_layers
    from clamp3.training.curves import draw_curves
    from clamp3.training.loop import Trainer
    from clamp3.training.objectives import Contrastive

    settings = settings_of(knobs, "CLAMP3", save_every=knobs["SAVE_EVERY"])
    if args.plot:
        return draw_curves(settings.logs_path, args.plot)
    state, sizes = start(args.device, args.threads), ModelSizes.from_knobs(knobs)
    encoder = InputEncoder(sizes, knobs["SYMBOLIC_AS_IS"])
    sets = clamp3_sets(modality, knobs, encoder, state)
    if args.check:
        return check(sets, state)

    torch.manual_seed(knobs["SEED"])
    model = CLaMP3Model(sizes)
    model.train_on(modality, ["text_model", "text_proj"] * knobs["FREEZE_TEXT"])
    prepare_layers(model.towers.values(), settings.compile_layers, settings.recompute_layers)
    objective = Contrastive(model, modality, knobs["CLAMP3_MICRO_BATCH"])
    pad_values = {"text": encoder.tokenizer.pad_token_id}
    Trainer(objective, *sets, pad_values, settings, state).fit(lambda: start_clamp3(model, knobs))
    finish(state)
    return 0


def clamp3_sets(modality: str, knobs: Knobs, encoder: "InputEncoder", state: "PartialState") -> list["Examples"]:
    """The training and the evaluation set, their items checked."""
    from clamp3.distributed import on_main
    from clamp3.training.data import JsonLines, Pairs, check_pairs, split

    files = {"CLAMP3_TRAIN_JSONL": knobs["CLAMP3_TRAIN_JSONL"], "CLAMP3_EVAL_JSONL": knobs["CLAMP3_EVAL_JSONL"]}
    lines = [JsonLines(existing(knob, file)) for knob, file in files.items() if file or knob == "CLAMP3_TRAIN_JSONL"]
    for part in lines:
        on_main(state, lambda part=part: check_pairs(part, modality, encoder.sizes.audio_hidden_size))
    if len(lines) == 2:
        chosen = range(len(lines[0])), range(len(lines[1]))
    else:
        chosen = split(len(lines[0]), knobs["EVAL_SPLIT"], knobs["SEED"])
    return [
        Pairs(source, indices, encoder, modality, knobs["SEED"], training, knobs["TEXT_DROPOUT"])
        for source, indices, training in zip((lines[0], lines[-1]), chosen, (True, False), strict=True)
    ]


def start_clamp3(model, knobs: Knobs) -> str:
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


def train_m3(knobs: Knobs, args: argparse.Namespace) -> int:
    """Train M3 on folders of .abc and .mtf files, as config.py says."""
    import torch

    from clamp3.distributed import finish, start
    from clamp3.inputs.encoder import InputEncoder
    from clamp3.models.layers import prepare_layers
    from clamp3.models.m3 import M3Model
    from clamp3.training.curves import draw_curves
    from clamp3.training.loop import Trainer
    from clamp3.training.objectives import Reconstruction

    settings = settings_of(knobs, "M3")
    if args.plot:
        return draw_curves(settings.logs_path, args.plot)
    state, sizes = start(args.device, args.threads), ModelSizes.from_knobs(knobs)
    sets = m3_sets(knobs, InputEncoder(sizes, knobs["SYMBOLIC_AS_IS"]))
    if args.check:
        return check(sets, state)

    torch.manual_seed(knobs["SEED"])
    model = M3Model(sizes)
    prepare_layers([model.encoder.base], settings.compile_layers, settings.recompute_layers)
    Trainer(Reconstruction(model), *sets, {}, settings, state).fit()
    finish(state)
    return 0


def m3_sets(knobs: Knobs, encoder: "InputEncoder") -> list["Examples"]:
    """The training and the evaluation set."""
    from clamp3.training.data import Pieces, find_pieces, split

    training = find_pieces([existing("M3_TRAIN_FOLDERS", folder) for folder in knobs["M3_TRAIN_FOLDERS"]])
    evaluation = find_pieces([existing("M3_EVAL_FOLDERS", folder) for folder in knobs["M3_EVAL_FOLDERS"]])
    if not knobs["M3_EVAL_FOLDERS"]:
        parts = split(len(training), knobs["EVAL_SPLIT"], knobs["SEED"])
        training, evaluation = ([training[index] for index in part] for part in parts)
    return [
        Pieces(paths, encoder, knobs["M3_MASK_RATIO"], knobs["SEED"], in_training)
        for paths, in_training in ((training, True), (evaluation, False))
    ]


def check(sets: list["Examples"], state: "PartialState") -> int:
    """Read and encode every item once; print those that cannot be, and return the exit code."""
    from clamp3.distributed import on_main
    from clamp3.training.data import check_examples

    on_main(state, lambda: [check_examples(examples) for examples in sets])
    if state.is_main_process:
        print(f"all {' + '.join(str(len(examples)) for examples in sets)} items can be trained on")
    return 0
