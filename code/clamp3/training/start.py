"""Where training starts: the weights that a knob names, which are read and never written to."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from clamp3.errors import UserError
from clamp3.io.files import parse_json
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import AUDIO_ENCODER, CONFIG_FILE, Description, sizes_of
from clamp3.models.m3 import M3Model
from clamp3.models.pretrained import MERT_FOLDER, TEXT_FOLDER, has_towers, load_pretrained, sizes_of_folder
from clamp3.models.releases import RELEASES, TINY, ensure_weights, find_in_folder, find_weights, release_named
from clamp3.models.weights import check_weights, load_weights, read_weights
from clamp3.sizes import ModelSizes
from clamp3.training.checkpoints import epoch_path, last_path
from clamp3.training.settings import Settings


@dataclass(frozen=True)
class StartWeights:
    """Weights that a run starts with, and the sizes that they have."""

    name: str  # as it was asked for
    path: Path  # of the file; a release that is not there yet is downloaded by `load`
    sizes: ModelSizes

    def load(self, model: CLaMP3Model | M3Model) -> str:
        """Copy them into `model`; returns a line that says so. Raises UserError where that fails."""
        path = self.path if self.path.is_dir() else ensure_weights(self.path)
        if path.is_dir():
            weights = load_pretrained(path).model.state_dict()
            check_weights(model, weights, path)
            model.load_state_dict(weights)
        else:
            load_weights(model, path)
        return f"all weights start with those of {self.name}" + f" ({path})" * (str(path) != self.name)


def find_start(name: str, stage: str, sizes: ModelSizes, beside: Path) -> StartWeights:
    """The weights that `name` stands for: a release, "tiny", a file, or a folder with a model and its config.json.

    `stage` is "CLAMP3" or "M3"; `sizes` are those of a file's model that does not say them, `beside` is a folder in
    which releases are looked for too. Raises UserError where there is no such thing.
    """
    knob, releases = f"{stage}_INIT_WEIGHTS", ("m3",) if stage == "M3" else ("saas", "c2")
    if name in releases:
        file = RELEASES[name].file_name
        path = find_in_folder(Path(file)) or find_in_folder(beside / file) or find_weights(Path(file))
        return StartWeights(name, path or beside / file, _sizes_of({}, sizes))
    path = TINY if name == "tiny" else Path(name)
    if path.is_dir():
        return _in_folder(knob, name, path, f"{stage.lower()}.safetensors", sizes)
    if not path.is_file():
        known = ", ".join((*releases, "tiny"))
        raise UserError(f"{knob}: there is no {path}; give {known}, or the path of a file or a folder")
    said = _said_in(path)
    return StartWeights(name, path, replace(sizes_of(said, path), logit_scale=sizes.logit_scale) if said else sizes)


def _said_in(path: Path) -> Description | None:
    """What a file says of its weights; None where it is damaged, which loading it will tell."""
    try:
        return read_weights(path).source.description
    except UserError:
        return None


def audio_encoder_of(name: str) -> str | None:
    """What listens to sound for the weights of a name that `find_start` takes, if they have one of their own."""
    path = TINY if name == "tiny" else Path(name)
    if path.is_dir():
        return "tiny" if name == "tiny" else str(path / MERT_FOLDER) if path.joinpath(MERT_FOLDER).is_dir() else None
    said = _said_in(path) if path.is_file() else None
    return said.get(AUDIO_ENCODER) if said else None


def _in_folder(knob: str, name: str, folder: Path, file: str, sizes: ModelSizes) -> StartWeights:
    if has_towers(folder):
        known_sizes = sizes_of_folder(folder)
        return StartWeights(name, folder, replace(known_sizes, logit_scale=sizes.logit_scale))
    path = folder / file
    if not path.is_file() or not folder.joinpath(CONFIG_FILE).is_file():
        raise UserError(f"{knob}: {folder} must hold {file} and {CONFIG_FILE}, as the folder of tiny does")
    try:
        knobs = parse_json(folder.joinpath(CONFIG_FILE).read_bytes())
        if not isinstance(knobs, dict):
            raise ValueError("not a JSON object")
        known = dict(knobs)
        if folder.joinpath(TEXT_FOLDER).is_dir():
            known["TEXT_MODEL_NAME"] = str(folder / TEXT_FOLDER)
        return StartWeights(name, path, _sizes_of(known, sizes))
    except (ValueError, OSError) as error:
        raise UserError(f"{knob}: {folder / CONFIG_FILE} cannot be read: {error}") from None


def _sizes_of(knobs: dict, configured: ModelSizes) -> ModelSizes:
    """The sizes in `knobs`; the loss's scale is none that weights have, so that it stays as `configured`."""
    return replace(ModelSizes.from_knobs(knobs), logit_scale=configured.logit_scale)


def refuse_to_overwrite(start: StartWeights, stage: str, settings: Settings) -> None:
    """Raise UserError where the run would write to the weights that it starts with, or to a release's name."""
    output, knobs = settings.weights_path, (f"{stage}_INIT_WEIGHTS", f"{stage}_WEIGHTS_PATH")
    epochs = range(1, settings.epochs + 1) if settings.save_every else ()
    for written in (output, last_path(output), *(epoch_path(output, epoch) for epoch in epochs)):
        if _same_file(start.path, written):
            raise UserError(
                f"{knobs[0]} is {start.name}, and training would write there ({written}): where it starts is never "
                f"written to, so set {knobs[1]} to another path"
            )
    if release_named(output.name):
        raise UserError(
            f"{knobs[1]} is {output}, the name of released weights: with {knobs[0]} set, give the new ones another "
            "name, or every command would take them for the release"
        )


def _same_file(path: Path, other: Path) -> bool:
    """Whether both lead to one file, by whatever links; or would, if it were there."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)
