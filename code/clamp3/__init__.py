"""CLaMP 3: sheet music, MIDI, audio and text in one space. `from clamp3 import Embedder` is the way in."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clamp3.errors import RepairWarning, UserError
    from clamp3.features.embedder import Embedder
    from clamp3.search.ranking import top_k
    from clamp3.sizes import ModelSizes

__version__ = "0.1.0"

# Public names and their modules, which are loaded when first asked for: `import clamp3` alone stays free of torch.
_HOMES = {
    "Embedder": "clamp3.features.embedder",
    "ModelSizes": "clamp3.sizes",
    "RepairWarning": "clamp3.errors",
    "UserError": "clamp3.errors",
    "top_k": "clamp3.search.ranking",
}
__all__ = ["Embedder", "ModelSizes", "RepairWarning", "UserError", "top_k"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'clamp3' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
