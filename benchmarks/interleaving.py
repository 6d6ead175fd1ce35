"""What interleaving first does to features: folk tunes as they are written, against their interleaved form.

python benchmarks/interleaving.py             300 tunes of music21's corpus, with the small model of weights/tiny
python benchmarks/interleaving.py --quick     20 tunes: does it run?
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.errors import ignore  # noqa: E402
from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.formats.abc import interleave, is_interleaved, read_abc, split_tunes  # noqa: E402
from corpus import COLLECTIONS, corpus_folder  # noqa: E402


def tunes(count: int) -> list[str]:
    """So many tunes as their files have them, evenly spaced; none without a barline, which as it is has no bars."""
    paths = [path for known in COLLECTIONS for path in sorted((corpus_folder() / known.folder).glob("*.abc"))]
    found = [
        tune for path in paths for tune in split_tunes(read_abc(path)) if "|" in tune and not is_interleaved(tune)
    ]
    return found[:: len(found) // count][:count]


def compare(found: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Mean and least cosine of features (tunes, width) to the right ones, and the share nearest to their own."""
    found, right = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in (found, right))
    cosines = found @ right.T
    own = cosines.diagonal()
    return float(own.mean()), float(own.min()), float((cosines.argmax(1) == np.arange(len(right))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 tunes")
    args = parser.parse_args()
    standard = tunes(20 if args.quick else 300)
    as_is = Embedder.from_pretrained("tiny", device="cpu", as_is=True)
    first = Embedder.from_pretrained("tiny", device="cpu")
    right = as_is.embed_symbolic([interleave(tune, ignore) for tune in standard])
    for name, embedder in (("as it is", as_is), ("interleaved first", first)):
        mean, least, share = compare(embedder.embed_symbolic(standard), right)
        print(f"standard ABC, {name}: cosine {mean:.3f} on average, {least:.3f} at least; {share:.0%} find themselves")


if __name__ == "__main__":
    main()
