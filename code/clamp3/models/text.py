from transformers import AutoConfig, XLMRobertaConfig

from clamp3.errors import UserError
from clamp3.sizes import XLM_R_BASE


def text_config(name: str):
    """The configuration of the text model `name`. XLM-R base's is known here, so that it needs no network.

    Raises UserError where there is none.
    """
    if name == XLM_R_BASE:
        return XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"no configuration of the text model {name}: {str(error).strip().splitlines()[0]}") from error
