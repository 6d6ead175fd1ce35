"""A folder of files of all kinds, hostile ones too, that the tests of the web server search."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clamp3.web.collection import DEMO

HOSTILE = "<img src=x onerror=document.title='owned'>.abc"
SECRET = "the secret of the house"


def make_folder(folder: Path) -> Path:
    """Returns the folder of music, beside which lies a secret."""
    music = folder / "music"
    music.joinpath("deep").mkdir(parents=True)
    chosen = {".abc": 6, ".musicxml": 2, ".mid": 2, ".mp3": 1, ".txt": 2}
    for extension, count in chosen.items():
        for path in sorted(DEMO.glob(f"*{extension}"))[:count]:
            shutil.copy(path, music)
    first, second = sorted(music.glob("*.abc"))[:2]
    shutil.copy(second, music / HOSTILE)
    second.unlink()
    seconds = np.arange(3 * 16_000) / 16_000
    soundfile.write(music / "deep" / "tone.aiff", 0.3 * np.sin(2 * np.pi * 440 * seconds), 16_000)
    (music / "broken.mid").write_bytes(b"MThd and nothing")
    (folder / "secret.txt").write_text(SECRET)
    (music / "link_out.txt").symlink_to(folder / "secret.txt")
    (music / "link_in.abc").symlink_to(first)
    return music


def make_captioner(folder: Path) -> Path:
    """A folder with a BLIP of random weights, which says words about music."""
    transformers = pytest.importorskip("transformers", minversion="4.48")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a lively irish reel on the fiddle slow air harp old song piano".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(words), "encoder_hidden_size": 32, "max_position_embeddings": 64, **special, **sizes}
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=32)
    model = transformers.BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias.copy_(torch.linspace(-4, 0, len(words)))
    model.save_pretrained(folder)
    settings = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
