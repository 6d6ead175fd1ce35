"""The former name of `clamp3.tasks.mteb_encoder`, for code that imports it."""

from clamp3.tasks.mteb_encoder import MtebEncoder

__all__ = ["MtebEncoder"]
