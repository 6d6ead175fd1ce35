"""The short form of `kills`: a kill each of a few commands. `make soak` is the long form.

Training is killed in tests/test_training.py, several times in a process that need not start anew.
"""

from random import Random

import numpy as np
import pytest

from commands import Bench
from kills import survive

SHORT = 0.2  # of the inputs of the long form
OTHERS = ("extract_clamp3", "xml2abc")


@pytest.fixture(scope="module")
def bench(small_model, training_data, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), small_model, training_data, SHORT)


@pytest.mark.parametrize("name", ["index build", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_killed_command_is_taken_up_and_leaves_nothing(bench, tmp_path, name):
    seed = int(np.random.default_rng().integers(10**6))
    found = survive(name, bench.commands()[name], tmp_path, 1, 1, Random(seed))
    assert found.tried == 1 and not found.problems, (seed, found.problems)
