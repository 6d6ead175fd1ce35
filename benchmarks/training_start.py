"""How long training takes to start on many items: from a new process to the batch of the first step.

    python benchmarks/training_start.py                    2.3 million items: 20 minutes, 15 GB of disk for that time
    python benchmarks/training_start.py --before CHECKOUT  an older checkout of the project in turn with this one
    python benchmarks/training_start.py --processes 2      as two processes start that train together
    python benchmarks/training_start.py --quick            few items: does it run?
It prints a Markdown table. The items are lines of some 2 kB, each with an ABC file of its own, in folders of 1,000.
The first start finds no cache and checks all items, the second one remembers them; the start on a hundred items is
what imports, model and data workers take. All starts are of new processes, and files are in memory if they fit. Run it
on an otherwise idle machine: it says how much of the processor other work took.
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from group import run_together
from report import at_most, benchmark_parser, conditions, show, table_row

CODE = Path(__file__).resolve().parents[1] / "code"
ITEMS, FEW = 2_300_000, 100
IN_FOLDER = 1000  # files
BODIES = 1000  # different texts
STARTS = {"few": f"{FEW} items", "first": "first start", "second": "second start"}
TARGET = 10.0  # seconds that the items may take at the second start
SIZES = {"PATCH_LENGTH": 64, "PATCH_NUM_LAYERS": 1, "M3_HIDDEN_SIZE": 64, "CLAMP3_HIDDEN_SIZE": 64}
SIZES |= {"AUDIO_HIDDEN_SIZE": 64, "AUDIO_NUM_LAYERS": 1, "CLAMP3_LOAD_M3": False, "CLAMP3_WANDB_LOG": False}


def main() -> int:
    parser = benchmark_parser(
        __doc__, "of the second start, all contenders in turn; default 3", "few items, one round"
    )
    parser.add_argument("--items", type=int, default=ITEMS, help="default: %(default)s")
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="another checkout, of the folder that holds code/"
    )
    parser.add_argument("--processes", type=int, default=1, help="that train together; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="for the data while it runs; default: among temporary files")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure

    items, rounds = (5 * FEW, 1) if args.quick else (args.items, args.rounds or 3)
    contenders = {**({"before": args.before.resolve() / "code"} if args.before else {}), "clamp3": CODE}
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    figures |= {"items": items, "processes": args.processes}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure.note(f"writing {items:,} items")
        figures["jsonl_bytes"] = write_data(Path(folder), items)
        interference = measure.Interference()
        figures["starts"] = measure_starts(Path(folder), contenders, args.processes, rounds, args.quick)
        figures["interference"] = interference.share()
        measure.note("removing them")
    show(figures, markdown(figures), args.json)
    return 0


def write_data(folder: Path, items: int) -> int:
    """Items in folder/all.jsonl, some of them in few.jsonl, and a text model; returns the bytes of the first."""
    from workload import music, save_text_model

    tunes, texts = music(8)
    save_text_model(folder / "text_model", texts, small=True)
    abc = [tune[1].encode() for tune in tunes]
    bodies = [body(random.Random(number), texts) for number in range(BODIES)]
    for start in range(0, items, IN_FOLDER):
        place = folder / "music" / f"{start // IN_FOLDER:05}"
        place.mkdir(parents=True)
        for number in range(start, min(start + IN_FOLDER, items)):
            (place / f"{number:07}.abc").write_bytes(abc[number % len(abc)])
    for name, count in (("few", FEW), ("all", items)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                path = f"music/{number // IN_FOLDER:05}/{number:07}.abc"
                file.write(f'{{"id": "{number:07}", "filepaths": ["{path}"], {bodies[number % BODIES]}\n')
    return (folder / "all.jsonl").stat().st_size


def body(rng: random.Random, texts: list[str]) -> str:
    """The texts of an item, of the kinds and lengths that those of M4-RAG have; the end of a JSON object."""

    def text(length: int) -> str:
        words = ""
        while len(words) < length:
            words += rng.choice(texts) + " "
        return words[:length]

    long = {"background": 250, "analysis": 350, "description": 250, "scene": 150}
    fields = {"title": text(20), "artists": [text(12)], "region": text(8), "language": "English", "genres": [text(8)]}
    fields |= {"tags": [text(8) for _ in range(4)], **{name: text(length) for name, length in long.items()}}
    translations = {"language": "German", **{name: text(length) for name, length in long.items()}}
    return json.dumps({**fields, "translations": translations})[1:]


def measure_starts(folder: Path, contenders: dict[str, Path], processes: int, rounds: int, quick: bool) -> dict:
    """Medians of seconds and greatest peaks, by contender and kind of start."""
    found = {name: {start: [] for start in STARTS} for name in contenders}
    knobs = {"TRAIN_WORKERS": 0} if quick else {}
    for number in range(rounds):
        for name, code in contenders.items():
            for start in STARTS if number == 0 else ("few", "second"):
                print(f"{name}, {STARTS[start]}, round {number + 1}", file=sys.stderr, flush=True)
                data = "few" if start == "few" else "all"
                found[name][start].append(run(folder, code, name, data, processes, **knobs))
    return {name: {start: summary(runs) for start, runs in starts.items()} for name, starts in found.items()}


def summary(runs: list[dict]) -> dict:
    peaks = {name: max(run[name] for run in runs) for name in ("peak_bytes", "worker_bytes")}
    return {**{name: median(run[name] for run in runs) for name in ("seconds", "cpu_seconds")}, **peaks}


def run(folder: Path, code: Path, contender: str, data: str, processes: int, **others: int) -> dict:
    """What benchmarks/first_step.py says of a start of some processes; each contender has a cache of its own."""
    output = folder / f"{contender}_{data}"
    shutil.rmtree(output, ignore_errors=True)
    knobs = {
        **SIZES,
        "TEXT_MODEL_NAME": str(folder / "text_model"),
        "CLAMP3_TRAIN_JSONL": str(folder / f"{data}.jsonl"),
    }
    knobs |= {"CLAMP3_WEIGHTS_PATH": str(output / "weights.pth"), "CLAMP3_LOGS_PATH": str(output / "logs.txt")}
    command = [sys.executable, str(Path(__file__).with_name("first_step.py")), str(code)]
    caches = {"HF_HUB_OFFLINE": "1", "CLAMP3_CACHE": str(folder / f"cache_{contender}")}
    told = run_together(command, processes, CLAMP3_CONFIG=json.dumps(knobs), **caches)
    return json.loads(told.splitlines()[-1])


def markdown(figures: dict) -> Iterator[str]:
    """The table, as lines."""
    yield from conditions(figures)
    size = f"{figures['jsonl_bytes'] / 1e9:.1f} GB of JSON"
    yield f"{figures['items']:,} items, {size}; processes that train: {figures['processes']}."
    yield ""
    yield table_row("", "first step after", "of that for the items", "their processor time", "peak memory", "workers'")
    yield "|---|---|---|---|---|---|"
    for contender, starts in figures["starts"].items():
        for name, found in starts.items():
            items, cpu = (found[kind] - starts["few"][kind] for kind in ("seconds", "cpu_seconds"))
            wall = {"few": "", "first": f"{items:.1f} s", "second": at_most(items, TARGET, "{:.1f} s")}[name]
            memory = (f"{found[kind] / 1e9:.2f} GB" for kind in ("peak_bytes", "worker_bytes"))
            busy = "" if name == "few" else f"{cpu:.1f} s"
            yield table_row(f"{contender}, {STARTS[name]}", f"{found['seconds']:.1f} s", wall, busy, *memory)


if __name__ == "__main__":
    sys.exit(main())
