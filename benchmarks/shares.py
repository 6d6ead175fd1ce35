"""Where the time goes when features are computed: the share of each kind of operation, by tower.

    python benchmarks/shares.py                            full-size, in two or three minutes
    python benchmarks/shares.py --only text,long_text      some kinds of files
    python benchmarks/shares.py --quick                    a small model and few files: does it run?
It prints a Markdown table. Files are read before, as benchmarks/extraction.py makes them. What operations take is told
by PyTorch's profiler, and Python is what they leave of the time. Run it on an otherwise idle machine.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median

from report import add_folder_option, add_parts_option, benchmark_parser, conditions, show, table_row

PARTS = ("abc", "text", "audio", "long_abc", "long_text", "long_audio")
# By what the names of operations hold; all else copies, or looks up.
OPERATIONS = {
    "matrix products, some with GELU": ("linear", "mm", "mkl"),
    "attention": ("scaled_dot_product", "softmax"),
    "norms, sums and activations": ("norm", "add", "gelu", "sum", "mul", "div"),
}
COPIES, PYTHON = "copies, lookups and others", "Python"


def main() -> int:
    parser = benchmark_parser(
        __doc__, "of which medians are taken; default 3", "a small model and few files, one round"
    )
    add_parts_option(parser, PARTS)
    add_folder_option(parser, "weights and inputs")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure
    from workload import KINDS, prepare

    rounds = args.rounds or (1 if args.quick else 3)
    workload = prepare(args.folder, args.quick)
    interference = measure.Interference()
    embedder = measure.embedder_of(workload)
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    figures["shares"] = {}
    for name in args.only:
        paths = sorted(workload.inputs(name).iterdir())
        contents = [item.content for item in embedder.read_raw(paths)]
        compute = partial(embedder.embed, KINDS[name].modality, contents)
        for _ in range(2):
            list(compute())
        found = [shares(compute) for _ in range(rounds)]
        figures["shares"][name] = {kind: median(one[kind] for one in found) for kind in (*OPERATIONS, COPIES, PYTHON)}
    figures["interference"] = interference.share()
    show(figures, markdown(figures), args.json)
    return 0


def shares(compute: Callable[[], Iterable]) -> Counter[str]:
    """The shares of the time in which `compute` gives all it has."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        begin = time.perf_counter()
        list(compute())
        whole = time.perf_counter() - begin
    found = Counter[str]()
    for operation in profiled.key_averages():
        found[kind_of(operation.key)] += operation.self_cpu_time_total / 1e6 / whole
    found[PYTHON] = 1 - sum(found.values())
    return found


def kind_of(operation: str) -> str:
    return next((kind for kind, parts in OPERATIONS.items() if any(part in operation for part in parts)), COPIES)


def markdown(figures: dict) -> Iterator[str]:
    """The table, as lines."""
    yield from conditions(figures)
    yield ""
    yield table_row("", *figures["shares"])
    yield "|---" * (len(figures["shares"]) + 1) + "|"
    for kind in (*OPERATIONS, COPIES, PYTHON):
        yield table_row(kind, *(f"{found[kind]:.1%}" for found in figures["shares"].values()))


if __name__ == "__main__":
    sys.exit(main())
