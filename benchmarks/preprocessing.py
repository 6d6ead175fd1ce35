"""How fast raw files become model inputs, against what people do without this library.

    python benchmarks/preprocessing.py                         all of it
    python benchmarks/preprocessing.py --only midi             one kind of file
    python benchmarks/preprocessing.py --json figures.json     the figures as JSON too
    python benchmarks/preprocessing.py --quick                 few files, one round: does it run?
It prints a Markdown table. Contenders take turns, on the same files; the ratio is the median over the rounds. The
files are made once, in --folder, from music21's corpus. Run it on an otherwise idle machine: it says how much of the
processor other work took.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from report import add_folder_option, at_least, benchmark_parser, conditions, show, table_row

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass
class Row:
    """How fast a kind of input is converted."""

    what: str
    unit: str  # of the speeds
    baseline: str
    speed: float
    baseline_speed: float
    ratio: float  # median over the rounds
    target: float  # for it


def midi(folder: Path, quick: bool, rounds: int) -> Row:
    """MIDI to MTF: the library's function against a loop over mido's messages."""
    import mido

    from clamp3.formats.midi import TEXT_KINDS, midi_to_mtf
    from corpus import scores

    def loop_over_mido(path: Path) -> str:
        midi = mido.MidiFile(path)
        lines = [f"ticks_per_beat {midi.ticks_per_beat}"]
        for message in midi.merged_track:
            if message.type not in TEXT_KINDS:
                line = " ".join(str(value) for value in message.dict().values())
                lines.append(line.encode("unicode_escape").decode())
        return "\n".join(lines)

    paths = made(folder / "midi", ".mid", 8 if quick else 120, scores)
    if any(midi_to_mtf(path, m3_compatible=True) != loop_over_mido(path) for path in paths):
        raise RuntimeError("the contenders' texts are not the same")
    seconds = in_turn(
        rounds,
        lambda: [midi_to_mtf(path, m3_compatible=True) for path in paths],
        lambda: [loop_over_mido(path) for path in paths],
    )
    return row(f"{len(paths)} MIDI files to MTF", "files/s", "a loop over mido's messages", len(paths), seconds, 2.0)


def abc(folder: Path, quick: bool, rounds: int) -> Row:
    """MusicXML to standard ABC: the library's function against starting abctoolkit's converter for each score."""
    import subprocess

    from clamp3.formats.musicxml import musicxml_to_abc
    from corpus import SCORE_FOLDER, corpus_folder

    def smallest(count: int) -> Iterator[tuple[str, bytes]]:
        paths = sorted(corpus_folder().joinpath(SCORE_FOLDER).glob("*.mxl"), key=lambda path: path.stat().st_size)
        return ((path.stem, path.read_bytes()) for path in paths[:count])

    def start_the_converter(path: Path) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "abctoolkit.xml2abc", "-d", "8", "-x", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, encoding="utf-8")
        return done.stdout

    paths = made(folder / "mxl", ".mxl", 4 if quick else 60, smallest)
    if any(musicxml_to_abc(path) != start_the_converter(path) for path in paths):
        raise RuntimeError("the contenders' texts are not the same")
    seconds = in_turn(
        rounds,
        lambda: [musicxml_to_abc(path) for path in paths],
        lambda: [start_the_converter(path) for path in paths],
    )
    return row(f"{len(paths)} scores to ABC", "files/s", "starting the converter for each", len(paths), seconds, 6.0)


KINDS = {"midi": midi, "abc": abc}


def made(folder: Path, extension: str, count: int, make: Callable[[int], Iterator[tuple[str, bytes]]]) -> list[Path]:
    """`count` files in a folder of their own, from `make(count)` if they are not there yet."""
    folder = folder / str(count)
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob(f"*{extension}"))) != count:
        for name, data in make(count):
            folder.joinpath(f"{name}{extension}").write_bytes(data)
    return sorted(folder.glob(f"*{extension}"))


def in_turn(rounds: int, ours: Callable, theirs: Callable) -> list[tuple[float, float]]:
    """The seconds of both contenders in each round."""

    def seconds(contender: Callable) -> float:
        begin = time.perf_counter()
        contender()
        return time.perf_counter() - begin

    return [(seconds(ours), seconds(theirs)) for _ in range(rounds)]


def row(what: str, unit: str, baseline: str, amount: float, seconds: list[tuple[float, float]], target: float) -> Row:
    """The row for `amount` units of work in each round."""
    ours, theirs = zip(*seconds, strict=True)
    ratio = median(slow / fast for fast, slow in seconds)
    return Row(what, unit, baseline, amount / median(ours), amount / median(theirs), ratio, target)


def main() -> int:
    parser = benchmark_parser(__doc__, "of both contenders in turn; default 5", "few files, one round")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    add_folder_option(parser, "the files")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure

    sys.path.append(str(EXAMPLES))

    rounds = args.rounds or (1 if args.quick else 5)
    interference = measure.Interference()
    rows = {kind: KINDS[kind](args.folder, args.quick, rounds) for kind in args.only}
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    figures |= {"rows": {kind: asdict(found) for kind, found in rows.items()}, "interference": interference.share()}
    show(figures, markdown(figures, rows.values()), args.json)
    return 0


def markdown(figures: dict, rows: Iterator[Row]) -> Iterator[str]:
    """The table, as lines."""
    yield from conditions(figures)
    yield ""
    yield table_row("what", "clamp3", "without it", "ratio")
    yield "|---|---|---|---|"
    for found in rows:
        slow = f"{found.baseline_speed:,.1f} {found.unit} ({found.baseline})"
        ratio = at_least(found.ratio, found.target, "{:.1f}x")
        yield table_row(found.what, f"{found.speed:,.1f} {found.unit}", slow, ratio)


if __name__ == "__main__":
    sys.exit(main())
