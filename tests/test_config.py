"""The knobs: documented names and defaults, the documented line 66, and settings without editing the file."""

import json
import re

import pytest

from clamp3.cli.settings import override
from clamp3.errors import UserError
from conftest import BIN, CODE, run

SHOW = "import config, json; print(json.dumps({k: v for k, v in vars(config).items() if k.isupper()}))"
CLAMP3_NAME = (
    "weights_clamp3_saas_h_size_768_t_model_FacebookAI_xlm-roberta-base_t_length_128_a_size_768_a_layers_12"
    "_a_length_128_s_size_768_s_layers_12_p_size_64_p_length_512.pth"
)
M3_NAME = "weights_m3_h_size_768_t_layers_3_p_layers_12_p_size_64_p_length_512_lr_0.0001_batch_16_mask_0.45.pth"


def knobs(folder=CODE, **environment) -> dict[str, object]:
    return json.loads(run(BIN / "python", "-c", SHOW, env={"PYTHONPATH": str(CODE), **environment}, cwd=folder).stdout)


def test_defaults_are_the_documented_ones():
    found = knobs()
    expected = {
        "EVAL_SPLIT": 0.01,
        "PATCH_SIZE": 64,
        "PATCH_LENGTH": 512,
        "PATCH_NUM_LAYERS": 12,
        "TOKEN_NUM_LAYERS": 3,
        "M3_HIDDEN_SIZE": 768,
        "M3_NUM_EPOCH": 100,
        "M3_LEARNING_RATE": 1e-4,
        "M3_BATCH_SIZE": 16,
        "M3_MASK_RATIO": 0.45,
        "M3_DETERMINISTIC": True,
        "M3_WANDB_LOG": True,
        "M3_LOAD_CKPT": True,
        "CLAMP3_HIDDEN_SIZE": 768,
        "TEXT_MODEL_NAME": "FacebookAI/xlm-roberta-base",
        "MAX_TEXT_LENGTH": 128,
        "AUDIO_HIDDEN_SIZE": 768,
        "AUDIO_NUM_LAYERS": 12,
        "MAX_AUDIO_LENGTH": 128,
        "CLAMP3_NUM_EPOCH": 100,
        "CLAMP3_LEARNING_RATE": 1e-5,
        "CLAMP3_BATCH_SIZE": 256,
        "LOGIT_SCALE": 1,
        "FREEZE_TEXT": False,
        "TEXT_DROPOUT": True,
        "CLAMP3_DETERMINISTIC": True,
        "CLAMP3_LOAD_M3": True,
        "CLAMP3_WANDB_LOG": True,
        "CLAMP3_LOAD_CKPT": True,
        "SAVE_EVERY": 5,
        "CLAMP3_WEIGHTS_PATH": CLAMP3_NAME,
        "CLAMP3_LOGS_PATH": CLAMP3_NAME.replace("weights", "logs").replace(".pth", ".txt"),
        "M3_WEIGHTS_PATH": M3_NAME,
        "M3_LOGS_PATH": M3_NAME.replace("weights", "logs").replace(".pth", ".txt"),
    }
    assert {name: found[name] for name in expected} == expected
    others = {"WANDB_KEY", "M3_TRAIN_FOLDERS", "M3_EVAL_FOLDERS", "CLAMP3_TRAIN_JSONL", "CLAMP3_EVAL_JSONL"}
    new = {"SEED", "SAVE_STEPS", "TRAIN_WORKERS", "TRAIN_PRECISION", "COMPILE_LAYERS", "RECOMPUTE_LAYERS"}
    new |= {"WARMUP_STEPS", "RATE_DECAY", "CLAMP3_MICRO_BATCH", "COLLECTIVE_TIMEOUT", "SYMBOLIC_AS_IS"}
    new |= {"MAX_SKIPPED_SHARE", "CLAMP3_INIT_WEIGHTS", "M3_INIT_WEIGHTS", "EARLY_STOPPING"}
    new |= {"LORA_RANK", "LORA_TARGETS", "LORA_MERGE", "HARD_NEGATIVES"}
    assert set(found) - set(expected) == others | new


def test_changing_saas_to_c2_on_line_66_switches_the_variant(tmp_path):
    lines = (CODE / "config.py").read_text(encoding="utf-8").splitlines(keepends=True)
    assert lines[65].count("saas") == 1
    lines[65] = lines[65].replace("saas", "c2")
    (tmp_path / "config.py").write_text("".join(lines), encoding="utf-8")
    found = knobs(tmp_path)
    assert found["CLAMP3_WEIGHTS_PATH"] == CLAMP3_NAME.replace("saas", "c2")
    assert found["CLAMP3_LOGS_PATH"].startswith("logs_clamp3_c2_")


def test_settings_reach_the_knobs_and_the_names_that_follow(tmp_path):
    found = knobs(CLAMP3_CONFIG='{"M3_HIDDEN_SIZE": 128, "LOGIT_SCALE": 2, "M3_TRAIN_FOLDERS": ["a", "b"]}')
    assert found["M3_HIDDEN_SIZE"] == 128 and found["LOGIT_SCALE"] == 2.0 and found["M3_TRAIN_FOLDERS"] == ["a", "b"]
    assert "_s_size_128_" in found["CLAMP3_WEIGHTS_PATH"] and "_h_size_128_" in found["M3_LOGS_PATH"]
    (tmp_path / "mine.json").write_text('{"CLAMP3_WEIGHTS_PATH": "mine.pth"}')
    found = knobs(CLAMP3_CONFIG=str(tmp_path / "mine.json"))
    assert (found["CLAMP3_WEIGHTS_PATH"], found["CLAMP3_LOGS_PATH"]) == ("mine.pth", "mine.txt")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('{"PATCH_LENGHT": 3}', "no knob PATCH_LENGHT; did you mean PATCH_LENGTH?"),
        ('{"patch_length": 3}', "no knob patch_length"),
        ('{"PATCH_LENGTH": "3"}', "PATCH_LENGTH must be of type int, not '3'"),
        ('{"PATCH_LENGTH": true}', "PATCH_LENGTH must be of type int"),
        ('{"PATCH_LENGTH": 3.5}', "PATCH_LENGTH must be of type int"),
        ('{"FLAG": 1}', "FLAG must be of type bool"),
        ('{"FOLDERS": ["a", 3]}', "FOLDERS must be of type list of strings"),
        ('{"PATCH_LENGTH": 3', "not valid JSON"),
        ("no/such/file.json", "neither a JSON object nor a file"),
    ],
)
def test_wrong_settings_are_named(source, complaint):
    knobs = {"PATCH_LENGTH": 512, "FLAG": True, "FOLDERS": ["a"]}
    with pytest.raises(UserError, match=re.escape(complaint)):
        override(knobs, source)


@pytest.mark.parametrize("script", ["train_m3.py", "train_clamp3_audio.py", "extract_m3.py"])
def test_commands_say_it_in_one_line(script):
    done = run(BIN / "python", script, "in", "out", env={"CLAMP3_CONFIG": '{"PATCH_LENGHT": 3}'}, check=2)
    assert done.stderr == "error: CLAMP3_CONFIG: there is no knob PATCH_LENGHT; did you mean PATCH_LENGTH?\n"
