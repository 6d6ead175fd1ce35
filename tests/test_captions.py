"""Pictures as queries, by small captioners that the tests build: BLIP and a vision encoder-decoder."""

import os
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from answers import answer, lines
from captioners import WORDS, make_blip, save_image_processor, save_words, talkative
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.formats import captions
from clamp3.formats.captions import caption_of, read_picture
from clamp3.web.collection import DEMO
from conftest import ROOT, run_forked

Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers", minversion="4.48")

TINY = ("--variant", "tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "fiddler.JPG", format="jpeg")
    return path


@pytest.fixture
def music(tmp_path) -> Path:
    """A folder with two texts and a picture, for which nothing may be downloaded."""
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "reel.txt").write_text("a lively irish reel")
    (folder / "march.txt").write_text("a slow march")
    Image.new("RGB", (8, 8), "red").save(folder / "cover.png")
    return folder


def test_a_picture_finds_what_its_caption_finds(blip, picture, music, tmp_path):
    done = run_forked(
        *("clamp3_search.py", picture, music, "--captioner", blip, "--json", tmp_path / "found.jsonl", *TINY)
    )
    caption = caption_of(picture, blip)
    assert set(caption.split()) <= {*WORDS} and f"in the words of {blip}: {caption}" in done.stdout
    assert "Traceback" not in done.stderr and "torchvision" not in done.stdout + done.stderr
    found = lines(tmp_path / "found.jsonl")
    assert [(one["query"], one["caption"]) for one in found] == [(str(picture), caption)] * 2
    assert "1 of other kinds" in done.stdout  # the cover
    run_forked("clamp3_search.py", caption, music, "--json", tmp_path / "words.jsonl", *TINY)
    assert [one["cosine"] for one in found] == pytest.approx(
        [one["cosine"] for one in lines(tmp_path / "words.jsonl")]
    )


def test_an_index_is_searched_by_a_picture_and_a_file_named_as_the_caption_is_no_query(
    blip, picture, music, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path(caption_of(picture, blip)).write_text("not this")
    assert answer(monkeypatch, clamp3_index, "build", "index", music, *TINY) == 0
    words = ("search", "index", picture, "--captioner", blip, "--json", "found.jsonl")
    assert answer(monkeypatch, clamp3_index, *words, *TINY) == 0
    found = lines(tmp_path / "found.jsonl")
    assert len(found) == 2 and {one["caption"] for one in found} == {caption_of(picture, blip) + "."}
    words = ("a reel", music, "--also", picture, "--captioner", blip, "--json", "also.jsonl")
    assert answer(monkeypatch, clamp3_search, *words, *TINY) == 0
    assert lines(tmp_path / "also.jsonl")[0]["captions"] == {str(picture): found[0]["caption"]}


def test_a_vision_encoder_decoder_captions_too(tmp_path, picture):
    save_words(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.ViTConfig(image_size=32, patch_size=16, **sizes)
    words = transformers.BertConfig(vocab_size=len(WORDS), is_decoder=True, add_cross_attention=True, **sizes)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, words)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = transformers.VisionEncoderDecoderModel(config)
    talkative(model.decoder)
    model.save_pretrained(tmp_path)
    save_image_processor(tmp_path, "ViTImageProcessor")
    assert set(caption_of(picture, tmp_path).split()) <= {*WORDS}


def test_pictures_are_read_as_they_are_meant_to_be_seen(tmp_path):
    turned = Image.new("RGB", (20, 10), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (10, 20)
    for name, color in (("clear.png", (0, 0, 0, 0)), ("clear.webp", (0, 0, 0, 0))):
        Image.new("RGBA", (4, 4), color).save(tmp_path / name)
        assert read_picture(tmp_path / name).getpixel((1, 1)) == (255, 255, 255)
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").mode == "RGB"


def test_what_docs_retrieval_says_runs(blip, picture, tmp_path, monkeypatch):
    """The commands of docs/retrieval.md as they stand, with the small model."""
    text = ROOT.joinpath("docs", "retrieval.md").read_text(encoding="utf-8")
    for folder in ("QUERY_DIR", "REF_DIR", "OTHER_QUERY_DIR", "OTHER_REF_DIR", "GENERATED_DIR", "FOLDER"):
        (tmp_path / folder).mkdir()
        for name, words in {"reel": "a lively reel", "air": "a slow air"}.items():
            (tmp_path / folder / f"{name}.txt").write_text(f"{words}\n{folder}")
    picture.rename(tmp_path / "PICTURE.jpg")
    shutil.copytree(blip, tmp_path / "BLIP")
    shutil.copy(sorted(DEMO.glob("*.mid"))[0], tmp_path / "QUERY.mid")
    monkeypatch.chdir(tmp_path)
    assert answer(monkeypatch, clamp3_index, "build", "INDEX", "FOLDER", *TINY) == 0
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 6
    for command in commands:
        _python, script, *words = shlex.split(command)
        module = import_module(f"clamp3.cli.commands.{script.removesuffix('.py').removeprefix('clamp3_')}")
        assert answer(monkeypatch, module, *words, *TINY) == 0, command
    assert {path.name for path in tmp_path.glob("*.*")} >= {"ranks.png", "scores.jsonl", "found.jsonl"}


def test_what_cannot_be_captioned_is_said_in_one_line(blip, picture, music, tmp_path, monkeypatch):
    whole = picture.read_bytes()
    for name, content in (("cut.jpg", whole[: len(whole) // 2]), ("no.png", b"MZ"), ("empty.webp", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="^cannot be read as a picture: "):
            caption_of(tmp_path / name, blip)
    monkeypatch.setattr(captions, "MOST_MEGABYTES", 0)
    with pytest.raises(ValueError, match="over 0 MB"):
        caption_of(picture, blip)
    monkeypatch.undo()
    for query, options, message in (
        ("nowhere.jpg", (), "there is no file nowhere.jpg"),
        ("a reel", ("--captioner", blip), "--captioner is for pictures"),
        (picture, ("--captioner", "./nowhere"), "neither a folder with a model nor a name on the hub"),
        (picture, ("--captioner", music), "no captioner "),
    ):
        with pytest.raises(UserError, match=message) as raised:
            answer(monkeypatch, clamp3_search, query, music, *options, *TINY)
        assert len(str(raised.value).splitlines()) == 1


def test_pictures_in_folders_are_texts_where_that_is_asked_for(blip, music, tmp_path):
    """By the commands that take raw files: the cover has the feature of its caption, and a broken one is named."""
    (music / "broken.jpg").write_bytes(b"no picture")
    caption = caption_of(music / "cover.png", blip)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "caption.txt").write_text(caption)
    pictures = ("--pictures", blip)
    done = run_forked("clamp3_embd.py", music, tmp_path / "out", "--get_global", *pictures, *TINY, check=1)
    assert f"put into words (all of them in {tmp_path / 'out'}" in done.stdout
    assert f"cover.png  a picture, in the words of {blip}: {caption}" in done.stdout
    assert "broken.jpg  cannot be read as a picture: " in done.stdout and "damaged" not in done.stdout
    run_forked("clamp3_embd.py", tmp_path / "in", tmp_path / "words", "--get_global", *TINY)
    feature = np.load(tmp_path / "out" / "cover.npy")
    np.testing.assert_allclose(feature, np.load(tmp_path / "words" / "caption.npy"), atol=1e-6)
    (music / "broken.jpg").unlink()
    index = tmp_path / "index"
    run_forked("clamp3_index.py", "build", index, music, "--passages", *pictures, *TINY)
    for command in (
        *(("clamp3_search.py", caption, music, *pictures), ("clamp3_index.py", "search", caption, index)),
        ("clamp3_index.py", "search", caption, index, "--passages"),
    ):
        run_forked(*command, "--json", tmp_path / "found.jsonl", *TINY)
        found = lines(tmp_path / "found.jsonl")
        assert Path(found[0]["file"]).name == "cover.png" and found[0]["cosine"] == pytest.approx(1, abs=2e-3)
    run_forked("clamp3_index.py", "add", index, music, *TINY)  # without it, what is there stays
    done = run_forked("clamp3_index.py", "info", index, "--list")
    assert "cover.png" in done.stdout


def test_without_pillow_or_the_hub_it_says_what_to_do(picture, music, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r'pip install "clamp3\[images\]"'):
        caption_of(picture)
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said = run_forked("clamp3_search.py", picture, music, *TINY, env=env, check=2).stderr
    assert "no captioner Salesforce/blip-image-captioning-base" in said and "--captioner FOLDER" in said
    assert "Traceback" not in said
