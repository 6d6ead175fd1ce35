"""The benchmarks run, and compare what they say they compare; their figures are for quiet machines, not for tests."""

import json
import sys

import pytest

from conftest import ROOT, run

pytestmark = pytest.mark.slow


def test_extraction_is_measured_against_a_loop_that_computes_the_same(tmp_path):
    command = [sys.executable, "benchmarks/extraction.py", "--quick", "--json", tmp_path / "figures.json"]
    printed = run(*command, "--folder", tmp_path, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "SMALL models" in printed
    short = {"abc", "text", "audio"}
    assert figures["kinds"].keys() == short | {f"long_{kind}" for kind in short}
    for kind, found in figures["kinds"].items():
        assert found["files"] == (8 if kind in short else 1) and all(
            speed > 0 for speed in found["files_per_s"].values()
        )
        assert found["cosine_fp32_to_loop"] > 0.999999 and 0.99 < found["cosine_bf16_to_fp32"] < 0.9999999
        assert found["cosine_fp32_to_batched"] > 0.999999 and 0 < found["peak_share"]["fp32"] < 1
        assert found["padding_ratio"] > 1.5 if kind in short else found["padding_ratio"] < 1.5
    for name in ("few", "abc", "text", "audio"):
        assert figures["processes"][name]["first_output_seconds"] < figures["processes"][name]["seconds"]
        assert figures["processes"][name]["peak_bytes"] > 1e8


def test_the_shares_of_operations_are_measured(tmp_path):
    command = [sys.executable, "benchmarks/shares.py", "--quick", "--only", "abc,text"]
    printed = run(*command, "--json", tmp_path / "figures.json", "--folder", tmp_path, cwd=ROOT).stdout
    found = json.loads((tmp_path / "figures.json").read_text())["shares"]
    assert "| attention |" in printed and found.keys() == {"abc", "text"}
    for shares in found.values():
        assert len(shares) == 5 and min(shares.values()) > 0 and sum(shares.values()) == pytest.approx(1)


def test_preprocessing_is_measured_against_what_makes_the_same(tmp_path):
    command = [sys.executable, "benchmarks/preprocessing.py", "--quick", "--only", "midi"]
    printed = run(*command, "--json", tmp_path / "figures.json", "--folder", tmp_path, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "| 8 MIDI files to MTF |" in printed
    found = figures["rows"]["midi"]
    assert found["speed"] > 0 and found["baseline_speed"] > 0 and found["ratio"] > 0 and found["target"] == 2


def test_training_is_measured_against_a_loop_that_learns_the_same(tmp_path):
    """Equal models, the same batches; what differs is how the dropout falls."""
    command = [sys.executable, "benchmarks/training.py", "--quick", "--json", tmp_path / "figures.json"]
    printed = run(*command, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "SMALL models" in printed
    for name in ("tiny", "full"):
        assert min(figures[name][one] for one in ("clamp3", "loop", "batched", "batched_ratio")) > 0
        assert figures[name]["padding_ratio"] > 5
    ours, theirs = figures["loss"]["clamp3"], figures["loss"]["loop"]
    assert ours["epochs"] == theirs["epochs"] == 1 and ours["eval_loss"] == pytest.approx(
        theirs["eval_loss"], rel=0.01
    )


def test_the_start_of_training_is_measured(tmp_path):
    command = [sys.executable, "benchmarks/training_start.py", "--quick", "--json", tmp_path / "figures.json"]
    printed = run(*command, "--folder", tmp_path, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "| clamp3, second start |" in printed and not list(tmp_path.glob("tmp*"))
    assert 1500 < figures["jsonl_bytes"] / figures["items"] < 3000
    for found in figures["starts"]["clamp3"].values():
        assert 0 < found["seconds"] < 300 and found["cpu_seconds"] > 0 and found["peak_bytes"] > 1e8


def test_training_is_measured_in_several_processes(tmp_path):
    command = [sys.executable, "benchmarks/processes.py", "--quick", "--only", "tiny"]
    printed = run(*command, "--json", tmp_path / "figures.json", cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "| hidden size 128 |" in printed and figures["tiny"].keys() == {"1", "2"}
    assert figures["tiny"]["1"]["on"] > 0 and min(figures["tiny"]["2"][name] for name in ("on", "off", "ratio")) > 0


def test_training_on_a_gpu_is_measured(tmp_path):
    """A small model shows, on any device, that the benchmark runs."""
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--json", tmp_path / "figures.json"]
    printed = run(*command, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "a SMALL model" in printed
    assert {(row["modality"], row["full_length"]) for row in figures["rows"]} == {
        (modality, full) for modality in ("symbolic", "audio") for full in (True, False)
    }
    assert all(row["items_per_s"] > 0 and row["peak_share"] > 0 for row in figures["rows"])


def test_search_is_measured_against_loading_each_feature(tmp_path):
    pytest.importorskip("faiss")
    command = [sys.executable, "benchmarks/search.py", "--sizes", "500", "1000", "--files", "500", "--tunes", "250"]
    printed = run(*command, "--json", tmp_path / "figures.json", "--folder", tmp_path, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "| 500 | 1,000 |" in printed and "over exact search in the index" in printed
    assert figures["one_npy_each_ms"] > figures["sizes"]["500"]["exact_p50_ms"] > 0
    for size, found in figures["sizes"].items():
        assert found["recall_music"] >= 0.98 and found["recall_text"] >= 0.98
        assert found["disk_MB"] > int(size) * 768 * 5 / 1e6 and found["open_s"] > 0


def test_ranks_are_measured_against_whole_products():
    printed = run(
        *[sys.executable, "benchmarks/ranking.py", "--pairs", "23000", "--tunes", "250", "--rounds", "1"], cwd=ROOT
    ).stdout
    rows = [line for line in printed.splitlines() if line.endswith("% |")]
    assert len(rows) == 3 and all(int(row.split("|")[-3].split()[0]) < 30 for row in rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what the C library keeps is glibc's")
def test_memory_is_measured(tmp_path):
    command = [sys.executable, "benchmarks/memory.py", "--quick", "--only", "as it is"]
    printed = run(*command, "--json", tmp_path / "figures.json", cwd=ROOT).stdout
    [found] = json.loads((tmp_path / "figures.json").read_text()).values()
    assert "| as it is |" in printed and found["tunes"] > 0 and 100 < found["in_use_mb"] <= found["last_mb"] + 1


def test_onnx_files_are_measured_against_the_model(tmp_path):
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "benchmarks/export.py", "--quick", "--json", tmp_path / "figures.json"]
    printed = run(*command, "--folder", tmp_path, cwd=ROOT).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["quick"] and "SMALL models" in printed
    assert figures["items_per_s"].keys() == {"abc", "text"} and len(figures["first_text_seconds"]) == 3
    assert all(one["cosine_min"] > 0.999 for report in figures["reports"].values() for one in report)
