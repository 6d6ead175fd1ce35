"""The short form of `fuzz`: some mutated files for each parser; and what attackers write on purpose."""

from dataclasses import replace

import pytest

from attacks import ATTACKS, check_untouched
from fuzz import fuzz
from parsers import PARSERS

INPUTS = 100
SLOW = {"ABC to MusicXML": 25}
SEED = 0


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_files_are_read_or_refused(name):
    inputs = SLOW.get(name, INPUTS)
    found = fuzz(name, PARSERS[name], inputs, SEED)
    assert not found.lost, (found.kinds, [loss["what"] for loss in found.lost[:2]])
    assert found.tried == found.read + found.refused == inputs


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_or_harmless(name):
    kind, make = ATTACKS[name]
    PARSERS[kind].samples()  # what they make is used by all children
    data = make()
    found = fuzz(kind, replace(PARSERS[kind], samples=lambda: [data], mutations=(), is_zip=False), 1)
    check_untouched()
    assert not found.lost, (found.kinds, found.lost[0]["what"])
