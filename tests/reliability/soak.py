"""The long form of the tests of reliability: prints one table of what was tried, what survived and what was lost.

    make soak                                                    # 50 kills a command, 20,000 inputs a parser, an hour
    python tests/reliability/soak.py --kills 5 --inputs 1000 --minutes 5 --json soak.json
    python tests/reliability/soak.py --only "hostile input" --rows ABC MIDI --seed 7
The inputs that were lost are kept in --keep, with their tracebacks. The exit code is 1 if anything was lost.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("code", "tests", "examples")]

PARTS = ("kills", "hostile input", "concurrency", "long run")
SECONDS_A_ROUND = 60  # of writers and readers, in the long form


def main() -> int:
    args = options()
    from clamp3.cli.output import print_table
    from kills import kill_marked, temporary_folder

    folder, rows = temporary_folder(), []
    os.environ["CLAMP3_CACHE"] = str(folder / "cache")  # not the user's
    parts = {"kills": kill, "hostile input": feed, "concurrency": share, "long run": embed}
    try:
        for part in args.only or PARTS:
            for row in parts[part](args, folder):
                rows.append({"part": part, **row})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                if args.json:  # after each row, so that an end before the end loses none
                    args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finally:
        kill_marked(f"{folder}/")  # of a soak that was ended itself
        if not any(row["lost"] for row in rows):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"what was lost lies in {folder} and {args.keep}")
    shown = ("part", "row", "tried", "survived", "lost", "seconds", "remarks")
    print_table(shown, [[row[name] for name in shown] for row in rows])
    for row in rows:
        for problem in row["problems"]:
            print(f"{row['row']}: {problem}")
    lost = sum(row["lost"] for row in rows)
    print(f"seed {args.seed}: {sum(row['tried'] for row in rows)} tried, {lost} lost")
    return int(lost > 0)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each command; default: %(default)s")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each parser; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=60, help="of embedding; default: %(default)s")
    parser.add_argument("--scale", type=float, default=1, help="of the commands' inputs; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="commands or parsers, by name; default: all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: another one each time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON lines too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", default=Path("soak_lost"), help="default: %(default)s")
    return parser.parse_args()


def row(name: str, tried: int, lost: int, seconds: float, problems: list[str], remarks: object = "") -> dict:
    counted = {"row": name, "tried": tried, "survived": tried - lost, "lost": lost, "seconds": round(seconds)}
    return {**counted, "remarks": remarks, "problems": problems}


def kill(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    from commands import make_bench
    from kills import survive

    bench, chance = make_bench(folder / "bench", args.scale), Random(args.seed)
    for name, command in bench.commands().items():
        for processes in command.processes if not args.rows or name in args.rows else ():
            place = folder / "kills" / f"{name} {processes}".replace(" ", "_")
            with named_failure(f"{name}, {processes}") as failures:
                found = survive(name, command, place, processes, args.kills, chance)
                remarks = "; ".join(sorted(found.remarks))
                yield row(found.name, found.tried, found.lost, found.seconds, found.problems, remarks)
            yield from failures


def feed(args: argparse.Namespace, _folder: Path) -> Iterator[dict]:
    from fuzz import fuzz
    from parsers import PARSERS

    for name, parser in PARSERS.items():
        if not args.rows or name in args.rows:
            found = fuzz(name, parser, args.inputs, args.seed, args.keep)
            remarks = f"{found.read} read, {found.refused} refused"
            problems = [f"{count} x {kind}" for kind, count in found.kinds.most_common()]
            yield row(name, found.tried, len(found.lost), found.seconds, problems, remarks)


def share(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    from commands import make_bench
    from concurrency import namespace, two_at_once, writers_and_readers

    bench, chance, rounds = make_bench(folder / "shared", args.scale), Random(args.seed), max(1, args.kills // 5)
    commands, prefix = bench.commands(), namespace()
    extraction, embedding = commands["extract_clamp3"], commands["clamp3_embd"]
    cases = [
        ("two extractions into one folder", extraction, (), False),
        ("two extractions, two PID namespaces", extraction, prefix, False),
        ("two clamp3_embd, cache deleted in use", embedding, (), True),
    ]
    for number, (name, command, words, delete) in enumerate(cases):
        if "namespaces" in name and not prefix:
            yield row(name, 0, 0, 0, [], "skipped: PID namespaces are not allowed here")
            continue
        with named_failure(name) as failures:
            found = two_at_once(name, command, folder / f"shared{number}", rounds, chance, words, delete)
            remarks = "; ".join(sorted(found.remarks))
            yield row(found.name, found.tried, found.lost, found.seconds, found.problems, remarks)
        yield from failures
    seconds = SECONDS_A_ROUND if args.kills >= 50 else max(10, args.kills)
    found = writers_and_readers(folder / "crowd", seconds)
    yield row(found.name, found.tried, found.lost, found.seconds, found.problems, f"for {seconds} s")


def embed(args: argparse.Namespace, _folder: Path) -> Iterator[dict]:
    from long_run import MOST

    begin = time.perf_counter()
    script = Path(__file__).with_name("long_run.py")
    command = [sys.executable, "-W", "ignore", str(script), str(args.minutes)]
    done = subprocess.run(command, capture_output=True, text=True)
    name, seconds = f"embedding for {args.minutes:g} minutes", time.perf_counter() - begin
    if done.returncode:
        yield row(name, 1, 1, seconds, [done.stderr[-1000:]])
        return
    figures = json.loads(done.stdout.splitlines()[-1])
    problems = [f"{figures[what]} {what}, over {most}" for what, most in MOST.items() if figures[what] > most]
    said = ", ".join(f"{figure} {what}" for what, figure in figures.items())
    yield row(name, figures["files"], len(problems), seconds, problems, said)


@contextlib.contextmanager
def named_failure(name: str) -> Iterator[list[dict]]:
    """What goes wrong before anything was killed becomes a row, and the others go on."""
    failures: list[dict] = []
    try:
        yield failures
    except Exception as error:
        failures.append(row(name, 1, 1, 0, [f"{type(error).__name__}: {error}"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
