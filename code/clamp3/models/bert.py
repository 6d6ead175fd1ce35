"""BERT and RoBERTa, as transformers computes them and names their parameters, without the seconds of importing it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clamp3.models.dropout import Dropout
from clamp3.models.linear import Linear

ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# By the model_type of a config.json, for those whose network this is: where their defaults differ from BERT's.
DEFAULTS: dict[str, dict[str, int]] = {
    "bert": {},
    "camembert": ROBERTA,
    "roberta": {"vocab_size": 50265, **ROBERTA},
    "xlm-roberta": ROBERTA,
}
INITIAL_DEVIATION = 0.02  # of random weights


@dataclass(frozen=True)
class BertConfig:
    """What a config.json of transformers says of such a network; the defaults are BERT's."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @classmethod
    def read(cls, settings: dict[str, Any]) -> "BertConfig | None":
        """The content of a config.json; None where it describes another network, or none: that is for transformers."""
        plain = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
        family = settings.get("model_type")
        if family not in DEFAULTS or any(settings.get(name, value) != value for name, value in plain.items()):
            return None
        given = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        config = cls(**{**DEFAULTS[family], **given})
        numbers = (getattr(config, field.name) for field in fields(cls) if field.default is not None)
        if not all(isinstance(number, int | float) for number in numbers if number is not family):
            return None
        return config if config.hidden_size % config.num_attention_heads == 0 else None

    def to_dict(self) -> dict[str, Any]:
        """What a config.json holds."""
        return asdict(self)

    def to_json_string(self) -> str:
        """A config.json."""
        return f"{json.dumps(self.to_dict(), indent=2)}\n"


class Embeddings(nn.Module):
    """Words, or vectors in their place, with their positions and the one type that all have."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size, padding = config.hidden_size, config.pad_token_id
        # RoBERTa numbers positions from behind the padding's id on, and padding itself has that id as its position.
        self.first_position = 0 if config.model_type == "bert" else padding + 1
        self.padding = padding
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=padding)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, size, padding_idx=padding if self.first_position else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pack: Callable[[Tensor], Tensor] = lambda padded: padded,
    ) -> Tensor:
        """`input_ids` (batch, length) or `inputs_embeds` (batch, length, hidden) -> (batch, length, hidden).

        `pack` takes (batch, length, …) and says which positions are computed; what is returned is as it returns them.
        """
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.first_position and input_ids is not None:
            words = (input_ids != self.padding).long()
            positions = words.cumsum(1) * words + self.padding
        else:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device) + self.first_position
            positions = positions.expand(embeddings.shape[:2])
        embeddings = pack(embeddings) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(embeddings + self.position_embeddings(pack(positions))))


class SelfAttention(nn.Module):
    """The projections of multi-head self-attention; `clamp3.models.layers.encode_layer` attends."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)


class Residual(nn.Module):
    """The end of half a layer: a projection, added to what the half layer got, and normalized."""

    def __init__(self, config: BertConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """(…, in_features), (…, hidden) -> (…, hidden)."""
        return self.LayerNorm(self.dropout(self.dense(inner)) + residual)


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Residual(config, config.hidden_size)


class Intermediate(nn.Module):
    """The wide part of a layer's second half."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, hidden) -> (…, intermediate_size)."""
        if isinstance(self.dense, Linear):
            return self.dense.gelu(hidden_states)
        return F.gelu(self.dense(hidden_states))


class Layer(nn.Module):
    """A layer of the encoder, run by `clamp3.models.layers.encode_layer`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config, config.intermediate_size)


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """Parameters that checkpoints hold and nothing uses."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class Bert(nn.Module):
    """The network, with random weights; `clamp3.models.layers.encode` runs it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)
        self.apply(_initialize)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embeddings.LayerNorm.weight.device


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
