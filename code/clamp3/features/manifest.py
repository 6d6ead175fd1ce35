"""What made the features in a folder, recorded in it, so that no folder mixes features that do not compare."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from clamp3.errors import UserError
from clamp3.io.files import parse_json, write_new, write_whole

MANIFEST_FILE = ".clamp3.json"  # hidden, so that it is no input of anything
GLOBAL, STATES = "global features", "hidden states"  # kinds
T = TypeVar("T")
Maker = dict[str, str | None]  # None where it is not known
# What must be the same for all features of a folder; the other entries of a manifest are for people.
COMPARED = ("kind", "weights", "precision", "audio_encoder")


def load_manifest(folder: Path) -> Maker | None:
    """What made the features in `folder`; None where that is not recorded. Raises UserError for a damaged record."""
    path = folder / MANIFEST_FILE
    try:
        recorded = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        recorded = None
    if not isinstance(recorded, dict) or not isinstance(recorded.get("kind"), str):
        raise UserError(
            f"{path}, which records what made the features there, cannot be read; if you know it, delete it"
        )
    return recorded


def check_or_record_maker(folder: Path, maker: Maker, is_new: bool) -> None:
    """Refuse to mix: raise UserError where `folder` holds features of another maker.

    In a folder that `is_new`, that holds no features yet, `maker` is recorded; of several runs that start at once, the
    first one's. One that holds features and no record, from an earlier version, stays as it is.
    """
    recorded = load_manifest(folder)
    if recorded is None:
        if not is_new or _save_manifest(folder, maker, write_new):
            return
        recorded = load_manifest(folder) or {}
    for name in COMPARED:
        before, now = recorded.get(name), maker.get(name)
        if before is not None and now is not None and before != now:
            then, wanted = _described(recorded), _described(maker)
            changed = ", which has changed since" if then == wanted else ""
            raise UserError(
                f"{folder} holds {then}; these would be {wanted}{changed}: "
                "they do not compare; give another output folder, or the options as they were, or delete the folder"
            )
    if any(recorded.get(name) is None and maker.get(name) is not None for name in COMPARED):
        known = {name: value for name, value in maker.items() if value is not None}
        _save_manifest(folder, {**recorded, **known}, write_whole)


def _described(maker: Maker) -> str:
    return f"{maker['kind']} by {maker.get('file') or 'unknown weights'} in {maker.get('precision')}"


def _save_manifest(folder: Path, maker: Maker, write: Callable[[Path, bytes], T]) -> T:
    try:
        return write(folder / MANIFEST_FILE, json.dumps(maker, indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
