"""The text tower: any text encoder of transformers, by its name on the hub or its folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from clamp3.errors import UserError
from clamp3.io.files import parse_json
from clamp3.io.wrong_files import problem_in
from clamp3.models.bert import ROBERTA, Bert, BertConfig
from clamp3.models.meta import ParametersOnMeta
from clamp3.sizes import XLM_R_BASE, ModelSizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

XLM_R_BASE_CONFIG = BertConfig(
    "xlm-roberta",
    250002,
    **ROBERTA,
    max_position_embeddings=514,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
)


def text_config(name: str) -> "BertConfig | PretrainedConfig":
    """The configuration of the text model `name`. XLM-R base's is known here, so that it needs no network.

    Raises UserError where there is none, or where it is that of no text encoder.
    """
    if name == XLM_R_BASE:
        return XLM_R_BASE_CONFIG
    return _own_config(Path(name, "config.json")) or _config_of_transformers(name)


def _own_config(path: Path) -> BertConfig | None:
    """The configuration in the file of a local folder, if it is of BERT's kin and in order."""
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return BertConfig.read(settings) if isinstance(settings, dict) else None


def _config_of_transformers(name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged file makes the readers raise errors of many kinds
        if problem := problem_in(Path(name), ("config.json",)) if Path(name).is_dir() else None:
            raise UserError(f"no configuration of the text model {name}: {problem}") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"no configuration of the text model {name}: {reason}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder-decoder ({config.model_type}), and the text tower must be an encoder alone, such "
            f"as {XLM_R_BASE}"
        )
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # ModernBERT would compile itself; COMPILE_LAYERS decides that
    if getattr(config, "use_cache", False):
        config.use_cache = False  # nothing is generated
    return config


def build_text_model(sizes: ModelSizes) -> Any:
    """The network of the text tower, with random weights.

    Raises UserError where the configured text model cannot be one, or has positions for fewer than `max_text_length`
    tokens.
    """
    name = sizes.text_model_name
    config = text_config(name)
    model = Bert(config) if isinstance(config, BertConfig) else _network_of_transformers(name, config)
    positions = max_positions(model)
    if positions is not None and sizes.max_text_length > positions:
        raise UserError(
            f"MAX_TEXT_LENGTH is {sizes.max_text_length}, and the text model {name} has positions for {positions} "
            "tokens: set it to that at most"
        )
    return model


def _network_of_transformers(name: str, config: "PretrainedConfig") -> Any:
    from transformers import AutoModel

    try:
        model = AutoModel.from_config(config)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers has no network for the text model {name}: {reason}") from error
    if model.main_input_name != "input_ids" or not isinstance(getattr(config, "hidden_size", None), int):
        raise UserError(f"{name} ({config.model_type}) is no text encoder, which reads token ids into hidden states")
    return model


def max_positions(model: nn.Module) -> int | None:
    """How many tokens a text may have, or None where nothing bounds it.

    RoBERTa's kin number positions from behind the padding's id on, so that those up to it are lost.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def check_vocabulary(model: nn.Module, tokenizer: Any, name: str) -> None:
    """Raise UserError where `tokenizer` makes ids that the text model `name` has no embedding for."""
    known = getattr(model.config, "vocab_size", None)
    if isinstance(known, int) and len(tokenizer) > known:
        raise UserError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, and the text model embeds {known}: they do not "
            "belong together"
        )


def check_text_model(sizes: ModelSizes, tokenizer: Any) -> None:
    """Raise UserError where the configured text model cannot be the text tower; takes no memory for its weights."""
    with ParametersOnMeta():
        model = build_text_model(sizes)
    check_vocabulary(model, tokenizer, sizes.text_model_name)
