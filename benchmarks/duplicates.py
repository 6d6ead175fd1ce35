"""How well `clamp3_index.py duplicates` finds copies and versions of folk tunes, and how fast.

    python benchmarks/duplicates.py
    python benchmarks/duplicates.py --tunes 2000 --json figures.json
It takes the 12,738 folk tunes of music21's corpus, or fewer, and knows the answers in three ways:
- Planted: of 500 tunes, a copy in another key (by 1 to 11 semitones), one with a tenth of its notes moved by a step or
  left out, and one as MTF. What is found among planted files is right if both come from one tune.
- Titles: tunes of one title in two collections. Not all are the same tune, so the recall is more than is said.
- Traditions: hardly a tune of the Essen collection (Germany, China, …) is one of O'Neill's, Ryan's or Aird's. How many
  such pairs are found per million of them estimates how many wrong ones are found among all.
Notes are read before, with the corpus; the time is that of the comparison. What is alike for a model is not asked.
"""

import argparse
import json
import random
import re
import sys
import time
import warnings
from collections import defaultdict
from itertools import combinations, islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.formats.notes import Score, scores_of  # noqa: E402
from clamp3.inputs.melodies import figures  # noqa: E402
from clamp3.search.duplicates import Links  # noqa: E402
from clamp3.search.hearing import heard_of  # noqa: E402
from clamp3.search.versions import FIGURE, same_music  # noqa: E402
from corpus import Tune, folk_tunes  # noqa: E402
from notes import read_melody, to_mtf  # noqa: E402

PLANTED = 500
CHANGED = 0.1  # of the notes
ESSEN = "Essen Folksong Collection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tunes", type=int, default=12_738, help="of the corpus; default: %(default)s")
    parser.add_argument("--json", type=Path, help="write all figures")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of tunes without barlines
    tunes = list(islice(folk_tunes(), 0, None, max(1, 12_738 // args.tunes)))[: args.tunes]
    scores = [scores_of(tune.abc) for tune in tunes]
    found = {**of_planted(tunes, scores), **of_corpus(tunes, scores)}
    for name, value in found.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def of_planted(tunes: list[Tune], scores: list[list[Score]]) -> dict[str, float]:
    """Recall of each kind of copy, how often the interval is right, and the precision among planted files."""
    rng = random.Random(0)
    chosen = sorted(rng.sample(range(len(tunes)), min(PLANTED, len(tunes))))
    everything, kinds = list(scores), []
    for place in chosen:
        score, interval = scores[place][0], rng.choice([-1, 1]) * rng.randint(1, 11)
        everything.append([Score(score.starts, score.pitches + interval)])
        kinds.append(("in another key", place, interval))
        everything.append([varied(score, rng)])
        kinds.append(("varied", place, 0))
        everything.append(scores_of(to_mtf(read_melody(tunes[place].abc))))
        kinds.append(("as MTF", place, 0))
    heard = [heard_of(some) for some in everything]
    same = Links(len(everything))
    same.join_equal((place, key) for place, one in enumerate(heard) for key in one.exact)
    as_notes = same.labels.copy()
    same.join_moved((place, key, pitch) for place, one in enumerate(heard) for key, pitch in one.moved)
    pairs = same_music([one.melody for one in heard])
    intervals = {(one, other): interval for one, other, interval in pairs.tolist()}
    for (one, other), interval in intervals.items():
        same.join(one, other, interval)
    figures: dict[str, float] = {}
    for kind in ("as MTF", "in another key", "varied"):
        known = [(place, len(scores) + n, by) for n, (of, place, by) in enumerate(kinds) if of == kind]
        hits = [same.labels[place] == same.labels[copy] for place, copy, _ in known]
        figures[f"{kind}: found"] = float(np.mean(hits))
        if kind == "as MTF":
            figures[f"{kind}: found as the same notes"] = float(
                np.mean([as_notes[place] == as_notes[copy] for place, copy, _ in known])
            )
        if kind == "in another key":
            right = [same._intervals(place).get(copy) == by for place, copy, by in known]
            figures[f"{kind}: with the right interval"] = float(np.mean(right))
    sources = np.array([place for _, place, _ in kinds])
    one, other = pairs[:, 0] - len(scores), pairs[:, 1] - len(scores)
    inside = (one >= 0) & (other >= 0)
    figures["pairs of copies that come from one tune"] = float(np.mean(sources[one[inside]] == sources[other[inside]]))
    return figures


def varied(score: Score, rng: random.Random) -> Score:
    """`score` with a tenth of its notes moved by a step or left out."""
    notes = []
    for start, pitch in zip(score.starts.tolist(), score.pitches.tolist(), strict=True):
        change = rng.random()
        if change < CHANGED / 2:
            continue
        notes.append((start / 24, pitch + rng.choice([-2, -1, 1, 2]) * (change < CHANGED)))
    return Score.of(notes)


def of_corpus(tunes: list[Tune], scores: list[list[Score]]) -> dict[str, float]:
    """What is found among tunes as they are, and how long it takes."""
    start = time.perf_counter()
    pairs = same_music([figures(some[0].top_line(), FIGURE) for some in scores])
    seconds = time.perf_counter() - start
    by_title = defaultdict(list)
    for place, tune in enumerate(tunes):
        title = re.sub(r"[^a-z]", "", re.sub(r"\b(the|a|an)\b", "", tune.title.lower()))
        if tune.collection != ESSEN and len(title) > 5:
            by_title[title].append(place)
    titled = {
        pair
        for places in by_title.values()
        for pair in combinations(places, 2)
        if tunes[pair[0]].collection != tunes[pair[1]].collection
    }
    known = {(one, other) for one, other, _ in pairs.tolist()}
    essen = np.array([tune.collection == ESSEN for tune in tunes])
    across = int((essen[pairs[:, 0]] != essen[pairs[:, 1]]).sum())
    possible = int(essen.sum() * (~essen).sum())
    wrong = across / possible * len(tunes) * (len(tunes) - 1) / 2 if possible else 0.0
    return {
        "tunes": len(tunes),
        "seconds, notes aside": seconds,
        "pairs of the same title in two collections": len(titled),
        "of these found": len(titled & known) / max(1, len(titled)),
        "pairs found": len(pairs),
        "between Essen and the others": across,
        "estimated share of right ones": 1 - wrong / max(1, len(pairs)),
    }


if __name__ == "__main__":
    main()
