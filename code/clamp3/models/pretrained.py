"""Weights in a file, in a folder or on the hub -> a model, with all that it takes to use it."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clamp3.errors import UserError
from clamp3.inputs.patchilizer import VOCAB_SIZE
from clamp3.io.files import parse_json
from clamp3.io.wrong_files import problem_of_text_file
from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC, TEXT
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import (
    AUDIO_ENCODER,
    CLAMP3,
    CONFIG_FILE,
    M3,
    XLM_R_SHA256,
    Description,
    checked,
    content_of,
    sizes_of,
)
from clamp3.models.hub import HubModel
from clamp3.models.m3 import M3Model
from clamp3.models.onnx_files import is_onnx
from clamp3.models.releases import RELEASES, TINY, ensure_weights
from clamp3.models.weight_files import Source, Sources, Weights
from clamp3.models.weights import is_m3, model_with, read_weights
from clamp3.sizes import XLM_R_BASE, ModelSizes

TEXT_FOLDER, MERT_FOLDER = "text", "mert"  # of a model's folder
ONE_FILE = "clamp3.safetensors"  # of all towers, in a folder that does not say which files it has
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
POSITIONS = "embeddings.position_embeddings.weight"
XLM_R_SHAPES = {"word_embeddings": (250002, 768), "position_embeddings": (514, 768)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model with weights, in evaluation mode."""

    model: CLaMP3Model | M3Model
    sizes: ModelSizes
    path: Path
    mert: Path | None = None  # what listens to sound for it, where that is in its folder


def find_pretrained(
    weights: str | Path,
    sizes: ModelSizes | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    towers: Collection[str] | None = None,
) -> Pretrained:
    """`load_pretrained` of a release, which is downloaded if need be, of "tiny", a file, a folder, or the hub's name.

    Raises UserError where there is no such thing.
    """
    path = TINY if weights == "tiny" else Path(weights)
    if weights in RELEASES:
        path = ensure_weights(Path(RELEASES[str(weights)].file_name))
    elif not path.exists():
        if not (model := hub_model(str(weights), revision, token)):
            raise UserError(
                f"no weights at {path}: give {', '.join(RELEASES)}, tiny, or the path of a .pth or .safetensors file, "
                "of a folder, or the name of a model on the hub"
            )
        return load_folder(model, sizes, towers)
    return load_pretrained(path, sizes, towers=towers)


def load_pretrained(
    path: Path,
    sizes: ModelSizes | None = None,
    configured: ModelSizes | None = None,
    model_class: type[CLaMP3Model] | type[M3Model] | None = None,
    towers: Collection[str] | None = None,
) -> Pretrained:
    """The model at `path`, a file or a folder, as `model_with` builds it, with the `towers` of these modalities.

    Its sizes are `sizes`, else those that the file says, else the `configured` ones, else what its tensors' shapes
    tell. Raises UserError where they do not fit, or cannot be told.
    """
    if path.is_dir():
        return load_folder(LocalFolder(path), sizes, towers, model_class)
    weights = read_weights(path)
    is_bare = sizes is None and model_class is not M3Model and not weights.source.description
    if is_bare and (lying := _folder_of(path)):
        return load_folder(lying[0], None, towers or lying[1])
    if towers is not None:
        weights = _kept(weights, is_m3(weights), _wanted(towers, _all_towers(is_m3(weights)), path), path)
    if sizes is None and weights.source.description:
        sizes = sizes_of(weights.source.description, path)
        if configured:
            _tell_differences(path, sizes, configured)
    sizes = sizes or configured or inferred_sizes(weights, path)
    model = model_with(weights, sizes, path, model_class, towers)
    return Pretrained(model, sizes, path, _described_mert(weights.source.description))


# ---------- folders ----------


class LocalFolder:
    """A folder as `HubModel` gives its files."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def get(self, file_name: str) -> Path:
        """The file. Raises UserError where it is not there."""
        path = self.path / file_name
        if not path.is_file() and is_onnx(self.path):
            raise UserError(
                f"{self.path} holds ONNX files, which embed: give the weights that they were exported from"
            )
        if not path.is_file():
            raise UserError(f"{self.path} is no folder of a whole model: it has no {file_name}")
        return path


def hub_model(name: str, revision: str | None = None, token: str | bool | None = None) -> HubModel | None:
    """The model of the hub that `name` may be; None where it is no such name. UserError for the original's."""
    if not HUB_NAME.fullmatch(name) or name.endswith((".pth", ".safetensors")):
        return None
    own = [key for key, release in RELEASES.items() if release.repository == name]
    if own:
        raise UserError(f"{name} holds released files: give {' or '.join(own)}")
    return HubModel(name, revision, token)


def load_folder(
    folder: LocalFolder | HubModel,
    sizes: ModelSizes | None = None,
    towers: Collection[str] | None = None,
    model_class: type[CLaMP3Model] | type[M3Model] | None = None,
) -> Pretrained:
    """The model of a folder that `save_model` has written, or of the small model's, with the towers of `towers`.

    Of the files of other towers none is read. Raises UserError where something is missing, damaged or does not fit.
    """
    config_path = folder.get(CONFIG_FILE)
    config = read_config(config_path)
    chosen = M3Model if config["kind"] == M3 else CLaMP3Model
    if model_class not in (None, chosen):
        raise UserError(f"{folder} holds {chosen.__name__}'s weights, and {model_class.__name__}'s are needed")
    files = {tower: entry["file"] for tower, entry in config["towers"].items()}
    wanted = _wanted(towers, files, folder)
    sources: list[Source] = []
    weights = Weights()
    for name in dict.fromkeys(files[tower] for tower in wanted):
        part = read_weights(folder.get(name))
        known = {entry.get("sha256") for entry in config["towers"].values() if entry["file"] == name} - {None}
        assert isinstance(part.source, Source)
        if known - {part.source.digest}:
            raise UserError(f"{folder}: {name} is damaged: its SHA-256 is not the one in {CONFIG_FILE}; get it again")
        weights.update(_kept(part, config["kind"] == M3, wanted, folder))
        sources.append(part.source)
    sizes = sizes or replace(
        ModelSizes.from_knobs(config["sizes"]), text_model_name=_text_model(folder, config, TEXT.name in wanted)
    )
    if "fingerprint" in config:
        path = config_path.parent
        weights.source = Sources(path, sources, config["fingerprint"], config)
    else:  # the small model's, in one file: as if that had been given
        weights.source, path = sources[0], sources[0].path
        weights.source.description = config
    model = model_with(weights, sizes, path, chosen, wanted, without_poolers=True)
    return Pretrained(model, sizes, path, _mert(folder, config, AUDIO.name in wanted))


def read_config(path: Path) -> Description:
    """What a folder's config.json says of its weights. Raises UserError where it is no such file, or is damaged."""
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
        if "format" not in config and "PATCH_SIZE" in config:  # the small model's: sizes alone
            towers = dict.fromkeys(MODALITIES, {"file": ONE_FILE})
            config = {"format": 1, "kind": CLAMP3, "sizes": config, "towers": towers}
        else:
            config["fingerprint"] = str(config["fingerprint"])
        for tower, entry in config["towers"].items():
            if tower not in MODALITIES or Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"{tower}: {entry}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = problem_of_text_file(path) or f"it describes no model of this library ({error!r})"
        raise UserError(f"{path} cannot be used: {reason}") from None
    return checked(config, path)


def has_towers(path: Path) -> bool:
    """Whether a folder is one that `save_model` has written."""
    try:
        return "fingerprint" in read_config(path / CONFIG_FILE)
    except UserError:
        return False


def sizes_of_folder(path: Path) -> ModelSizes:
    """The sizes of a folder's model. Raises UserError where it is none."""
    folder, config = LocalFolder(path), read_config(path / CONFIG_FILE)
    name = _text_model(folder, config, TEXT.name in config["towers"])
    return replace(ModelSizes.from_knobs(config["sizes"]), text_model_name=name)


def _described_mert(description: Description | None) -> Path | None:
    """What listens to sound for described weights, if that is not MERT and is there."""
    name = (description or {}).get(AUDIO_ENCODER)
    path = TINY / MERT_FOLDER if name == "tiny" else Path(name) if name else None
    return path if path and path.is_dir() else None


def _folder_of(path: Path) -> tuple[LocalFolder, list[str]] | None:
    """The folder of a model of which the file `path` is a part, and the modalities whose towers are in it."""
    try:
        config = read_config(path.parent / CONFIG_FILE)
    except UserError:
        return None
    towers = [tower for tower, entry in config["towers"].items() if entry["file"] == path.name]
    return (LocalFolder(path.parent), towers) if towers else None


def _all_towers(of_m3: bool) -> list[str]:
    return [SYMBOLIC.name] if of_m3 else list(MODALITIES)


def _wanted(towers: Collection[str] | None, there: Collection[str], place: object) -> list[str]:
    """Those of `there` that are in `towers`. Raises UserError for one that is not there."""
    if isinstance(towers, str):
        raise UserError(f"towers must be a list of {', '.join(MODALITIES)}, not {towers!r}")
    for tower in towers or ():
        if tower not in there:
            raise UserError(f"{place} has no {tower} tower; it has: {', '.join(there)}")
    if towers is not None and not towers:
        raise UserError(f"no tower is asked for; {place} has: {', '.join(there)}")
    return [tower for tower in there if towers is None or tower in towers]


def prefixes(of_m3: bool, tower: str) -> tuple[str, ...]:
    """How the names of a tower's tensors, and those of its projection, begin."""
    return ("encoder.", "decoder.") if of_m3 else tuple(f"{part}." for part in MODALITIES[tower].parts)


def _kept(weights: Weights, of_m3: bool, towers: Collection[str], place: object) -> Weights:
    """Those of `weights` that belong to `towers`."""
    starts = tuple(start for tower in towers for start in prefixes(of_m3, tower))
    kept = Weights((name, tensor) for name, tensor in weights.items() if name.startswith(starts))
    kept.source = weights.source
    return kept


def _text_model(folder: LocalFolder | HubModel, config: Description, is_wanted: bool) -> str:
    """The name of a folder's text model: one that the library knows, or the folder with its files."""
    if config["kind"] == M3:
        return ModelSizes().text_model_name
    known = config.get("tokenizer", {})
    if (known.get("name"), known.get("sha256")) == (XLM_R_BASE, XLM_R_SHA256):
        return XLM_R_BASE
    names = known.get("files", [CONFIG_FILE]) if is_wanted else [CONFIG_FILE]
    paths = {name: folder.get(f"{TEXT_FOLDER}/{Path(name).name}") for name in names}
    if (
        is_wanted
        and known
        and content_of({name: path.read_bytes() for name, path in paths.items()}) != known["sha256"]
    ):
        raise UserError(f"{folder}: the files in {TEXT_FOLDER} are not what {CONFIG_FILE} says; get them again")
    return str(next(iter(paths.values())).parent)


def _mert(folder: LocalFolder | HubModel, config: Description, is_wanted: bool) -> Path | None:
    """What listens to sound for a folder's model, where it holds that."""
    if not is_wanted:
        return None
    if "mert" in config:
        return [folder.get(f"{MERT_FOLDER}/{Path(name).name}") for name in config["mert"]][0].parent
    beside = folder.path / MERT_FOLDER if isinstance(folder, LocalFolder) else None
    return beside if beside and beside.is_dir() else None


# ---------- sizes ----------


def _tell_differences(path: Path, sizes: ModelSizes, configured: ModelSizes) -> None:
    others = configured.to_knobs()
    differing = [
        f"{name} {size} (not {others[name]})"
        for name, size in sizes.to_knobs().items()
        if size != others[name] and name != "TEXT_MODEL_NAME"
    ]
    if differing:
        logger.info("sizes are those that %s says, not config.py's: %s", path, ", ".join(differing))


def inferred_sizes(weights: Mapping[str, Tensor], path: Path) -> ModelSizes:
    """The sizes that the shapes of a model's tensors tell; what is missing is as in the released models.

    How long a text may be is taken from the file's name, as config.py makes it; else it is as in the released models,
    which is logged where others are not. Raises UserError where the text model is not XLM-R base.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}

    def size(field: str, name: str, axis: int) -> dict[str, int]:
        return {field: shapes[name][axis]} if len(shapes.get(name, ())) > axis else {}

    def layers(field: str, prefix: str) -> dict[str, int]:
        numbers = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
        return {field: len(numbers)} if numbers else {}

    symbolic = "encoder." if is_m3(weights) else "symbolic_model."
    found: dict[str, Any] = {
        **size("m3_hidden_size", f"{symbolic}patch_embedding.weight", 0),
        **size("patch_size", f"{symbolic}patch_embedding.weight", 1),
        **layers("patch_num_layers", f"{symbolic}base.encoder.layer."),
        **size("patch_length", f"{symbolic}base.{POSITIONS}", 0),
        **layers("token_num_layers", "decoder.base.transformer.h."),
        **size("audio_hidden_size", f"audio_model.{POSITIONS}", 1),
        **layers("audio_num_layers", "audio_model.encoder.layer."),
        **size("max_audio_length", f"audio_model.{POSITIONS}", 0),
        **size("clamp3_hidden_size", "text_proj.weight", 0),
    }
    if "patch_size" in found:
        found["patch_size"] //= VOCAB_SIZE
    sizes = ModelSizes(**found)
    if is_m3(weights):
        return sizes
    for table, shape in XLM_R_SHAPES.items():
        if shapes.get(f"text_model.embeddings.{table}.weight", shape) != shape:
            raise UserError(
                f"{path} does not say what its text model is, and that is not {sizes.text_model_name}: give the sizes "
                "(ModelSizes with text_model_name), or in config.py those that it was made with"
            )
    if named := re.search(r"_t_length_(\d+)_", path.name):
        return replace(sizes, max_text_length=int(named[1]))
    if sizes != ModelSizes():
        logger.info("%s does not say how long a text may be: %d tokens are taken", path, sizes.max_text_length)
    return sizes
