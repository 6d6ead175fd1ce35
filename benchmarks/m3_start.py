"""Does it help to start from M3? The small model's stage 1, twice, with and without, at equal steps.

    python benchmarks/m3_start.py
It trains on 8,000 items (a folk tune with texts in two languages) for three epochs each, with the knobs of
examples/train_tiny.py and the M3 of code/clamp3/tiny or another, prints a Markdown table, and draws the curves into
benchmarks/m3_start.png. It takes four minutes on two CPU cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
import train_tiny  # noqa: E402
from clamp3.models.releases import TINY  # noqa: E402

SHOWN = {"eval_loss": "evaluation loss", "text_to_music_MRR": "text to music, MRR"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8000, help="that it trains on; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--m3", type=Path, default=TINY / "m3.safetensors", help="its weights; default: %(default)s")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        train_tiny.prepare_data(work)
        data = work / "data"
        items = data.joinpath(f"{train_tiny.TRAIN}_symbolic.jsonl").read_text(encoding="utf-8").splitlines()
        items = items[:: max(1, len(items) // args.items)][: args.items]
        data.joinpath("some.jsonl").write_text("\n".join(items) + "\n", encoding="utf-8")
        starts = {"from M3": args.m3, "from scratch": None}
        curves = {name: curve(work, name, m3, args.epochs) for name, m3 in starts.items()}
    draw(curves, args.picture)
    print(
        f"\n| {len(items)} items, after epoch | "
        + " | ".join(f"{title}, {n}" for title in SHOWN.values() for n in curves)
        + " |"
    )
    print("|---" * (1 + len(SHOWN) * len(curves)) + "|")
    for epochs in zip(*curves.values(), strict=True):
        figures = [f"{epoch[name]:.3f}" for name in SHOWN for epoch in epochs]
        print(f"| {epochs[0]['epoch']} | {' | '.join(figures)} |")
    return 0


def curve(work: Path, name: str, m3: Path | None, epochs: int) -> list[dict]:
    """The figures of each epoch of a run."""
    data, weights = work / "data", work / f"weights_{name.replace(' ', '_')}.pth"
    knobs = {
        "CLAMP3_TRAIN_JSONL": str(data / "some.jsonl"),
        "CLAMP3_EVAL_JSONL": str(data / f"{train_tiny.VALIDATION}_symbolic.jsonl"),
        "M3_WEIGHTS_PATH": str(m3 or ""),
        "CLAMP3_LOAD_M3": m3 is not None,
        "CLAMP3_WEIGHTS_PATH": str(weights),
        "CLAMP3_NUM_EPOCH": epochs,
        "CLAMP3_LEARNING_RATE": train_tiny.STAGES[0].rate,
    }
    train_tiny.train("train_clamp3_symbolic.py", work, {**train_tiny.CLAMP3_KNOBS, **knobs})
    return train_tiny.read_items(weights.with_name(f"{weights.stem.replace('weights', 'logs')}.jsonl"))


def draw(curves: dict[str, list[dict]], picture: Path) -> None:
    """The curves, a plot for each figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for name, epochs in curves.items():
            axes.plot([epoch["step"] for epoch in epochs], [epoch[key] for epoch in epochs], marker="o", label=name)
        axes.set(xlabel="step", title=title)
        axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
