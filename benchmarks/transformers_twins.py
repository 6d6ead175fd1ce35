"""Our networks in transformers' own classes, as judges of what they compute."""

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    CamembertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from clamp3.models.bert import Bert
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.gpt2 import Gpt2

CONFIGS = {
    "bert": BertConfig,
    "camembert": CamembertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": XLMRobertaConfig,
}


def twin(network: nn.Module) -> Any:
    """A network of transformers with the same weights, in the same mode; one that is not ours is its own."""
    if isinstance(network, Bert):
        settings = network.config.to_dict()
        made = AutoModel.from_config(CONFIGS[settings.pop("model_type")](**settings))
    elif isinstance(network, Gpt2):
        parts = network.transformer
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=parts.wte.num_embeddings,
                n_positions=parts.wpe.num_embeddings,
                n_embd=parts.wte.embedding_dim,
                n_layer=len(parts.h),
                n_head=parts.h[0].attn.num_heads,
            )
        )
    else:
        return network
    made.load_state_dict({**made.state_dict(), **network.state_dict()})  # ours may have lost its pooler
    return made.train(network.training)


def with_twins(model: CLaMP3Model) -> CLaMP3Model:
    """`model` itself, whose towers are now transformers' own."""
    model.text_model, model.audio_model = twin(model.text_model), twin(model.audio_model)
    model.symbolic_model.base = twin(model.symbolic_model.base)
    return model
