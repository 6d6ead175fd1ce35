"""The Embedder that the knobs and a command's options ask for."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from clamp3.cli.options import worker_processes
from clamp3.cli.settings import Knobs, configured_path, load_knobs
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.models.releases import RELEASES, TINY, ensure_weights, find_weights, tiny_sizes
from clamp3.models.weights import build_model
from clamp3.sizes import ModelSizes


def build_embedder(
    model_class: type[CLaMP3Model] | type[M3Model],
    knobs: Knobs,
    epoch: int | None = None,
    variant: str | None = None,
    **options: Any,
) -> Embedder:
    """An Embedder over the configured weights, or those of an epoch (`..._E.pth`); `options` are Embedder's.

    With `variant`, over those of the release saas or c2, or of the small model tiny, whatever the knobs say.
    """
    configured = knobs["M3_WEIGHTS_PATH" if model_class is M3Model else "CLAMP3_WEIGHTS_PATH"]
    path, sizes = configured_path(knobs, configured), ModelSizes.from_knobs(knobs)
    if variant == "tiny":
        path, sizes = TINY / ("m3.safetensors" if model_class is M3Model else "clamp3.safetensors"), tiny_sizes()
        options["mert"] = options.get("mert") or TINY / "mert"
    elif variant:
        path, sizes = configured_path(knobs, RELEASES[variant].file_name), ModelSizes()
    elif epoch is not None:
        path = configured_path(knobs, f"{configured.removesuffix('.pth')}_{epoch}.pth")
        if not path.is_file():
            raise UserError(f"no weights of epoch {epoch}: there is no {path}")
    path = ensure_weights(path, announce=partial(print, flush=True))
    return Embedder(build_model(model_class, sizes, path), sizes, weights=path, **options)


def extraction_options(args: Namespace, device: torch.device) -> dict[str, Any]:
    """Options of an Embedder, as those of `extraction_parser` ask for."""
    return {
        "device": device,
        "precision": args.precision,
        "batch_tokens": args.batch_tokens,
        "as_is": args.as_is,
        "processes": worker_processes(args),
    }


def embedder_loader(args: Namespace, device: torch.device | str | None) -> Callable[[], Embedder]:
    """What builds, once, the Embedder that the options of `add_model_options` and `add_raw_options` ask for.

    Where they ask for none, and the released weights that config.py names are not at hand, it is the small model's.
    """
    knobs = load_knobs()
    options = {"precision": args.precision, "batch_tokens": args.batch_tokens, "mert": args.mert, "device": device}
    options["processes"] = worker_processes(args)

    @cache
    def load() -> Embedder:
        variant = args.variant
        if variant is None and args.epoch is None and (release := missing_release(knobs)) and TINY.is_dir():
            print(
                f"note: the weights of {release} are not here, so this is the small model, which knows folk tunes "
                f"only; --variant {release} downloads them",
                file=sys.stderr,
            )
            variant = "tiny"
        return build_embedder(CLaMP3Model, knobs, args.epoch, variant, **options)

    return load


def missing_release(knobs: Knobs) -> str | None:
    """The release whose CLaMP 3 weights the knobs name, if they are not here."""
    path = knobs["CLAMP3_WEIGHTS_PATH"]
    if find_weights(configured_path(knobs, path)):
        return None
    return next((name for name, release in RELEASES.items() if release.file_name == Path(path).name), None)
