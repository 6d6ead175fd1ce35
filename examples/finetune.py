"""Fine-tune the small model on music that it has not seen, Bach's chorales, and show what that is worth.

    make finetune-demo
    python examples/finetune.py --work finetune-demo
It runs the commands of docs/finetune.md twice, with all weights and with adapters (LoRA), and prints how well texts
find chorales that no training has seen, before and after, with a bootstrap interval. It takes some four minutes on two
CPU cores, without a network. A run that is stopped is taken up by the same command.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clamp3.features.embedder import Embedder
from clamp3.formats.abc import interleave
from clamp3.formats.musicxml import musicxml_to_abc
from clamp3.models.releases import tiny_sizes
from clamp3.search.ranking import ranks_of_pairs
from clamp3.training.making import groups_of, hold_out, read_items
from corpus import corpus_folder, read_key

CODE = Path(__file__).resolve().parents[1] / "code"
SEED = 42
TEST_SHARE, EVAL_SHARE = 0.25, 0.2  # of all chorales, and of those that are left
RESAMPLES = 10_000
KNOBS = {
    "CLAMP3_INIT_WEIGHTS": "tiny",
    "CLAMP3_NUM_EPOCH": 10,
    "CLAMP3_BATCH_SIZE": 32,
    "RATE_DECAY": "cosine",
    "EARLY_STOPPING": 5,
    "SAVE_EVERY": 0,
    "SAVE_STEPS": 0,
    "TRAIN_WORKERS": 0,
    "CLAMP3_WANDB_LOG": False,
}
RUNS: dict[str, dict[str, object]] = {
    "all weights": {"CLAMP3_LEARNING_RATE": 6e-4},
    "LoRA": {"CLAMP3_LEARNING_RATE": 4e-3, "LORA_RANK": 8},
}
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def chorales() -> Iterator[tuple[str, str, str, str]]:
    """Name, interleaved ABC, title and description of Bach's chorales in music21's corpus that its own list names."""
    from music21.corpus.chorales import ChoraleListRKBWV

    titles = {bwv: entry["title"].replace("’", "'") for bwv, entry in ChoraleListRKBWV().byBWV.items()}
    for path in sorted(corpus_folder().joinpath("bach").glob("*.mxl")):
        if title := titles.get(path.stem.removeprefix("bwv")):
            abc = interleave(musicxml_to_abc(path, lambda _remark: None))
            yield path.stem, abc, title, describe(abc, title)


def describe(abc: str, title: str) -> str:
    """What a catalogue would say of a chorale, from its title and its notation."""
    fields = dict(re.findall(r"^([MK]):(\S+)", abc, re.MULTILINE))
    bars = [line for line in abc.split("\n") if line.startswith("[V:1]")]
    voices = len(re.findall(r"^V:", abc, re.MULTILINE))
    phrases = sum(bar.partition("[V:2]")[0].count("!fermata!") for bar in bars)
    parts = [f"{title}. Chorale in {fields['M']} in {read_key(fields['K'], False)}", f"{number(voices)} voices"]
    parts += [f"{number(phrases)} phrases"] * (phrases > 1) + [f"{len(bars)} bars"]
    return ", ".join(parts) + ". Johann Sebastian Bach."


def number(count: int) -> str:
    return WORDS[count] if count < len(WORDS) else str(count)


def write(folder: Path) -> None:
    """The chorales in `folder`/music, and texts.csv, in which some are kept for the test.

    Settings of one title, and those with much the same melody, are all for the test or all not.
    """
    music, table = folder / "music", folder / "texts.csv"
    music.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, abc, title, text in chorales():
        music.joinpath(f"{name}.abc").write_text(abc, encoding="utf-8")
        rows.append({"file": name, "text": text, "group": title, "split": ""})
    write_table(table, rows)
    items = read_items(music, table).items
    hold_out(items, groups_of(items), TEST_SHARE, SEED)
    for row, item in zip(rows, items, strict=True):
        row["split"] = "test" if item.split == "eval" else ""
    write_table(table, rows)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


# ---------- training ----------


def run(command: list[str], shown: str, **knobs: object) -> None:
    """Run a command, and exit where it fails."""
    print(f"\n$ {shown}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(CODE), "HF_HUB_OFFLINE": "1", "CLAMP3_CONFIG": json.dumps(knobs)}
    if code := subprocess.run([sys.executable, *command], env=environment).returncode:
        sys.exit(f"error: that ended with exit code {code}")


def train(work: Path, name: str) -> Path:
    """Train as RUNS says; returns the weights."""
    weights = work / f"weights_{name.replace(' ', '_')}.pth"
    data = work / "chorales" / "train.jsonl"
    own = {"CLAMP3_TRAIN_JSONL": str(data), "CLAMP3_EVAL_JSONL": str(data.with_name("train_eval.jsonl"))}
    knobs = {**KNOBS, **RUNS[name], **own, "CLAMP3_WEIGHTS_PATH": str(weights)}
    shown = " ".join(f"{knob}={value}" for knob, value in {**KNOBS, **RUNS[name]}.items())
    command = [str(CODE / "train_clamp3_symbolic.py"), "--device", "cpu", "--threads", "1"]
    run(command, f"train_clamp3_symbolic.py  # {shown}", **knobs)
    return weights


# ---------- what it is worth ----------


def reciprocal_ranks(weights: Path | str, items: list[dict], folder: Path) -> np.ndarray:
    """Of each item's music for its text and of its text for its music, among all items: (2, items)."""
    embedder = Embedder.from_pretrained(weights, device="cpu", sizes=tiny_sizes())
    texts = embedder.embed_text([item["analysis"] for item in items])
    music = embedder.embed_symbolic([(folder / item["filepaths"][0]).read_text(encoding="utf-8") for item in items])
    return 1 / np.stack([ranks_of_pairs(texts, music), ranks_of_pairs(music, texts)])


def interval(before: np.ndarray, after: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """The 95 % interval of the relative gain of the mean, by resampling whole groups of items, all (items,)."""
    rng, names = np.random.default_rng(SEED), sorted(set(groups))
    member = np.array([[group == name for group in groups] for name in names], float)  # (groups, items)
    sums = member @ np.stack([before, after], axis=1)  # (groups, 2)
    chosen = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES) @ sums
    low, high = np.percentile(chosen[:, 1] / chosen[:, 0] - 1, [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("finetune-demo"), help="folder for data and weights")
    work = parser.parse_args().work.absolute()
    start, folder = time.perf_counter(), work / "chorales"
    write(folder)
    options = ["--texts", str(folder / "texts.csv"), "--output", str(folder / "train.jsonl")]
    make = ["-m", "clamp3", "make-jsonl", str(folder / "music"), *options, "--eval_share", str(EVAL_SHARE)]
    run(make, f"python {' '.join(make)}")
    items = [json.loads(line) for line in (folder / "train_test.jsonl").read_text(encoding="utf-8").splitlines()]
    titles = [item["analysis"].partition(". ")[0] for item in items]
    before, rows = reciprocal_ranks("tiny", items, folder), []
    for name in RUNS:
        begin = time.perf_counter()
        after = reciprocal_ranks(train(work, name), items, folder)
        cells = [f"{old.mean():.3f} | {new.mean():.3f}" for old, new in zip(before, after, strict=True)]
        low, high = interval(before.mean(0), after.mean(0), titles)
        cells.append(f"{after.mean() / before.mean() - 1:+.0%} ({low:+.0%} to {high:+.0%})")
        rows.append(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - begin:.0f} s |")
    print(
        f"\n{len(items)} chorales of {len(set(titles))} titles, unseen in any training: mean reciprocal ranks before"
    )
    print("and after, and the gain of both directions' mean (95 % bootstrap interval over titles)\n")
    print(
        "| trained | text to music, before | after | music to text, before | after | gain | time |\n"
        + "|---" * 7
        + "|"
    )
    print("\n".join(rows))
    print(f"\n{time.perf_counter() - start:.0f} s in all; the weights are in {work}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
