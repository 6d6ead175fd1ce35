"""What makes a model: apart from the networks, so that processes which only encode inputs start quickly."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

PATCH_SIZE = 64  # characters in a patch
XLM_R_BASE = "FacebookAI/xlm-roberta-base"


@dataclass(frozen=True)
class ModelSizes:
    """What makes a model; the defaults are the released ones'. Each is a knob of config.py, there in capitals."""

    patch_size: int = PATCH_SIZE
    patch_length: int = 512
    patch_num_layers: int = 12
    token_num_layers: int = 3
    m3_hidden_size: int = 768
    text_model_name: str = XLM_R_BASE
    max_text_length: int = 128
    audio_hidden_size: int = 768
    audio_num_layers: int = 12
    max_audio_length: int = 128
    clamp3_hidden_size: int = 768
    logit_scale: float = 1.0

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any]) -> "ModelSizes":
        """The sizes that `knobs` (such as `vars(config)`) holds under upper-case names, the others by default."""
        return cls(**{field.name: knobs[name] for field in fields(cls) if (name := field.name.upper()) in knobs})

    def to_knobs(self) -> dict[str, Any]:
        """The sizes under upper-case names, as `from_knobs` takes them."""
        return {name.upper(): size for name, size in asdict(self).items()}
