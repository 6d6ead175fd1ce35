"""Answers beyond the file: planted themes are found, explanations checked by deletion, calibrations by held-out tunes.

    python benchmarks/answers.py
    python benchmarks/answers.py passages --json figures.json
    python benchmarks/answers.py explanations calibration speed
All with the small model and the tunes that it was not trained on. `passages`: 8 bars of each of 200 tunes lie in 50
medleys of 20 other tunes, whose passages (over 10,000) are looked for by the 8 bars alone: in ABC, in MIDI, in MIDI of
another key with a tenth of the notes wrong, by the text of the tune, and by sound; by features, and for notes by
melodies too. `explanations`: a tune loses the fifth of its bars that adds most to its cosine with its description, or
a random fifth. `calibration`: each correction in each direction between modalities. `speed`: 100,000 pieces with their
passages. It takes some 20 minutes on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.errors import RepairWarning  # noqa: E402
from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.features.passages import Passage  # noqa: E402
from clamp3.inputs.melodies import NO_MELODY, BarMelodies, fingerprint  # noqa: E402
from clamp3.inputs.passages import Metre, Span, bars_of, messages_of, spelled, symbolic_passages  # noqa: E402
from clamp3.models.releases import TINY  # noqa: E402
from clamp3.search.calibration import METHODS, Space, calibrated  # noqa: E402
from clamp3.search.index import Entry, Index  # noqa: E402
from clamp3.search.passages import cosines, decoded, encoded, melodic_cosines, row_type  # noqa: E402
from clamp3.search.ranking import normalized, ranks_of_pairs, spans  # noqa: E402
from corpus import Tune, folk_tunes  # noqa: E402
from descriptions import full_description  # noqa: E402
from notes import MAJOR_KEYS, TEMPO, Melody, read_melody, to_mtf, to_sound  # noqa: E402

BARS, NEAR = 8, 2  # of a theme, and by how many a found passage may begin elsewhere
THEMES, MEDLEYS, OTHERS = 200, 50, 20
RATE = 24_000
INSTRUMENTS = "plucked", "flute", "fiddle"
PAIRS, DELETED, RANDOM = 200, 0.2, 5
PIECES, BARS_OF_A_PIECE, NOTES, ASKED = 100_000, 32, 6, 20  # notes of a bar
RESAMPLES = 1000
ALIKE = 1.5  # in each direction of random features of spread 1, so that their cosines are about 0.7, as of real ones
WRONG = 0.1  # of the notes of a theme that is misplayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--themes", type=int, default=THEMES, help="default: %(default)s")
    parser.add_argument("--medleys", type=int, default=MEDLEYS, help="default: %(default)s")
    parser.add_argument("--pieces", type=int, default=PIECES, help="of `speed`; default: %(default)s")
    parser.add_argument("--json", type=Path, help="write all figures")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    warnings.simplefilter("ignore", RepairWarning)
    embedder = Embedder.from_pretrained("tiny", device="cpu")
    held_out = set((TINY / "held_out.txt").read_text().split())
    tunes = [tune for tune in folk_tunes() if tune.name in held_out]
    figures: dict = {"cores": len(os.sched_getaffinity(0))}
    for name in args.parts or PARTS:
        figures[name] = {}
        PARTS[name](embedder, tunes, args, figures[name])
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def interval(values: np.ndarray) -> list[float]:
    """The mean, and its 95 % bootstrap interval."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    return [float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]


def shown(estimate: list[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)


# ---------- planted themes ----------


def parts_of(tune: Tune) -> tuple[list[str], list[str]]:
    """The header's lines and the rows of music."""
    lines = tune.abc.splitlines()
    return [line for line in lines if not line.startswith("[V:")], [line for line in lines if line.startswith("[V:")]


def fields_of(header: list[str]) -> dict[str, str]:
    return {line[0]: line[2:].strip() for line in header if line[:2] in ("M:", "L:", "K:")}


class Medley:
    """Sections one after the other, in ABC and in MTF, and where each begins, in bars."""

    def __init__(self, sections: list[tuple[list[str], list[str]]]):
        self.rows, self.abc_bars, ticks, self.midi = [], [], [], [f"set_tempo {TEMPO} 0"]
        now, before, events = 0, 0, []
        for header, rows in sections:
            fields = fields_of(header)
            self.abc_bars.append(len(self.rows) + 1)
            ticks.append(now)
            inline = "".join(f"[{name}:{fields[name]}]" for name in "MLK" if name in fields) if self.rows else ""
            self.rows += [f"[V:1]{inline}{rows[0].removeprefix('[V:1]')}", *rows[1:]]
            melody = melody_of(fields, rows)
            if melody.metre:
                events.append((now, 0, "time_signature {} {} 24 8".format(*melody.metre), ""))
            events.append((now, 1, f"key_signature {MAJOR_KEYS[melody.fifths + 7]}", ""))
            for note in melody.notes:
                start, end = (now + round(480 * beats) for beats in (note.start, note.start + note.length))
                events += [(start, 3, "note_on", f" 0 {note.pitch} 80"), (end, 2, "note_on", f" 0 {note.pitch} 0")]
            now += round(480 * melody.length)
        for at, _, head, tail in sorted(events):
            self.midi.append(f"{head} {at - before}{tail}")
            before = at
        self.header = sections[0][0]
        self.mtf = "\n".join(["ticks_per_beat 480", *self.midi, "end_of_track 0"])
        self.ticks = ticks

    @property
    def abc(self) -> str:
        return "\n".join([*self.header, *self.rows, ""])


def melody_of(fields: dict[str, str], rows: list[str]) -> Melody:
    return read_melody("\n".join([*(f"{name}:{value}" for name, value in fields.items()), *rows, ""]))


def planted(tunes: list[Tune], themes: int, medleys: int) -> tuple[list, list[Medley], list[tuple[int, int]]]:
    """Themes (a tune, its header, 8 of its rows), medleys, and of each theme its medley and its section there."""
    rng = np.random.default_rng(0)
    long = [tune for tune in tunes if len(parts_of(tune)[1]) >= 2 * BARS]
    order = rng.permutation(len(long)).tolist()
    chosen, others = [long[place] for place in order[:themes]], [long[place] for place in order[themes:]]
    cut = []
    for tune in chosen:
        header, rows = parts_of(tune)
        start = int(rng.integers(len(rows) - BARS + 1))
        cut.append((tune, header, rows[start : start + BARS]))
    made, where = [], [(0, 0)] * themes
    for number in range(medleys):
        sections: list = [parts_of(others[place]) for place in rng.choice(len(others), OTHERS, replace=False)]
        own = list(range(number, themes, medleys))
        for theme in own:
            sections.insert(int(rng.integers(1, len(sections))), (*cut[theme][1:], theme))
        for place, section in enumerate(sections):
            if len(section) == 3:
                where[section[2]] = number, place
        made.append(Medley([section[:2] for section in sections]))
    return cut, made, where


def passages(embedder: Embedder, tunes: list[Tune], args: argparse.Namespace, figures: dict) -> None:
    """How often the passage of a planted theme comes first."""
    themes, medleys, where = planted(tunes, args.themes, args.medleys)
    abc = ["\n".join([*header, *rows, ""]) for _, header, rows in themes]
    played = [melody_of(fields_of(header), rows) for _, header, rows in themes]
    rng = np.random.default_rng(2)
    notes = {"ABC": abc, "MIDI": [to_mtf(melody) for melody in played]}
    notes["MIDI with wrong notes"] = [to_mtf(misplayed(melody, rng)) for melody in played]
    asked_melodies = {
        name: [BarMelodies(spelled(embedder.encode_symbolic(text))).of() for text in texts]
        for name, texts in notes.items()
    }
    queries = {
        **{name: embedder.embed_symbolic(texts) for name, texts in notes.items()},
        "text": embedder.embed_text([full_description(tune) for tune, *_ in themes]),
        "sound": embedder.embed_audio(
            [to_sound(melody, 60, RATE, INSTRUMENTS[n % 3]) for n, melody in enumerate(played)], RATE
        ),
    }
    for kind in ("ABC", "MIDI"):
        sequences = [embedder.encode_symbolic(medley.abc if kind == "ABC" else medley.mtf) for medley in medleys]
        begins = [begin_of(medleys[number], place, kind, embedder) for number, place in where]
        places, owners, features = own_windows(embedder, sequences)
        read = [BarMelodies(spelled(sequence)) for sequence in sequences]
        melodies = [read[number].of(span) for span, number in zip(places, owners.tolist(), strict=True)]
        rows = encoded(list(map(Passage, places, features, melodies)), row_type(features.shape[1], len(NO_MELODY)))
        figures[f"{kind} passages"] = len(places)
        firsts = np.array([span.first for span in places])
        right = [(owners == n) & (abs(firsts - bar) <= NEAR) for (n, _), bar in zip(where, begins, strict=True)]
        for name, asked in queries.items():
            found = {"cosine": np.stack([cosines(query, rows) for query in normalized(asked)])}
            own = "symbolic" if name in notes else name
            for method in METHODS[1:]:
                space = Space.of(decoded(rows), ["symbolic"] * len(rows), method)
                moved = space.references(decoded(rows), ["symbolic"] * len(rows), own)
                found[method] = normalized(space.queries(asked, own)) @ normalized(moved).T
            if name in asked_melodies:
                melodic = np.stack([melodic_cosines(melody, rows) for melody in asked_melodies[name]])
                found |= {f"melodies and {how}": scores + melodic for how, scores in found.items()}
                found["melodies alone"] = melodic
            for how, scores in found.items():
                note(figures, f"{name} to {kind}, {how}", scores, right)
            if name == kind == "ABC":
                by_pass = same_pass(embedder, sequences, places, owners)
                note(figures, f"{name} to {kind}, from the piece's own pass", normalized(asked) @ by_pass.T, right)
                float32 = normalized(asked) @ normalized(features).T
                note(figures, f"{name} to {kind}, cosine of float32", float32, right)
                fours = (firsts - 1) % 4 == 0
                scores = np.where(fours, found["cosine"], -9)
                note(figures, f"{name} to {kind}, steps of 4 bars", scores, right)


def misplayed(melody: Melody, rng: np.random.Generator) -> Melody:
    """A melody in another key, a tenth of whose notes are left out or up to two semitones higher or lower."""
    moved, key = [], int(rng.integers(-6, 7))
    for one in melody.notes:
        change = int(rng.integers(-2, 3)) if rng.random() < WRONG else None
        if change != 0:
            moved.append(replace(one, pitch=one.pitch + key + (change or 0)))
    return replace(melody, notes=moved)


def note(figures: dict, name: str, scores: np.ndarray, right: list[np.ndarray]) -> None:
    first = scores.argmax(axis=1)
    figures[name] = interval(np.array([hit[best] for hit, best in zip(right, first, strict=True)]))
    print(f"{name}: right passage first {shown(figures[name])}", flush=True)


def begin_of(medley: Medley, place: int, kind: str, embedder: Embedder) -> int:
    """The bar in which a section begins."""
    if kind == "ABC":
        return medley.abc_bars[place]
    return Metre(*messages_of(embedder.patchilizer.split(medley.mtf))).bar(medley.ticks[place]) + 1


def own_windows(embedder: Embedder, sequences: list[np.ndarray]) -> tuple[list[Span], np.ndarray, np.ndarray]:
    """Of all passages their spans, the numbers of their pieces, and their features, encoded on their own."""
    found = [
        (span, number, window)
        for number, sequence in enumerate(sequences)
        for span, window in symbolic_passages(sequence, embedder.patchilizer)
    ]
    features = np.zeros((len(found), embedder.sizes.clamp3_hidden_size), np.float32)
    for place, feature in embedder.embed("symbolic", [window for *_, window in found]):
        features[place] = feature
    return [span for span, *_ in found], np.array([number for _, number, _ in found]), features


def same_pass(embedder: Embedder, sequences: list[np.ndarray], places: list[Span], owners: np.ndarray) -> np.ndarray:
    """The same passages' features as means of their positions in the whole piece, of length one."""
    features = np.zeros((len(places), embedder.sizes.clamp3_hidden_size), np.float32)
    for number, positions in embedder.embed("symbolic", sequences, pooled=False, projected=True):
        bars = np.array([0, *bars_of(spelled(sequences[number])), 0])[positions.indices]
        for place in np.flatnonzero(owners == number):
            inside = (bars >= places[place].first) & (bars <= places[place].last)
            features[place] = positions.weights[inside] @ positions.states[inside]
    return normalized(features)


# ---------- explanations ----------


def explanations(embedder: Embedder, tunes: list[Tune], args: argparse.Namespace, figures: dict) -> None:
    """Whether a cosine loses more with the bars that add most to it than with random ones."""
    rng = np.random.default_rng(1)
    chosen = [tune for tune in tunes if len(parts_of(tune)[1]) >= 10]
    chosen = [chosen[place] for place in rng.permutation(len(chosen))[:PAIRS]]
    variants, texts, sizes = [], [], []
    for tune in chosen:
        header, rows = parts_of(tune)
        found = embedder.explain(full_description(tune), tune.abc)
        shares = np.array([one.share for one in found.item if one.unit == "bars"])
        count = max(1, round(DELETED * len(rows)))
        gone = [np.argsort(-shares)[:count], *(rng.choice(len(rows), count, replace=False) for _ in range(RANDOM))]
        kept = [[row for place, row in enumerate(rows) if place not in set(some.tolist())] for some in gone]
        variants += [tune.abc, *("\n".join([*header, *some, ""]) for some in kept)]
        texts.append(full_description(tune))
        sizes.append(count)
    music = embedder.embed_symbolic(variants, normalize=True).reshape(len(chosen), 2 + RANDOM, -1)
    text = embedder.embed_text(texts, normalize=True)
    found = np.einsum("nvh,nh->nv", music, text)
    strongest, random = found[:, 0] - found[:, 1], found[:, 0] - found[:, 2:].mean(axis=1)
    figures["bars removed, on average"] = float(np.mean(sizes))
    figures["cosine lost with the strongest bars"] = interval(strongest)
    figures["cosine lost with random bars"] = interval(random)
    figures["difference"] = interval(strongest - random)
    figures["pairs that lose more with the strongest"] = interval(strongest > random)
    for name, value in figures.items():
        print(f"{name}: {shown(value) if isinstance(value, list) else round(value, 2)}", flush=True)


# ---------- calibration ----------


def calibration(embedder: Embedder, tunes: list[Tune], args: argparse.Namespace, figures: dict) -> None:
    """MRR of each correction between modalities, and what it adds to the plain cosine, with intervals."""
    melodies = [read_melody(tune.abc) for tune in tunes]
    sounds = [to_sound(melody, 15, RATE, INSTRUMENTS[n % 3]) for n, melody in enumerate(melodies)]
    features = {
        "ABC": embedder.embed_symbolic([tune.abc for tune in tunes]),
        "text": embedder.embed_text([full_description(tune) for tune in tunes]),
        "MIDI": embedder.embed_symbolic(list(map(to_mtf, melodies))),
        "sound": np.concatenate([embedder.embed_audio(sounds[part], RATE) for part in spans(len(sounds), 100)]),
    }
    for query in features:
        for reference in features:
            if query == reference:
                continue
            plain = 1 / ranks_of_pairs(features[query], features[reference])
            found = figures[f"{query} to {reference}"] = {"none": interval(plain)}
            for method in METHODS[1:]:
                sides = calibrated(features[query], features[reference], method)
                alone = Space.of(features[reference], [reference] * len(tunes), method)
                one_query = (
                    alone.queries(features[query], query),
                    alone.references(features[reference], [reference] * len(tunes), query),
                )
                for name, pair in ((method, sides), (f"{method}, queries unknown", one_query)):
                    found[name] = interval(1 / ranks_of_pairs(*pair) - plain)
            gains = "; ".join(f"{name} {shown(value)}" for name, value in found.items())
            print(f"{query} to {reference}: MRR {gains}", flush=True)


# ---------- speed ----------


def speed(embedder: Embedder, tunes: list[Tune], args: argparse.Namespace, figures: dict) -> None:
    """How long a search of many pieces with their passages takes, and how much of a disk they take."""
    rng, hidden = np.random.default_rng(0), embedder.sizes.clamp3_hidden_size
    starts = range(1, BARS_OF_A_PIECE - 5, 2)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index")
        with index.writing():
            for part in spans(args.pieces, 10_000):
                numbers = range(args.pieces)[part]
                entries = [Entry(Path(f"/music/{n}.abc"), "symbolic", f"{n:064}", 1, 1) for n in numbers]
                rows = ALIKE + rng.standard_normal((len(numbers), len(starts), hidden)).astype(np.float32)
                tunes_there = rng.integers(55, 80, (len(numbers), NOTES * BARS_OF_A_PIECE))
                made = {
                    entry.path: [
                        Passage(Span("bars", n, n + 7), row, fingerprint(tune[NOTES * (n - 1) : NOTES * (n + 7)]))
                        for n, row in zip(starts, some, strict=True)
                    ]
                    for entry, some, tune in zip(entries, rows, tunes_there, strict=True)
                }
                index.add(entries, rows.mean(axis=1), made)
        figures["passages"] = len(index.contents.passages)
        figures["bytes of a passage"] = index.contents.passages.dtype.itemsize
        index.close()
        start = time.perf_counter()
        index = Index(Path(folder) / "index")
        figures["opening, s"] = time.perf_counter() - start
        times: dict[str, list[float]] = {"a search": [], "a search by notes": [], "by notes of none": []}
        for query in ALIKE + rng.standard_normal((ASKED + 1, hidden)).astype(np.float32):
            there = index.contents.passages["melody"][rng.integers(len(index.contents.passages))]
            other = fingerprint(rng.integers(55, 80, NOTES * BARS))
            for name, asked in (("a search", None), ("a search by notes", there), ("by notes of none", other)):
                start = time.perf_counter()
                index.search(query, 10, passages=True, per_file=1, melody=asked)
                times[name].append(1e3 * (time.perf_counter() - start))
        figures["first search, ms"] = times["a search"][0]
        figures |= {f"{name}, ms (median)": float(np.median(some[1:])) for name, some in times.items()}
    for name, value in figures.items():
        print(f"{name}: {value:.1f}")


PARTS = {"passages": passages, "explanations": explanations, "calibration": calibration, "speed": speed}

if __name__ == "__main__":
    main()
