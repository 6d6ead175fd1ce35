"""Setting knobs without editing config.py: checked for name and type."""

import difflib
import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clamp3.errors import UserError

Knobs = Mapping[str, Any]  # the values of config.py by their names, as `vars(config)` holds them


def override(knobs: dict[str, object], source: str) -> None:
    """Replace `knobs` (upper-case names) by those in `source`: a JSON object, or the path of one; '' is none.

    Raises UserError where a name is unknown or a value is not of the type of the value it replaces. An integer may
    stand for a float; lists hold strings.
    """
    if not source.strip():
        return
    if source.lstrip().startswith("{"):
        origin, text = "CLAMP3_CONFIG", source
    else:
        origin = f"CLAMP3_CONFIG ({source})"
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{origin} is neither a JSON object nor a file that can be read: {error}") from None
    from clamp3.io.files import parse_json

    try:
        values = parse_json(text)
    except ValueError as error:  # also of numbers that are too long
        raise UserError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f'{origin} must be a JSON object of knobs, such as {{"PATCH_LENGTH": 256}}')

    for name, value in values.items():
        if not name.isupper() or name not in knobs:
            close = difflib.get_close_matches(name, [knob for knob in knobs if knob.isupper()], n=1)
            hint = f"; did you mean {close[0]}?" if close else "; see code/config.py for all names"
            raise UserError(f"{origin}: there is no knob {name}{hint}")
        kind = type(knobs[name])
        if kind is float and type(value) is int:
            value = float(value)
        is_string_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if type(value) is not kind or (kind is list and not is_string_list):
            wanted = "list of strings" if kind is list else kind.__name__
            raise UserError(f"{origin}: {name} must be of type {wanted}, not {value!r}")
        knobs[name] = value


def logs_path(weights_path: str) -> str:
    """Where the log goes that belongs to `weights_path`: beside it, `logs` for `weights` and .txt for its suffix."""
    folder, name = os.path.split(weights_path)
    stem = name.removesuffix(".pth").removesuffix(".safetensors")
    return os.path.join(folder, stem.replace("weights_", "logs_") + ".txt")


def configured_path(knobs: Knobs, path: str) -> Path:
    """A weights path of config.py: in the working directory if it is there, else beside config.py.

    Nobody puts weights into an installed package: there, the working directory is the place.
    """
    from clamp3.models.releases import find_in_folder

    folder = Path(knobs["__file__"]).parent
    is_installed = folder == Path(__file__).parent
    return Path(path) if is_installed or find_in_folder(Path(path)) else folder / path


def config_file() -> Path:
    """Where the knobs are: code/config.py, of which an installed package has a copy in this folder (see setup.py)."""
    installed = Path(__file__).with_name("config.py")
    return installed if installed.exists() else Path(__file__).resolve().parents[2] / "config.py"


def load_knobs() -> Knobs:
    """The knobs of `config_file`, as CLAMP3_CONFIG changes them. Raises UserError as `override`."""
    return runpy.run_path(str(config_file()))
