"""XLM-R's tokenizer, which comes with the library, against recorded ids; and which tokenizer is taken."""

import json
import lzma
import shutil

import pytest
import tokenizers

from clamp3.errors import UserError
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.tokenizer import (
    SHIPPED,
    Tokenizer,
    _from_transformers,
    load_tokenizer,
    read_serialized,
    serialized,
    shipped_tokenizer,
    unknown_letters,
)
from clamp3.models.releases import TINY
from clamp3.sizes import XLM_R_BASE, ModelSizes
from conftest import BIN, ROOT, run, save_tokenizer
from golden_model import golden_json

RECORDED = golden_json("xlmr/tokens.json")


@pytest.fixture(scope="module")
def encoder() -> InputEncoder:
    return InputEncoder(ModelSizes())


@pytest.mark.golden
@pytest.mark.parametrize("name", RECORDED["texts"])
def test_ids_are_xlm_rs_in_all_languages(encoder, name):
    entry = RECORDED["texts"][name]
    assert encoder.tokenizer(entry["text"])["input_ids"] == entry["ids"]


@pytest.mark.golden
def test_lines_are_joined_and_published_ids_are_met(encoder):
    two_lines = RECORDED["two_lines"]
    assert encoder.encode_text(two_lines["text"]).tolist() == two_lines["ids"]
    for entry in RECORDED["published"]:
        assert encoder.tokenizer(entry["text"])["input_ids"] == entry["ids"]


@pytest.mark.golden
def test_special_tokens_are_those_that_the_text_tower_was_trained_with(encoder):
    tokenizer = encoder.tokenizer
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert tokenizer.mask_token_id == 250_001 and len(tokenizer) == 250_002


def test_small_models_ids_are_those_of_transformers(tmp_path):
    """With and without special tokens, for texts that hold these, spaces, line ends and characters of two units."""
    other_tokenizer(tmp_path)
    texts = [entry["text"] for entry in RECORDED["texts"].values()]
    texts += ["", " ", "<s>a</s></s>b <pad><unk> <mask>", "  two  spaces\n\ttabs ", "\ufeff𝄞 e\u0301 ﬁn"]
    for folder in (TINY / "text", tmp_path):
        ours, theirs = load_tokenizer(str(folder)), _from_transformers(str(folder))
        assert isinstance(ours, Tokenizer) and len(ours) == len(theirs)
        for text in texts:
            for special in (True, False):
                ids = theirs(text, add_special_tokens=special, return_offsets_mapping=True)
                found = ours(text, add_special_tokens=special)
                assert found["input_ids"] == ids["input_ids"] and found["offset_mapping"] == ids["offset_mapping"]
            assert ours.decode(found["input_ids"]) == theirs.decode(found["input_ids"])
        for name in ("bos", "cls", "eos", "sep", "pad", "unk", "mask"):
            assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
            assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


def plain_folder(folder, **flags):
    """A tokenizer.json in lower case, whose special tokens have `flags`, and settings without them all."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<unk>", "<pad>", "a", "music", *"s<>/"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens([tokenizers.AddedToken(token, **flags) for token in ("<s>", "</s>")])
    inner.save(str(folder / "tokenizer.json"))
    special = {
        "sep_token": "</s>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("flags", [{"normalized": True}, {"single_word": True}, {"lstrip": True, "rstrip": True}])
def test_special_tokens_keep_the_flags_of_tokenizer_json(tmp_path, flags):
    plain_folder(tmp_path, **flags)
    ours, theirs = load_tokenizer(str(tmp_path)), _from_transformers(str(tmp_path))
    again, special = serialized(theirs)
    (tmp_path / "again.json").write_text(again)
    assert isinstance(ours, Tokenizer)
    for one in (ours, read_serialized(tmp_path / "again.json", special)):
        for text in ("a<S>music", "a <s> music", "a </s>a"):
            assert one(text)["input_ids"] == theirs(text)["input_ids"]


def test_files_of_older_transformers_are_not_passed_over(tmp_path):
    plain_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"music a": 10}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"sep_token": "<s>"}))
    ours, theirs = load_tokenizer(str(tmp_path)), _from_transformers(str(tmp_path))
    assert ours("music a")["input_ids"] == theirs("music a")["input_ids"] and ours.sep_token == theirs.sep_token


def test_scripts_that_a_model_does_not_know_are_said(encoder):
    """The small model knows five languages, XLM-R all; what is written with known letters gets no remark."""
    small = load_tokenizer(str(TINY / "text"))
    texts = {name: entry["text"] for name, entry in RECORDED["texts"].items()}
    unknown = {name for name, text in texts.items() if unknown_letters(small, text)}
    others = "bg ru uk sr el ar fa he ur hi bn ta te th ja ko ka hy am zh zh-Hant"  # Chinese that no folk song has
    assert unknown == set(others.split())
    assert not any(unknown_letters(encoder.tokenizer, text) for text in texts.values())
    assert not unknown_letters(small, "中国民歌, Chinese folk song für Kinder, canción")


def test_no_network_is_needed():
    script = (
        "import socket; socket.socket.connect = lambda *_: exit('the network was asked')\n"
        "from clamp3.inputs.encoder import InputEncoder\nfrom clamp3.sizes import ModelSizes\n"
        "print(len(InputEncoder(ModelSizes()).encode_text('a reel')))"
    )
    assert run(BIN / "python", "-c", script, env={"PYTHONPATH": str(ROOT / "code")}).stdout == "4\n"


def other_tokenizer(folder) -> int:
    """Saves one with 300 tokens to `folder`; returns the length of "a reel" in it."""
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, vocab_size=300)
    return len(load_tokenizer(str(folder))("a reel")["input_ids"])


@pytest.mark.parametrize("is_alone", [False, True])
def test_one_beside_the_weights_takes_precedence_over_the_shipped(tmp_path, is_alone):
    length = other_tokenizer(tmp_path)
    if is_alone:
        for path in tmp_path.glob("*"):
            if path.name != "tokenizer.json":
                path.unlink()
    tokenizer = load_tokenizer(XLM_R_BASE, weights_folder=tmp_path)
    assert len(tokenizer) == 300 and len(tokenizer("a reel")["input_ids"]) == length
    assert (tokenizer.sep_token, tokenizer.pad_token) == ("</s>", "<pad>")


def test_a_configured_folder_takes_precedence_over_one_beside_the_weights(tmp_path):
    other_tokenizer(tmp_path / "configured")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tokenizer.json").write_bytes(lzma.decompress(SHIPPED.read_bytes()))
    assert len(load_tokenizer(str(tmp_path / "configured"), tmp_path / "weights")) == 300


@pytest.mark.parametrize("missing", ["sep_token", "pad_token"])
def test_a_tokenizer_without_a_token_that_texts_take_is_refused(tmp_path, missing):
    other_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != missing}))
    special = tmp_path / "special_tokens_map.json"
    if special.exists():
        special.write_text(json.dumps({n: v for n, v in json.loads(special.read_text()).items() if n != missing}))
    with pytest.raises(UserError, match=f"has no {missing}, which"):
        load_tokenizer(str(tmp_path))


@pytest.mark.golden  # the oldest transformers too
@pytest.mark.parametrize("tokenizer_class", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_one_saved_by_any_transformers_is_read(tmp_path, tokenizer_class):
    length = other_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer("a reel")["input_ids"]) == length and tokenizer.sep_token == "</s>"


@pytest.mark.golden  # the oldest transformers too
def test_the_small_models_ids_are_the_same_in_all_versions():
    tokenizer = load_tokenizer(str(TINY / "text"))
    ids = [tokenizer(text)["input_ids"] for text in ("Irish jig in D major", "中国民歌")]
    assert ids == [[0, 602, 532, 284, 307, 513, 2], [0, 2294, 2]]


def test_it_and_the_small_model_are_in_the_wheel(tmp_path):
    assert SHIPPED.stat().st_size < 2.5e6 and len(shipped_tokenizer()) == 250_002
    source = tmp_path / "source"
    shutil.copytree(ROOT / "code" / "clamp3", source / "code" / "clamp3", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    script = (
        "import sys; from setuptools.build_meta import build_wheel; from zipfile import ZipFile\n"
        f"name = build_wheel({str(tmp_path)!r})\nprint(*ZipFile({str(tmp_path)!r} + '/' + name).namelist())"
    )
    names = run(BIN / "python", "-c", script, cwd=source).stdout.split()
    folder = "clamp3/inputs/xlm_roberta"
    small = {f"clamp3/{path.relative_to(TINY.parent)}" for path in TINY.rglob("*") if path.is_file()}
    assert small | {f"{folder}/tokenizer.json.xz", f"{folder}/LICENSE", "clamp3/py.typed"} <= set(names)
