"""The optional packages of classification."""

from collections.abc import Iterator
from contextlib import contextmanager

from clamp3.errors import UserError


@contextmanager
def needs_classify() -> Iterator[None]:
    """Around imports of the extra `classify`: UserError that says how to install it where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise UserError(f'{error.name or error} is not installed: pip install "clamp3[classify]"') from error
