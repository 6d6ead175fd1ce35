"""What the three training commands share: their options, and how config.py's knobs become a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import config
from cli import positive, script_parser

if TYPE_CHECKING:
    from accelerate import PartialState

    from clamp3.data import Examples
    from clamp3.inputs import InputEncoder
    from clamp3.training import Settings


def training_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the training options; `description` is the script's docstring."""
    parser = script_parser(description)
    parser.add_argument("--check", action="store_true", help="read and encode all data once, and train nothing")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves so far as a PNG, and train nothing")
    parser.add_argument("--device", help='such as "cpu" or "cuda:1"; default: an accelerator if there is one')
    parser.add_argument("--threads", type=positive, help="CPU threads of each process; default: the cores, shared")
    return parser


def settings_of(stage: str, **others) -> "Settings":
    """The knobs whose names begin with `stage` (CLAMP3 or M3), and those that all training shares."""
    from clamp3.training import Settings

    knobs = vars(config)
    return Settings(
        weights_path=Path(knobs[f"{stage}_WEIGHTS_PATH"]),
        logs_path=Path(knobs[f"{stage}_LOGS_PATH"]),
        epochs=knobs[f"{stage}_NUM_EPOCH"],
        batch_size=knobs[f"{stage}_BATCH_SIZE"],
        learning_rate=knobs[f"{stage}_LEARNING_RATE"],
        deterministic=knobs[f"{stage}_DETERMINISTIC"],
        resume=knobs[f"{stage}_LOAD_CKPT"],
        wandb_log=knobs[f"{stage}_WANDB_LOG"],
        wandb_key=config.WANDB_KEY,
        seed=config.SEED,
        save_steps=config.SAVE_STEPS,
        warmup_steps=config.WARMUP_STEPS,
        decay=config.RATE_DECAY,
        workers=config.TRAIN_WORKERS,
        precision=config.TRAIN_PRECISION,
        compile_layers=config.COMPILE_LAYERS,
        recompute_layers=config.RECOMPUTE_LAYERS,
        **others,
    )


def existing(knob: str, value: str) -> Path:
    """The path that `knob` of config.py names. Raises UserError where there is nothing."""
    from clamp3.errors import UserError

    if not Path(value).exists():
        raise UserError(f"{knob}: there is no {value or 'path given'}; set it in config.py")
    return Path(value)


# ---------- CLaMP 3 ----------


def train_clamp3(modality: str, args: argparse.Namespace) -> int:
    """Train CLaMP 3 on texts and music of a `modality`, "symbolic" or "audio", as config.py says."""
    import torch

    import utils
    from clamp3.distributed import finish, start
    from clamp3.inputs import InputEncoder
    from clamp3.training import Contrastive, Trainer, draw_curves, prepare_layers

    settings = settings_of("CLAMP3", save_every=config.SAVE_EVERY)
    if args.plot:
        return draw_curves(settings.logs_path, args.plot)
    state, sizes = start(args.device, args.threads), utils.configured_sizes()
    encoder = InputEncoder(sizes)
    sets = clamp3_sets(modality, encoder, state)
    if args.check:
        return check(sets, state)

    torch.manual_seed(config.SEED)
    model = utils.CLaMP3Model(sizes)
    model.train_on(modality, ["text_model", "text_proj"] * config.FREEZE_TEXT)
    prepare_layers(model.towers.values(), settings.compile_layers, settings.recompute_layers)
    objective = Contrastive(model, modality, config.CLAMP3_MICRO_BATCH)
    pad_values = {"text": encoder.tokenizer.pad_token_id}
    Trainer(objective, *sets, pad_values, settings, state).fit(lambda: start_clamp3(model))
    finish(state)
    return 0


def clamp3_sets(modality: str, encoder: "InputEncoder", state: "PartialState") -> list["Examples"]:
    """The training and the evaluation set, their items checked."""
    from clamp3.data import JsonLines, Pairs, check_pairs, split
    from clamp3.distributed import on_main

    files = {"CLAMP3_TRAIN_JSONL": config.CLAMP3_TRAIN_JSONL, "CLAMP3_EVAL_JSONL": config.CLAMP3_EVAL_JSONL}
    lines = [JsonLines(existing(knob, file)) for knob, file in files.items() if file or knob == "CLAMP3_TRAIN_JSONL"]
    for part in lines:
        on_main(state, lambda part=part: check_pairs(part, modality, encoder.sizes.audio_hidden_size))
    if len(lines) == 2:
        chosen = range(len(lines[0])), range(len(lines[1]))
    else:
        chosen = split(len(lines[0]), config.EVAL_SPLIT, config.SEED)
    return [
        Pairs(source, indices, encoder, modality, config.SEED, training, config.TEXT_DROPOUT)
        for source, indices, training in zip((lines[0], lines[-1]), chosen, (True, False), strict=True)
    ]


def start_clamp3(model) -> str:
    """Give a new model its first weights, the pretrained text model's and M3's where they are there; say which."""
    import utils
    from clamp3.checkpoints import find_weights, start_from_m3, start_from_text_model

    pretrained = start_from_text_model(model, config.TEXT_MODEL_NAME)
    path = find_weights(utils.configured_path(config.M3_WEIGHTS_PATH)) if config.CLAMP3_LOAD_M3 else None
    if path:
        start_from_m3(model, path)
    text_weights = f"the weights of {config.TEXT_MODEL_NAME}" if pretrained else "random weights"
    symbolic_weights = f"those of {path}" if path else "random ones"
    return f"the text tower starts with {text_weights}, the symbolic one with {symbolic_weights}"


# ---------- M3 ----------


def train_m3(args: argparse.Namespace) -> int:
    """Train M3 on folders of .abc and .mtf files, as config.py says."""
    import torch

    import utils
    from clamp3.distributed import finish, start
    from clamp3.inputs import InputEncoder
    from clamp3.training import Reconstruction, Trainer, draw_curves, prepare_layers

    settings = settings_of("M3")
    if args.plot:
        return draw_curves(settings.logs_path, args.plot)
    state, sizes = start(args.device, args.threads), utils.configured_sizes()
    sets = m3_sets(InputEncoder(sizes))
    if args.check:
        return check(sets, state)

    torch.manual_seed(config.SEED)
    model = utils.M3Model(sizes)
    prepare_layers([model.encoder.base], settings.compile_layers, settings.recompute_layers)
    Trainer(Reconstruction(model), *sets, {}, settings, state).fit()
    finish(state)
    return 0


def m3_sets(encoder: "InputEncoder") -> list["Examples"]:
    """The training and the evaluation set."""
    from clamp3.data import Pieces, find_pieces, split

    training = find_pieces([existing("M3_TRAIN_FOLDERS", folder) for folder in config.M3_TRAIN_FOLDERS])
    evaluation = find_pieces([existing("M3_EVAL_FOLDERS", folder) for folder in config.M3_EVAL_FOLDERS])
    if not config.M3_EVAL_FOLDERS:
        parts = split(len(training), config.EVAL_SPLIT, config.SEED)
        training, evaluation = ([training[index] for index in part] for part in parts)
    return [
        Pieces(paths, encoder, config.M3_MASK_RATIO, config.SEED, in_training)
        for paths, in_training in ((training, True), (evaluation, False))
    ]


def check(sets: list["Examples"], state: "PartialState") -> int:
    """Read and encode every item once; print those that cannot be, and return the exit code."""
    from clamp3.data import check_examples
    from clamp3.distributed import on_main

    on_main(state, lambda: [check_examples(examples) for examples in sets])
    if state.is_main_process:
        print(f"all {' + '.join(str(len(examples)) for examples in sets)} items can be trained on")
    return 0
