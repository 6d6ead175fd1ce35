"""Two commands at once in one folder, in PID namespaces of their own, while their cache is deleted."""

from random import Random

import pytest

from commands import Bench
from concurrency import namespace, two_at_once


def test_two_containers_on_one_folder_and_one_cache_that_is_deleted(small_model, training_data, tmp_path):
    prefix = namespace()
    if not prefix:
        pytest.skip("PID namespaces are not allowed here")
    bench = Bench(tmp_path / "bench", small_model, training_data, 0.15)
    command = bench.commands()["clamp3_embd"]
    found = two_at_once("two", command, tmp_path / "runs", 1, Random(0), prefix, delete_cache=True)
    assert found.tried == 1 and not found.problems
