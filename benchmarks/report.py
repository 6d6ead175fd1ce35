"""What the benchmarks share: their options, and how they show their figures."""

import argparse
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

MUCH_INTERFERENCE = 0.05  # of the processor


def benchmark_parser(description: str, rounds: str, quick: str) -> argparse.ArgumentParser:
    """A parser of --rounds, --quick and --json, with the first two's help; `description` is the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=rounds)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def add_parts_option(parser: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """--only, some of `parts`; all of them by default."""
    names = ",".join(parts)
    parser.add_argument("--only", type=_some_of(parts), default=list(parts), help=f"of {names}, separated by commas")


def add_folder_option(parser: argparse.ArgumentParser, holds: str) -> None:
    """--folder, which `holds` something from one run to the next."""
    folder = Path(tempfile.gettempdir(), "clamp3_benchmark")
    parser.add_argument("--folder", type=Path, default=folder, help=f"for {holds}; default: %(default)s")


def _some_of(parts: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen).difference(parts)):
            raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}")
        return chosen

    return names


def show(figures: dict, lines: Iterable[str], path: Path | None) -> None:
    """Print `lines`, and write `figures` as JSON to `path` if there is one."""
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


def conditions(figures: dict) -> Iterator[str]:
    """Where and how `figures` were measured, as lines."""
    machine, quick = figures["machine"], figures["quick"]
    size = "SMALL models and few items, whose figures say nothing; " if quick else ""
    yield (
        f"{machine['date']}, {size}{machine['threads']} threads of an {machine['cpu']} ({machine['instructions']}), "
        f"torch {machine['torch']}, medians of {figures['rounds']} rounds."
    )
    yield f"Other work took {figures['interference']:.0%} of the processor meanwhile."
    if not figures["interference"] <= MUCH_INTERFERENCE:
        yield "**That is too much for figures to be relied on.**"


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def at_least(value: float, target: float, form: str) -> str:
    return f"{form.format(value)} (target {form.format(target)}{'' if value >= target else ', **missed**'})"


def at_most(value: float, target: float, form: str) -> str:
    return f"{form.format(value)} (target {form.format(target)}{'' if value <= target else ', **missed**'})"
