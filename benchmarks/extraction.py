"""How fast features are extracted, against a plain loop that does what the original does, and a batched one.

    python benchmarks/extraction.py                            all of it, full-size: some ten minutes on two cores
    python benchmarks/extraction.py --only abc --rounds 2      one kind of file, in a minute or two
    python benchmarks/extraction.py --only process             whole processes: start, peak memory, first feature
    python benchmarks/extraction.py --json figures.json        the figures as JSON too
    python benchmarks/extraction.py --quick                    a small model and few files: does it run?
It prints Markdown tables, with each target beside its figure. The weights (2.6 GB, random) are written to --folder
once. Run it on an otherwise idle machine: it says how much of the processor other work took. What is measured, and
how, is in benchmarks/README.md.
"""

import sys
from collections.abc import Iterator

from report import (
    add_folder_option,
    add_parts_option,
    at_least,
    at_most,
    benchmark_parser,
    conditions,
    show,
    table_row,
)

PARTS = ("abc", "text", "audio", "long_abc", "long_text", "long_audio", "process")
TARGETS = {"abc": 18.0, "text": 5.0, "audio": 3.8}  # times the plain loop, in fp32
BATCHED_TARGET, FULL_LENGTH_TARGET = 1.5, 1.1  # times the batched loop, for files of mixed lengths and full length
PEAK_TARGET, BF16_TARGET = 0.75, 2.5
MEMORY_TARGET, START_TARGET = 1.5e9, 4.0  # bytes, for ABC alone; seconds beyond the imports
PROCESS_INPUTS = {"few": "4 tunes", "abc": "ABC", "text": "text", "audio": "audio features"}
LONG = "long_"  # what kinds of full length begin with


def main() -> int:
    parser = benchmark_parser(
        __doc__,
        "of all contenders in turn, of which medians are taken; default 5",
        "a small model, few files, one round",
    )
    add_parts_option(parser, PARTS)
    add_folder_option(parser, "weights and inputs")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure
    from workload import KINDS, prepare

    rounds = args.rounds or (1 if args.quick else 5)
    kinds = [KINDS[name] for name in KINDS if name in args.only]
    short = [kind for kind in kinds if not kind.name.startswith(LONG)]
    workload = prepare(args.folder, args.quick)
    interference = measure.Interference()
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    if "process" in args.only:
        figures["processes"] = measure.measure_processes(workload, short or list(KINDS.values())[:3], rounds)
    if kinds:
        figures |= measure.measure_kinds(workload, kinds, rounds)
    figures["interference"] = interference.share()
    show(figures, markdown(figures), args.json)
    return 0


def markdown(figures: dict) -> Iterator[str]:
    """The tables, as lines."""
    yield from conditions(figures)
    if "kinds" in figures:
        peak = figures["peak_gflops"]
        yield f"Matrix-multiply peak, GFLOP/s: {', '.join(f'{name} {value:,.0f}' for name, value in peak.items())}."
        yield ""
        yield from kinds_table(figures["kinds"])
    if "processes" in figures:
        yield ""
        yield from process_table(figures["processes"])


def kinds_table(kinds: dict[str, dict]) -> Iterator[str]:
    """One column for each kind of file."""

    def row(title: str, cell) -> str:
        return table_row(title, *(cell(name, found) for name, found in kinds.items()))

    yield row("", lambda name, found: f"{found['files']} {name} files")
    yield "|---|" + "---|" * len(kinds)
    yield row("mean length", lambda _, found: f"{found['mean_length']:.1f} {found['unit']}")
    yield row("the plain loop computes, of that", lambda _, found: f"{found['padding_ratio']:.1f}x")
    yield row("plain loop, fp32", lambda _, found: rate(found, "loop"))
    yield row("batched loop, fp32", lambda _, found: rate(found, "batched"))
    yield row("clamp3, fp32", lambda _, found: rate(found, "fp32"))
    yield row("… over the plain loop", over_loop)
    yield row("… over the batched loop", over_batched)
    yield row("… of the fp32 peak", lambda _, found: at_least(found["peak_share"]["fp32"], PEAK_TARGET, "{:.0%}"))
    yield row("plain loop, padding counted, of that peak", lambda _, found: f"{found['peak_share']['loop']:.0%}")
    yield row("least cosine, fp32 to the plain loop", lambda _, found: f"{found['cosine_fp32_to_loop']:.6f}")
    if not all("bf16_over_fp32" in found for found in kinds.values()):
        return
    yield row("clamp3, bf16", lambda _, found: rate(found, "bf16"))
    yield row("… over fp32", lambda _, found: at_least(found["bf16_over_fp32"], BF16_TARGET, "{:.1f}x"))
    yield row("… of the bf16 peak", lambda _, found: f"{found['peak_share']['bf16']:.0%}")
    yield row("least cosine, bf16 to fp32", lambda _, found: f"{found['cosine_bf16_to_fp32']:.5f}")
    yield row("… mean feature subtracted", lambda _, found: f"{found['centred_cosine_bf16_to_fp32']:.5f}")


def over_loop(name: str, found: dict) -> str:
    ratio = found["fp32_over_loop"]
    return at_least(ratio, TARGETS[name], "{:.1f}x") if name in TARGETS else f"{ratio:.1f}x"


def over_batched(name: str, found: dict) -> str:
    return at_least(
        found["fp32_over_batched"], FULL_LENGTH_TARGET if name.startswith(LONG) else BATCHED_TARGET, "{:.2f}x"
    )


def process_table(processes: dict[str, dict]) -> Iterator[str]:
    """One row for each process."""
    yield table_row("process", "wall time", "peak memory", "first feature after")
    yield "|---|---|---|---|"
    for name, found in processes.items():
        memory = f"{found['peak_bytes'] / 1e9:.2f} GB"
        if name == "abc":
            memory = at_most(found["peak_bytes"] / 1e9, MEMORY_TARGET / 1e9, "{:.2f} GB")
        first = found["first_output_seconds"]
        title = f"`{name}`" if name.startswith("import") else f"extract_clamp3.py, {PROCESS_INPUTS[name]}"
        yield table_row(title, f"{found['seconds']:.2f} s", memory, "" if first is None else f"{first:.2f} s")
    imports = [name for name in processes if name.startswith("import")]
    excess = [processes["few"]["seconds"] - processes[name]["seconds"] for name in imports]
    yield ""
    yield f"The 4 tunes, beyond `{imports[0]}`: {at_most(excess[0], START_TARGET, '{:.2f} s')}; "
    yield f"beyond `{imports[1]}`, the part of it that every model needs: {excess[1]:.2f} s."


def rate(found: dict, contender: str) -> str:
    return f"{found['files_per_s'][contender]:.1f} files/s"


if __name__ == "__main__":
    sys.exit(main())
