"""The Embedder that the knobs and a command's options ask for: one rule for all commands.

Without --variant, --weights and --epoch, it has the weights that config.py names, which are downloaded if they are a
release's and not here. Where they cannot be had, it is an error that names the way out, never another model. Indexes
and folders of features record by which weights they were made: where config.py names no weights of one's own either,
they are asked by those.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clamp3.audio.onnx_mert import OnnxMert
from clamp3.cli.captions import take_pictures_for
from clamp3.cli.options import worker_processes
from clamp3.cli.output import print_line
from clamp3.cli.settings import Knobs, configured_path, load_knobs
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.features.onnx_towers import OnnxTowers
from clamp3.models.onnx_files import is_onnx
from clamp3.models.releases import RELEASES, TINY, ensure_weights, release_named, tiny_sizes
from clamp3.search.collection import recorded_weights
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:  # PyTorch takes longer to import than a query on ONNX files to answer
    import torch

    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.models.m3 import M3Model

    ModelClass: TypeAlias = type[CLaMP3Model] | type[M3Model]

WAY_OUT = "  or:   --variant tiny, the small model that is part of the package, knows folk tunes and needs no download"


def build_embedder(
    model_class: "ModelClass | None",
    knobs: Knobs,
    epoch: int | None = None,
    variant: str | None = None,
    weights: Path | None = None,
    threads: int | None = None,
    **options: Any,
) -> Embedder:
    """An Embedder over the configured weights, or those of an epoch (`..._E.pth`); `options` are Embedder's.

    Its sizes are those that the file says, as all do that training here writes; else those of the knobs. With
    `variant`, over those of the release saas or c2, or of the small model tiny, whatever the knobs say; with
    `weights`, over those in a file or a folder. Without a `model_class` it is CLaMP3Model's. `threads` are those of
    ONNX files, by default PyTorch's, or one for each core where that is not imported.
    """
    if weights and is_onnx(weights):
        return _of_onnx(weights, model_class, threads, options)
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.models.m3 import M3Model
    from clamp3.models.pretrained import load_pretrained
    from clamp3.training.checkpoints import epoch_path

    model_class = model_class or CLaMP3Model
    configured = knobs["M3_WEIGHTS_PATH" if model_class is M3Model else "CLAMP3_WEIGHTS_PATH"]
    path, sizes = configured_path(knobs, configured), ModelSizes.from_knobs(knobs)
    if weights and TINY.resolve() in (weights.resolve(), weights.resolve().parent):
        weights, variant = None, "tiny"
    if weights:
        path = weights
        if not path.exists():
            raise UserError(f"--weights: there is no file or folder {path}")
    elif variant == "tiny":
        path, sizes = TINY / ("m3.safetensors" if model_class is M3Model else "clamp3.safetensors"), tiny_sizes()
        options["mert"] = options.get("mert") or TINY / "mert"
    elif variant:
        path, sizes = configured_path(knobs, RELEASES[variant].file_name), ModelSizes()
    elif epoch is not None:
        path = configured_path(knobs, str(epoch_path(Path(configured), epoch)))
        if not path.is_file():
            raise UserError(f"no weights of epoch {epoch}: there is no {path}")
    try:
        path = path if path.is_dir() else ensure_weights(path, announce=partial(print, flush=True))
    except UserError as error:
        raise (UserError(f"{error}\n{WAY_OUT}") if release_named(path.name) else error) from error
    found = load_pretrained(path, configured=sizes, model_class=model_class)
    if not isinstance(found.model, model_class):
        raise UserError(
            f"{path} holds {type(found.model).__name__}'s weights, and {model_class.__name__}'s are needed"
        )
    options["mert"] = options.get("mert") or found.mert
    return Embedder(found.model, found.sizes, weights=found.path, **options)


def _of_onnx(path: Path, model_class: "ModelClass | None", threads: int | None, options: dict[str, Any]) -> Embedder:
    if model_class and model_class.__name__ == "M3Model":
        raise UserError(f"{path} holds towers of CLaMP 3 in ONNX, and M3Model's weights are needed")
    towers = OnnxTowers.load(path, options.pop("device"), options.pop("precision"), None, threads)
    return Embedder(towers, towers.sizes, weights=path, **options)


def extraction_options(args: Namespace, device: "torch.device | str | None") -> dict[str, Any]:
    """Options of an Embedder, as those of a command ask for."""
    return {
        "device": device,
        "precision": args.precision,
        "batch_tokens": args.batch_tokens,
        "mert": getattr(args, "mert", None),
        "as_is": getattr(args, "as_is", False),
        "processes": worker_processes(args),
    }


def embedder_loader(
    args: Namespace,
    device: "torch.device | str | None" = None,
    model_class: "ModelClass | None" = None,
    tell: bool = True,
    asked: Iterable[Path | str] = (),
) -> Callable[[], Embedder]:
    """What builds, once, the Embedder that the options of a command ask for, and says by what weights, if it is to.

    Without a `device`, for a command that one process answers, `start_alone` finds it once it is needed: PyTorch is
    imported where there is something to embed, by weights that are not in ONNX. `asked` are indexes and folders of
    features, maybe, that the Embedder's features are to be compared with, or the names of the weights that made other
    such features.
    """
    knobs = load_knobs()
    take_pictures_for(args)

    def alone() -> "torch.device":
        from clamp3.distributed import start_alone

        return start_alone(args.device, args.threads)

    @cache
    def load() -> Embedder:
        epoch = getattr(args, "epoch", None)
        weights = args.model_weights
        configured = Path(knobs["CLAMP3_WEIGHTS_PATH"]).name
        if (weights, args.variant, epoch) == (None, None, None) and release_named(configured):
            weights = recorded_weights(asked)
        if is_in_onnx := bool(weights and is_onnx(weights)):
            chosen = getattr(args, "device", None)  # none but the CPU, or it is refused
        else:
            chosen = alone() if device is None else device
        options = extraction_options(args, chosen)
        embedder = build_embedder(model_class, knobs, epoch, args.variant, weights, args.threads, **options)
        if args.threads and is_in_onnx and not isinstance(embedder.audio_encoder_name, OnnxMert):
            alone()  # tells PyTorch, whose MERT listens then, how many threads there are
        if tell:
            print_line(f"weights: {embedder.weights} ({embedder.fingerprint})")
        return embedder

    if device is None and os.environ.get("WORLD_SIZE", "1") != "1":
        alone()  # which refuses several processes
    return load
