"""The short form of `fuzz`, some mutated files for each parser, and what attackers write on purpose.

Attacks that belong to one format are tested where that format is: README.md says where.
"""

import pytest

from fuzz import fuzz
from parsers import PARSERS

INPUTS = 100
SEED = 0


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_files_are_read_or_refused(name):
    found = fuzz(name, PARSERS[name], INPUTS, SEED)
    assert found.tried == INPUTS and found.read + found.refused == INPUTS, found.kinds
    assert not found.lost, (found.kinds, [loss["what"] for loss in found.lost[:2]])
