"""Small image-to-text models of random weights, in folders as transformers saves them."""

import json
from pathlib import Path

import torch
import transformers

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a lively irish reel on the fiddle slow air harp old song piano".split()


def make_blip(folder: Path) -> Path:
    """A BLIP, which says words about music."""
    folder.mkdir(exist_ok=True)
    save_words(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 64, **special, **sizes}
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=32)
    model = transformers.BlipForConditionalGeneration(config)
    talkative(model.text_decoder)
    model.save_pretrained(folder)
    save_image_processor(folder, "BlipImageProcessor")
    return folder


def talkative(decoder: torch.nn.Module) -> None:
    """Have a decoder of random weights say words, more often than it ends."""
    with torch.no_grad():
        decoder.cls.predictions.bias.copy_(torch.linspace(-4, 0, len(WORDS)))


def save_words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def save_image_processor(folder: Path, kind: str) -> None:
    settings = {"image_processor_type": kind, "do_resize": True, "do_normalize": True, "do_rescale": True}
    settings |= {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "rescale_factor": 1 / 255}))
