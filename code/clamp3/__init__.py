"""CLaMP 3: sheet music, MIDI, audio and text in one space. `from clamp3 import Embedder` is the way in."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """Load the public classes when first asked for: `import clamp3` alone stays free of torch."""
    if name == "Embedder":
        from clamp3.embedding import Embedder

        return Embedder
    raise AttributeError(f"module 'clamp3' has no attribute {name!r}")
