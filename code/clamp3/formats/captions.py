"""Pictures: a network of transformers says in words what one shows, which then is a text like any other."""

import os
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamp3.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}  # as Pillow calls them
CAPTIONER = "Salesforce/blip-image-captioning-base"  # on the hub, 990 MB
MOST_TOKENS = 40  # of a caption
MOST_MEGABYTES = 100  # of a file


def is_picture(path: Path) -> bool:
    """Whether the extension is that of a picture, in any letter case."""
    return path.suffix.lower() in PICTURES


def caption_of(path: Path, captioner: str | Path = CAPTIONER) -> str:
    """What a picture shows, in the words of `captioner`: an image-to-text model of transformers, on a CPU.

    `captioner` is a folder or a name on the hub, from which it is downloaded unless it is in the hub's cache. Raises
    ValueError and OSError where the picture cannot be read or has no caption, UserError where the model cannot be read
    or Pillow is missing.
    """
    picture = read_picture(path)
    images, words, model = load_captioner(captioner)
    import torch

    try:
        with torch.inference_mode():
            pixels = images(images=picture, return_tensors="pt")["pixel_values"]
            tokens = model.generate(pixel_values=pixels, max_new_tokens=MOST_TOKENS, do_sample=False)
        caption = " ".join(words.decode(tokens[0], skip_special_tokens=True).split())
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"{captioner} gives it no caption ({type(error).__name__}: {_first_line(error)})") from None
    if not any(map(str.isalnum, caption)):
        raise ValueError(f"{captioner} has no words for it")
    return caption


def read_picture(path: Path) -> "Image":
    """The picture as it is meant to be seen: upright, without transparency, RGB. Raises as `caption_of`."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError('pictures need Pillow, which is not installed: pip install "clamp3[images]"') from None
    try:
        if path.stat().st_size > MOST_MEGABYTES * 10**6:
            raise ValueError(f"over {MOST_MEGABYTES} MB")
        with closing(Image.open(path, formats=sorted(set(PICTURES.values())))) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture: {_first_line(error).replace(str(path), path.name)}") from None
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


@lru_cache(maxsize=1)
def load_captioner(captioner: str | Path) -> tuple[Any, Any, Any]:
    """The image processor, the tokenizer and the network of a captioner. Raises UserError where it cannot be had."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    name = str(captioner)
    is_local = os.path.isdir(name)
    if not is_local and (os.path.exists(name) or name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"--captioner: {name} is neither a folder with a model nor a name on the hub, OWNER/NAME")
    parts = AutoImageProcessor, AutoTokenizer, AutoModelForImageTextToText
    for local_only in (True,) if is_local else (True, False):  # what is there needs no network
        try:
            images, words, model = (
                part.from_pretrained(name, local_files_only=local_only, trust_remote_code=False) for part in parts
            )
            return images, words, model.eval()
        except Exception as error:  # of many kinds, none the user's to read as a traceback
            problem = error
    where = "" if is_local else "\n  or:   --captioner FOLDER, with a model that transformers has saved"
    raise UserError(f"no captioner {name}: {type(problem).__name__}: {_first_line(problem)}{where}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
