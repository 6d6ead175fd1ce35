"""The main job on real music: folk tunes, chorales and descriptions in, features and nearest neighbours out.

    make demo
    python examples/demo.py --output DIR --tunes 40 --scores 5
It runs the documented commands, with a small model of random weights that it makes itself, and shows what they write.
It takes a minute on two CPU cores and needs no network. A folder that an earlier run made is emptied first.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from corpus import COLLECTIONS, Tune, describe, folk_tunes, scores, write

CODE = Path(__file__).resolve().parents[1] / "code"
MARK = ".made_by_demo"  # a folder without it is not ours to empty
SMALL = {
    "PATCH_NUM_LAYERS": 3,
    "TOKEN_NUM_LAYERS": 1,
    "M3_HIDDEN_SIZE": 128,
    "AUDIO_HIDDEN_SIZE": 128,
    "AUDIO_NUM_LAYERS": 1,
    "CLAMP3_HIDDEN_SIZE": 128,
}
TEXT_LAYERS = 3
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's, with its ids 0 to 3
NEIGHBOURS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all of it (default: demo)")
    parser.add_argument("--tunes", type=int, default=320, help="folk tunes (default: 320)")
    parser.add_argument("--scores", type=int, default=60, help="scores, as MIDI (default: 60)")
    args = parser.parse_args()
    if args.tunes < len(COLLECTIONS) or args.scores < 1:
        parser.error(f"it takes {len(COLLECTIONS)} tunes and a score at least")
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # in one order with the commands' output
    start = time.perf_counter()
    output = clean(args.output)
    tunes = chosen(args.tunes)

    heading("1. Real music as model inputs")
    write(output / "inputs", tunes, scores(args.scores))
    show_inputs(output / "inputs", tunes[0])

    heading("2. A small model")
    config = make_model(output / "model", [describe(tune) for tune in tunes])
    print(
        "Its weights are RANDOM, for no trained weights come with the code: what follows shows that everything runs,"
    )
    print("and how fast. Neighbours share their surface (metre, key, note lengths), and texts find no music.")
    print("Trained weights have the same form: set CLAMP3_CONFIG or edit code/config.py, and the commands stay.")

    heading("3. The documented commands")
    print(f"$ export PATH={shown(Path(sys.executable).parent)}:$PATH CLAMP3_CONFIG={shown(config)}")
    print("(The note of default values is accelerate's own: `accelerate config` ends it.)")
    inputs, mtf = output / "inputs", output / "inputs" / "mtf"
    launch(config, "extract_clamp3.py", inputs, output / "features", "--get_global")
    launch(config, "extract_clamp3.py", mtf, output / "hidden")
    launch(config, "extract_m3.py", mtf, output / "m3")

    heading("4. What they wrote")
    for folder in ("features/abc", "features/mtf", "features/txt", "hidden", "m3"):
        show_arrays(output / folder)

    heading("5. Nearest neighbours")
    show_neighbours(output / "features" / "abc", tunes)

    heading(f"Done in {time.perf_counter() - start:.0f} s. What to do next")
    print(f"- Look around in {shown(output)}: inputs, model, features, hidden (CLaMP 3, per bar), m3 (M3, per bar).")
    print("- Put .abc, .mtf, .txt or .npy files of your own into a folder, and run a command of step 3 on it.")
    print("- Take the released weights: without CLAMP3_CONFIG the same commands download and use them.")
    return 0


def heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def shown(path: Path) -> str:
    """`path` as one would type it here."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def clean(folder: Path) -> Path:
    """`folder`, empty but for its mark. Exits where it holds files that are not the demo's."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / MARK).exists()):
        sys.exit(f"error: {folder} is there and was not made by the demo: name another folder with --output")
    if folder.exists():
        print(f"emptying {shown(folder)}, which an earlier run made")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def chosen(count: int) -> list[Tune]:
    """`count` of all folk tunes, from each collection alike and evenly across it."""
    tunes: list[Tune] = []
    everything = list(folk_tunes())
    for left, collection in zip(range(len(COLLECTIONS), 0, -1), COLLECTIONS, strict=True):
        group = [tune for tune in everything if tune.collection == collection.title]
        share = min((count - len(tunes)) // left, len(group))
        tunes += [group[index * len(group) // share] for index in range(share)]
    return tunes


def show_inputs(folder: Path, tune: Tune) -> None:
    """How many files of each kind, and one as an example."""
    contents = {"abc": "folk tunes, interleaved ABC", "mtf": "scores by Bach, MIDI as text", "txt": "descriptions"}
    for kind, content in contents.items():
        sizes = [path.stat().st_size for path in folder.joinpath(kind).iterdir()]
        print(f"{len(sizes):5} .{kind}  {sum(sizes) / 1000:6.0f} kB  {content}, in {shown(folder / kind)}")
    print(f"\nFor example {tune.name}.abc:")
    lines = tune.abc.splitlines()
    print("".join(f"    {line}\n" for line in (*lines[:9], "…")), end="")
    print(f"and {tune.name}.txt:")
    print("".join(f"    {line}\n" for line in describe(tune).splitlines()), end="")


def make_model(folder: Path, texts: list[str]) -> Path:
    """Small CLaMP 3 and M3 weights and a text model in `folder`; returns the knobs that go with them, a JSON file."""
    import torch

    from clamp3.models import CLaMP3Model, M3Model, ModelSizes

    make_text_model(folder / "text", texts)
    small = {name.lower(): size for name, size in SMALL.items()}
    sizes = ModelSizes(**small, text_model_name=str(folder.absolute() / "text"))
    torch.manual_seed(0)
    m3, clamp3 = M3Model(sizes), CLaMP3Model(sizes)
    clamp3.symbolic_model.load_state_dict(m3.encoder.state_dict())  # as training starts it
    knobs = {name.upper(): value for name, value in asdict(sizes).items()}
    for knob, model in (("M3_WEIGHTS_PATH", m3), ("CLAMP3_WEIGHTS_PATH", clamp3)):
        path = folder.absolute() / f"weights_{knob.split('_')[0].lower()}_random.pth"
        torch.save({"model": model.state_dict(), "epoch": 0, "best_epoch": 0, "min_eval_loss": 100.0}, path)
        knobs[knob] = str(path)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{parameters / 1e6:4.1f} million parameters in {shown(path)}")
    config = folder / "config.json"
    config.write_text(json.dumps(knobs, indent=4) + "\n", encoding="utf-8")
    return config


def make_text_model(folder: Path, texts: list[str]) -> None:
    """In `folder`, a tokenizer of XLM-R's kind with the vocabulary of `texts`, and a small XLM-R's configuration."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

    bos, pad, eos, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=SPECIAL_TOKENS, unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (bos, eos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        cls_token=bos,
        eos_token=eos,
        sep_token=eos,
        pad_token=pad,
        unk_token=unknown,
    )
    fast.save_pretrained(folder)
    width = SMALL["M3_HIDDEN_SIZE"]
    XLMRobertaConfig(
        vocab_size=len(fast),
        hidden_size=width,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
    ).save_pretrained(folder)


def launch(config: Path, script: str, inputs: Path, outputs: Path, *options: str) -> None:
    """Run an extraction command as a user would, and say how fast it was. Exits where it fails."""
    command = ["accelerate", "launch", shown(CODE / script), shown(inputs), shown(outputs), *options]
    print(f"\n$ {shlex.join(command)}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    start = time.perf_counter()
    code = subprocess.run(command, env={**os.environ, "PATH": path, "CLAMP3_CONFIG": shown(config)}).returncode
    seconds = time.perf_counter() - start
    if code != 0:
        sys.exit(f"error: the command ended with exit code {code}")
    count = sum(1 for _ in outputs.rglob("*.npy"))
    print(f"{count / seconds:.1f} files/s with everything: {count} files in {seconds:.1f} s, start of Python included")


def show_arrays(folder: Path) -> None:
    """What the arrays in `folder` are. Exits where one holds numbers that are none."""
    arrays = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    if not arrays or not all(np.isfinite(array).all() for array in arrays):
        sys.exit(f"error: {folder} holds no features, or features that are not finite")
    shapes = sorted({array.shape for array in arrays})
    dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
    extent = f"{shapes[0]}" if len(shapes) == 1 else f"{shapes[0]} to {shapes[-1]}"
    print(f"{len(arrays):5} .npy  {dtypes}  {extent:31} in {shown(folder)}")


def show_neighbours(folder: Path, tunes: list[Tune]) -> None:
    """For the first tune of each collection, those whose features are most like its own."""
    features = np.concatenate([np.load(folder / f"{tune.name}.npy") for tune in tunes])  # (tunes, hidden)
    features -= features.mean(axis=0)  # random towers give all inputs much in common
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)  # no tune is its own neighbour
    print("by the cosine of the .abc features, their mean subtracted (random weights: see step 2)")
    first = {tune.collection: index for index, tune in reversed(list(enumerate(tunes)))}
    for query in sorted(first.values()):
        print(f"\n         {in_a_line(tunes[query])}")
        for index in np.argsort(-cosines[query])[:NEIGHBOURS]:
            print(f"  {cosines[query, index]:.3f}  {in_a_line(tunes[index])}")

    metres = np.array([tune.metre for tune in tunes])
    shared = metres[cosines.argmax(axis=1)] == metres
    chance = (metres[:, None] == metres)[~np.eye(len(tunes), dtype=bool)]
    print(f"\n{shared.mean():.0%} of the tunes have the metre of their nearest neighbour; ", end="")
    print(f"of any two tunes, {chance.mean():.0%} have the same.")


def in_a_line(tune: Tune) -> str:
    return f"{tune.title:36.36}  {tune.rhythm:14.14}  {tune.key:12}  {tune.metre:4}  {tune.collection}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
