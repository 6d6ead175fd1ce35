"""Ranks of 100,000 pairs: looking at a few numbers of each feature first, against whole products.

    python benchmarks/ranking.py                    two rounds, in which the contenders take turns
    python benchmarks/ranking.py --pairs 30000      fewer pairs
The features are made as those of `search.py`, from the small model's of 12,738 tunes and their descriptions: most lie
between a tune and one of its neighbours, and their descriptions likewise. There are 768 numbers of each: the model's
128, turned; the same with noise of a tenth of their length in all directions, and noise alone, which nothing makes
quicker. Whole products are made for a part of the queries, and their time is multiplied.
"""

import argparse
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

import search
from measure import Interference, machine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.search import screening  # noqa: E402
from clamp3.search.metrics import metrics  # noqa: E402
from clamp3.search.ranking import normalized, positions, ranks_of_pairs, top_k_of_unit  # noqa: E402

TUNES = 12_738
PART = 16  # one of so many queries is ranked by whole products
KINDS = {"features of the small model, turned": 0.0, "… with noise of a tenth": 0.1, "noise alone": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--tunes", type=int, default=TUNES, help="real ones; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args()
    music, texts = search.real_features(args.tunes)
    print(machine())
    print(
        "| features | MRR | screened | whole products | ratio | ranks that differ | other work |\n" + "|---" * 7 + "|"
    )
    for name, noise in KINDS.items():
        interference = Interference()
        queries, references = pairs(music, texts, args.pairs, noise)
        print(f"| {name} | {compared(queries, references, args.rounds)} | {interference.share():.0%} |", flush=True)


def pairs(music: np.ndarray, texts: np.ndarray, count: int, noise: float | None) -> tuple[np.ndarray, np.ndarray]:
    """`count` texts and their music, (count, 768) each; `noise` is a share of their length, None: nothing else."""
    rng = np.random.default_rng(1)
    if noise is None:
        sides = rng.standard_normal((2, count, search.HIDDEN), np.float32)
        return normalized(sides[0] + sides[1]), normalized(sides[1])
    owners = np.arange(count) % len(music)
    neighbours = top_k_of_unit(music, music, min(search.NEIGHBOURS, len(music)))[0]
    others = neighbours[owners, rng.integers(neighbours.shape[1], size=count)]
    way = np.where(np.arange(count) < len(music), 0, rng.uniform(0, 0.5, count)).astype(np.float32)[:, None]
    with mock.patch.object(search, "NOISE", noise):
        sides = [side[owners] * (1 - way) + side[others] * way for side in (texts, music)]
        return search.turned(sides[0], 2), search.turned(sides[1], 3)


def compared(queries: np.ndarray, references: np.ndarray, rounds: int) -> str:
    """Cells of the table; times are the least of the rounds."""
    screened, whole = [], []
    chosen = np.arange(0, len(queries), PART)
    for _ in range(rounds):
        start = time.perf_counter()
        ranks = ranks_of_pairs(queries, references)
        screened.append(time.perf_counter() - start)
        with mock.patch.object(screening, "LARGE", np.inf):
            start = time.perf_counter()
            plain = positions(queries[chosen], references, chosen[:, None], deepest=1)[:, 0]
            whole.append((time.perf_counter() - start) * len(queries) / len(chosen))
    different = np.count_nonzero(plain != ranks[chosen])
    times = f"{min(screened):.1f} s | {min(whole):.1f} s | {min(whole) / min(screened):.1f}x"
    return f"{metrics(ranks)['MRR']:.3f} | {times} | {different} of {len(chosen):,}"


if __name__ == "__main__":
    main()
