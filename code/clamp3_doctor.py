"""Looks whether everything that CLaMP 3 needs is there and works, and says what to do where it does not.

All checks, with the weights that config.py names (the small model's, where those are not here):
    python clamp3_doctor.py
With other weights: those of a release, the small model, or a file of your own:
    python clamp3_doctor.py --variant saas
    python clamp3_doctor.py --weights my_weights.pth
Some checks only; and whether the Hugging Face hub can be reached, which nothing else asks:
    python clamp3_doctor.py --only memory "shared memory" threads
    python clamp3_doctor.py --only hub --online
As JSON, for a report of what is wrong:
    python clamp3_doctor.py --json -
It looks at the installation (Python, libraries, decoders, converters), the machine (processor, GPUs, threads, memory,
disks, limits), the folders that are written to, and the weights (whole, finite, not collapsed, with a tokenizer that
knows its scripts, and with texts closer to their tunes than to others). It changes nothing, and downloads nothing.
Each finding is ok, a warning (works less well, or not in every use), a fault (does not work, or gives wrong results),
or unchecked (and why). The exit code is 1 if there is a fault, else 0.
"""

import sys
from argparse import Namespace
from pathlib import Path

from clamp3.cli.doctor import diagnose, save_findings, show
from clamp3.cli.options import run, script_parser
from clamp3.errors import UserError
from clamp3.tasks.diagnosis.checks import CHECKS
from clamp3.tasks.diagnosis.findings import Subject, describe


def main() -> int:
    args = parse()
    chosen = {name: CHECKS[name] for name in args.only or CHECKS}
    as_json = str(args.json) == "-"
    findings = show(diagnose(chosen, subject_of(args)), list(chosen), sys.stderr if as_json else sys.stdout)
    save_findings(args.json, findings)
    return 1 if any(finding.state == "fault" for finding in findings) else 0


def parse() -> Namespace:
    parser = script_parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--variant", choices=("saas", "c2", "tiny"), help="the weights to look at, instead of config.py's"
    )
    which.add_argument(
        "--weights", type=Path, metavar="FILE", help="the same, a file; its sizes are those of config.py"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("."), help="where outputs will go; default: here")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument(
        "--online", action="store_true", help="also ask the Hugging Face hub whether it can be reached"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the findings as JSON lines too; - prints these instead of the table",
    )
    return parser.parse_args()


def subject_of(args: Namespace) -> Subject:
    """What the options, config.py and CLAMP3_CONFIG say."""
    subject = Subject(variant=args.variant, path=args.weights, output_dir=args.output_dir, online=args.online)
    subject.asked_for = bool(args.variant or args.weights)
    try:
        import config
    except Exception as error:  # whatever has been written into it
        subject.knobs_error = str(error) if isinstance(error, UserError) else f"config.py: {describe(error)}"
        if not subject.asked_for:
            subject.variant = "tiny"
        return subject
    subject.knobs = {name: value for name, value in vars(config).items() if name.isupper()}
    if not args.weights:
        subject.path, subject.folder = Path(config.CLAMP3_WEIGHTS_PATH), Path(__file__).resolve().parent
    return subject


if __name__ == "__main__":
    run(main, keeps_work=False)
