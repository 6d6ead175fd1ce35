"""Models with the weights that the golden values were recorded with: they follow from each tensor's name."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig

from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.sizes import ModelSizes

GOLDEN = Path(__file__).parent / "golden"
TIED = ("decoder.base.lm_head.weight", "decoder.base.transformer.wte.weight")
NORM_WEIGHTS = ("LayerNorm.weight", "layer_norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")


def golden_json(name: str):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def formula_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights by the formula of the golden values: a stream of random numbers for each name."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        values *= np.float32(0.05)
        weights[name] = torch.from_numpy(values + 1 if name.endswith(NORM_WEIGHTS) else values)
    if TIED[0] in weights:
        weights[TIED[0]] = weights[TIED[1]]
    return weights


def save_checkpoint(path: Path, shapes: dict[str, list[int]], **entries) -> None:
    """A checkpoint as the original writes it."""
    torch.save({"model": formula_weights(shapes), "epoch": 1, "best_epoch": 1, "min_eval_loss": 0.5, **entries}, path)


def golden_sizes(folder: Path) -> ModelSizes:
    """The sizes of the golden model; its text model's configuration is written to `folder`."""
    dims = golden_json("model.json")["dims"]
    XLMRobertaConfig(**dims["text"]).save_pretrained(folder)
    return ModelSizes.from_knobs({**dims, "TEXT_MODEL_NAME": str(folder), "LOGIT_SCALE": 1.0})


def golden_model(model_class: type[CLaMP3Model] | type[M3Model], sizes: ModelSizes) -> CLaMP3Model | M3Model:
    key = "m3_state_dict_shapes" if model_class is M3Model else "state_dict_shapes"
    model = model_class(sizes)
    model.load_state_dict(formula_weights(golden_json("model.json")[key]))
    return model.eval()
