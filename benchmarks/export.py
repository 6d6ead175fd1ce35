"""ONNX files against the model that they were exported from: items a second, and the start of a process.

    python benchmarks/export.py                     full size, random weights: some ten minutes on two cores
    python benchmarks/export.py --only text         one tower alone
    python benchmarks/export.py --tiny              the small model of the package, a minute
    python benchmarks/export.py --quick             a small model and few files: does it run?
Contenders take turns: the model in PyTorch, ONNX files in fp32, and in int8 with all matrices quantized (the bounds of
`clamp3 export` are left aside, for with random weights neighbours mean nothing). Items are folk tunes and their
descriptions, read before. The weights (2.6 GB) and ONNX files are written to --folder. What is measured, and how, is
in benchmarks/README.md.
"""

import logging
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from report import add_folder_option, add_parts_option, benchmark_parser, conditions, show, table_row

TOWERS = {"abc": "symbolic", "text": "text"}  # by the kind of files
QUERY = "import time; begin = time.perf_counter(); from clamp3 import Embedder; "
QUERY += "Embedder.from_pretrained({weights!r}, 'cpu').embed_text(['a slow air']); print(time.perf_counter() - begin)"


def main() -> int:
    parser = benchmark_parser(
        __doc__, "of all contenders in turn, of which medians are taken; default 3", "a small model, one round"
    )
    parser.add_argument("--tiny", action="store_true", help="the small model of the package")
    add_parts_option(parser, TOWERS)
    add_folder_option(parser, "weights and ONNX files")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure
    from clamp3.features.embedder import Embedder
    from workload import prepare

    rounds = args.rounds or (1 if args.quick else 3)
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    workload = prepare(args.folder, small=args.quick or args.tiny)
    model = "tiny" if args.tiny else str(workload.folder / "model")
    if not args.tiny and not Path(model).is_dir():
        Embedder.from_pretrained(workload.weights, "cpu", sizes=workload.sizes).save_pretrained(model)
    folder = workload.folder / ("onnx_tiny" if args.tiny else "onnx")
    reports = {precision: export(model, folder / precision, args.only) for precision in ("fp32", "int8")}
    contenders = {"torch": model, **{name: str(folder / name) for name in reports}}
    interference = measure.Interference()
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds, "reports": reports}
    figures["items_per_s"] = speeds(contenders, workload, rounds, args.only)
    if "text" in args.only:
        figures["first_text_seconds"] = {
            name: median(first_text(weights) for _ in range(rounds)) for name, weights in contenders.items()
        }
    figures["interference"] = interference.share()
    show(figures, markdown(figures), args.json)
    return 0


def export(model: str, folder: Path, kinds: list[str]) -> list[dict]:
    """The report of an export of the towers that read these kinds of files, whatever it says."""
    from clamp3.tasks import exporting

    shutil.rmtree(folder, ignore_errors=True)
    exporting.LEAST_COSINE, exporting.LEAST_OVERLAP = dict.fromkeys(exporting.LEAST_COSINE, -1.0), 0.0
    found = exporting.export_model(model, folder, folder.name == "int8", [TOWERS[kind] for kind in kinds])
    return [exporting.asdict(one) for one in found]


def speeds(contenders: dict[str, str], workload, rounds: int, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Items a second of each contender, of tunes and of texts."""
    from clamp3.features.embedder import Embedder

    embedders = {name: Embedder.from_pretrained(weights, "cpu") for name, weights in contenders.items()}
    found: dict[str, dict[str, float]] = {}
    for kind in kinds:
        modality = TOWERS[kind]
        reader = embedders["torch"]
        items = [item.content for item in reader.read_raw(sorted(workload.inputs(kind).iterdir()))]
        times: dict[str, list[float]] = {name: [] for name in embedders}
        for turn in range(rounds + 1):  # the first of which only warms up
            for name, embedder in embedders.items():
                begin = time.perf_counter()
                assert len(list(embedder.embed(modality, items))) == len(items)
                if turn:
                    times[name].append(time.perf_counter() - begin)
        found[kind] = {name: len(items) / median(one) for name, one in times.items()}
    return found


def first_text(weights: str) -> float:
    """Seconds of a new process until it has the feature of a text, without Python's own start."""
    command = [sys.executable, "-W", "ignore", "-c", QUERY.format(weights=weights)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def markdown(figures: dict) -> Iterator[str]:
    """The tables, as lines."""
    yield from conditions(figures)
    yield ""
    names = ("torch", "fp32", "int8")
    yield table_row("", "torch, fp32", "ONNX, fp32", "ONNX, int8")
    yield "|---|---|---|---|"
    for kind, found in figures["items_per_s"].items():
        cells = (f"{found[name]:.1f}/s ({found[name] / found['torch']:.2f}x)" for name in names)
        yield table_row({"abc": "tunes (ABC)", "text": "texts"}[kind], *cells)
    if first := figures.get("first_text_seconds"):
        yield table_row("first text of a process", *(f"{first[name]:.2f} s" for name in names))
    for exact, rounded in zip(figures["reports"]["fp32"], figures["reports"]["int8"], strict=True):
        sizes = exact["bytes_before"], exact["bytes_after"], rounded["bytes_after"]
        yield table_row(f"{exact['tower']} tower", *(f"{size / 1e6:,.1f} MB" for size in sizes))
        yield table_row("… least cosine to torch", "", *(f"{one['cosine_min']:.6f}" for one in (exact, rounded)))


if __name__ == "__main__":
    sys.exit(main())
