"""What benchmarks/extraction.py works on: a model like the released one, and real tunes, texts and audio features."""

import json
import os
import shutil
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from clamp3.inputs.patchilizer import M3Patchilizer
from clamp3.models.bert import ROBERTA, BertConfig
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.releases import RELEASES
from clamp3.models.text import text_config
from clamp3.sizes import ModelSizes

ROOT = Path(__file__).resolve().parents[1]
RELEASED_BYTES = 2_571_027_658  # of which the weights are 1.83e9, the rest is optimizer state
WEIGHTS_STD = 0.02  # as BERT's are initialised
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's, with its ids
TEXT_VOCABULARY = 8000  # at which the texts have some 24 tokens, a share of 128 that the target assumes
AUDIO_FRAMES = (4, 60)
AUDIO_SEED = 3  # lengths whose padding to 128 is fourfold, as the target assumes
SMALL = {
    "patch_length": 64,
    "patch_num_layers": 1,
    "token_num_layers": 1,
    "m3_hidden_size": 64,
    "audio_hidden_size": 64,
    "audio_num_layers": 1,
    "clamp3_hidden_size": 64,
}


@dataclass(frozen=True)
class Kind:
    """A kind of input file, the tower that reads it, and what its length counts."""

    name: str
    modality: str
    unit: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("abc", "symbolic", "patches"),
        Kind("text", "text", "tokens"),
        Kind("audio", "audio", "frames"),
        Kind("long_abc", "symbolic", "patches"),
        Kind("long_text", "text", "tokens"),
        Kind("long_audio", "audio", "frames"),
    )
}


@dataclass(frozen=True)
class Workload:
    """A folder with weights, a text model and, in inputs/KIND, files."""

    folder: Path
    sizes: ModelSizes
    weights: Path
    small: bool
    items: int  # files of each kind

    def inputs(self, kind: str) -> Path:
        return self.folder / "inputs" / kind

    def environment(self, kind: str) -> dict[str, str]:
        """What the commands run in, beside the working directory `folder`.

        The full-size model is found there under its released name with no setting at all; only the text model, which
        stands for the real one, has to be named.
        """
        knobs = {"CLAMP3_WEIGHTS_PATH": str(self.weights), "TEXT_MODEL_NAME": self.sizes.text_model_name}
        if self.small:
            knobs |= {name.upper(): value for name, value in asdict(self.sizes).items()}
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        env.pop("CLAMP3_CONFIG", None)
        return {**env, "CLAMP3_CONFIG": json.dumps(knobs)} if self.small or kind == "text" else env


def prepare(folder: Path, small: bool) -> Workload:
    """A workload in `folder`; weights that an earlier run wrote there are taken as they are."""
    folder = folder.absolute() / ("quick" if small else "full")
    text_folder = folder / "text_model"
    sizes = ModelSizes(**(SMALL if small else {}), text_model_name=str(text_folder))
    workload = Workload(folder, sizes, folder / RELEASES["saas"].file_name, small, items=8 if small else 64)
    tunes, texts = music(workload.items)
    save_text_model(text_folder, texts, small)
    if not workload.weights.is_file():
        save_weights(workload.weights, weight_shapes(sizes, small), 0 if small else RELEASED_BYTES)

    shutil.rmtree(folder / "inputs", ignore_errors=True)
    for kind in KINDS:
        workload.inputs(kind).mkdir(parents=True)
    for name, abc, text in tunes:
        workload.inputs("abc").joinpath(f"{name}.abc").write_text(abc, encoding="utf-8")
        workload.inputs("text").joinpath(f"{name}.txt").write_text(text, encoding="utf-8")
    write_full_length(workload, tunes, texts)
    rng = np.random.default_rng(AUDIO_SEED)
    for index, frames in enumerate(rng.integers(*AUDIO_FRAMES, workload.items, endpoint=True)):
        features = rng.standard_normal((1, frames, sizes.audio_hidden_size), dtype=np.float32)
        np.save(workload.inputs("audio") / f"{index:02}.npy", features)
    return workload


def write_full_length(workload: Workload, tunes: list[tuple[str, str, str]], texts: list[str]) -> None:
    """An eighth of the files, each about as long as its tower takes, so that there is little to gain from padding."""
    sizes, rng = workload.sizes, np.random.default_rng(AUDIO_SEED)
    bars = [line for _, abc, _ in tunes for line in abc.splitlines() if line.startswith("[V:1]")]
    patchilizer = M3Patchilizer(sizes.patch_size)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(sizes.text_model_name)
    bars = [bar for bar in bars if len(patchilizer.encode(f"{bar}\n", add_special_patches=True)) == 3]  # one patch
    for number in range(workload.items // 8):
        piece = "\n".join(["X:1", *(bars[(number * 97 + bar) % len(bars)] for bar in range(sizes.patch_length - 5))])
        workload.inputs("long_abc").joinpath(f"{number}.abc").write_text(piece + "\n", encoding="utf-8")
        words: list[str] = []  # as many as fit
        for word in " ".join(texts[number * 5 : number * 5 + 50]).split():
            if len(tokenizer(" ".join([*words, word]))["input_ids"]) > sizes.max_text_length:
                break
            words.append(word)
        workload.inputs("long_text").joinpath(f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
        frames = rng.standard_normal((1, sizes.max_audio_length - 2, sizes.audio_hidden_size), dtype=np.float32)
        np.save(workload.inputs("long_audio") / f"{number}.npy", frames)


def music(count: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(name, ABC, description) of `count` folk tunes, spread over all collections; and all tunes' descriptions."""
    sys.path.append(str(ROOT / "examples"))
    from corpus import COLLECTIONS, describe, folk_tunes

    everything = list(folk_tunes())
    share = count // len(COLLECTIONS)
    tunes = []
    for collection in COLLECTIONS:
        group = [tune for tune in everything if tune.collection == collection.title]
        tunes += [group[index * len(group) // share] for index in range(share)]
    return [(tune.name, tune.abc, describe(tune)) for tune in tunes], [describe(tune) for tune in everything]


def save_text_model(folder: Path, texts: list[str], small: bool) -> None:
    """A tokenizer of `texts` and XLM-R base's configuration (or a small one): the real tokenizer needs a network."""
    bos, pad, eos, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.BpeTrainer(vocab_size=TEXT_VOCABULARY, special_tokens=SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{bos} $A {eos}", special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (bos, eos)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        cls_token=bos,
        eos_token=eos,
        sep_token=eos,
        pad_token=pad,
        unk_token=unknown,
    ).save_pretrained(folder)
    config = text_config(ModelSizes.text_model_name)
    if small:
        config = BertConfig(
            "xlm-roberta",
            vocab_size=TEXT_VOCABULARY,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=256,
            max_position_embeddings=514,
            type_vocab_size=1,
            **ROBERTA,
        )
    (folder / "config.json").write_text(config.to_json_string())


def weight_shapes(sizes: ModelSizes, small: bool) -> dict[str, list[int]]:
    """The tensors of the released file, or of a model of `sizes`."""
    if not small:
        return json.loads((ROOT / "tests/golden/released_clamp3_state_dict.json").read_text(encoding="utf-8"))
    with init_empty_weights():
        return {name: list(tensor.shape) for name, tensor in CLaMP3Model(sizes).state_dict().items()}


def save_weights(path: Path, shapes: dict[str, list[int]], total_bytes: int) -> None:
    """A checkpoint laid out as the original's, with weights by formula and optimizer state up to `total_bytes`."""
    print(f"writing {path}", file=sys.stderr)
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(WEIGHTS_STD)
        weights[name] = torch.from_numpy(values + 1 if name.endswith("LayerNorm.weight") else values)
    spent = sum(4 * tensor.numel() for tensor in weights.values())
    optimizer = {"state": {0: {"exp_avg": torch.zeros(max(0, total_bytes - spent) // 4)}}, "param_groups": []}
    checkpoint = {
        "model": weights,
        "optimizer": optimizer,
        "lr_sched": {},
        "epoch": 1,
        "best_epoch": 1,
        "min_eval_loss": 0.5,
        "modality": "symbolic",
    }
    partial = path.with_suffix(".partial")
    torch.save(checkpoint, partial)
    partial.replace(path)
