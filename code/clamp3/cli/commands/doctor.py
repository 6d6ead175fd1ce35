"""Checks that everything CLaMP 3 needs is present and works, and says what to do where it does not.

All checks, with the weights that config.py names (or the small model's, if those are not on this machine):
    python clamp3_doctor.py
With other weights: those of a release, the small model, or a file of your own:
    python clamp3_doctor.py --variant saas
    python clamp3_doctor.py --weights my_weights.pth
Some of the checks; and whether the Hugging Face hub can be reached, which is checked only on request:
    python clamp3_doctor.py --only memory "shared memory" threads
    python clamp3_doctor.py --only hub --online
As JSON lines, to attach to a bug report:
    python clamp3_doctor.py --json -
It checks the installation (Python, libraries, decoders, converters), the machine (processor, GPUs, threads, memory,
disks, limits), the folders that are written to, and the weights: that the file is intact, its tensors are finite, no
tower has collapsed, the tokenizer knows ten scripts, and tunes lie closer to their own descriptions than to others.
It changes nothing and downloads nothing. A finding is ok, a warning (slow, or will fail in some uses), a fault (does
not work, or gives wrong results) or unchecked (with the reason). The exit code is 1 if there is a fault, else 0.
"""

import sys
from argparse import Namespace
from pathlib import Path

from clamp3.cli.doctor import diagnose, save_findings, show
from clamp3.cli.options import script_parser
from clamp3.cli.settings import config_file, load_knobs
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
        "--variant", choices=("saas", "c2", "tiny"), help="the weights to check, in place of config.py's"
    )
    which.add_argument(
        "--weights", type=Path, metavar="FILE", help="a file of weights to check; its sizes are those of config.py"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("."), help="where outputs will be written; default: here"
    )
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"run only these, of: {', '.join(CHECKS)}"
    )
    parser.add_argument("--online", action="store_true", help="also contact the Hugging Face hub")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the findings as JSON lines; - prints them, and the table to stderr",
    )
    return parser.parse_args()


def subject_of(args: Namespace) -> Subject:
    """What the options, config.py and CLAMP3_CONFIG say."""
    subject = Subject(variant=args.variant, path=args.weights, output_dir=args.output_dir, online=args.online)
    subject.asked_for = bool(args.variant or args.weights)
    try:
        knobs = load_knobs()
    except Exception as error:  # whatever has been written into it
        subject.knobs_error = str(error) if isinstance(error, UserError) else f"config.py: {describe(error)}"
        if not subject.asked_for:
            subject.variant = "tiny"
        return subject
    subject.knobs = {name: value for name, value in knobs.items() if name.isupper()}
    if not args.weights:
        subject.path, subject.folder = Path(knobs["CLAMP3_WEIGHTS_PATH"]), config_file().parent
    return subject
