"""What is installed: the version, the weights that commands use by default, the settings and the optional packages.

    clamp3 info
All knobs that CLAMP3_CONFIG sets, with their values:
    clamp3 info --knobs
    CLAMP3_CONFIG=mine.json clamp3 info --knobs
`clamp3 doctor` checks that all of it works.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clamp3
from clamp3.cli.names import for_console
from clamp3.cli.options import script_parser
from clamp3.cli.output import print_line
from clamp3.cli.settings import config_file, configured_path, load_knobs


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--knobs", action="store_true", help="list all knobs")
    args = parser.parse_args()
    knobs = load_knobs()
    if args.knobs:
        for name, value in knobs.items():
            if name.isupper():
                print_line(f"{name} = {value!r}")
        return 0
    facts = installation(knobs)
    for name, fact in facts.items():
        print_line(f"{name:{max(map(len, facts))}}  {fact}")
    return 0


def installation(knobs: Mapping[str, Any]) -> dict[str, str]:
    """What is installed and where, for people."""
    from clamp3.io.files import user_cache
    from clamp3.models.releases import TINY, find_weights

    def place(name: str) -> str:
        found = find_weights(configured_path(knobs, knobs[name]))
        return str(found or f"{knobs[name]}, which is not here")

    said = f", changed by CLAMP3_CONFIG={os.environ['CLAMP3_CONFIG']}" if os.environ.get("CLAMP3_CONFIG") else ""
    return {
        "clamp3": f"{clamp3.__version__} in {Path(clamp3.__file__).parent}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "knobs": f"{config_file()}{said}",
        "weights": place("CLAMP3_WEIGHTS_PATH"),
        "M3 weights": place("M3_WEIGHTS_PATH"),
        "small model": f"{TINY} (--variant tiny)",
        "feature cache": str(user_cache()),
        **extras(),
    }


def extras() -> dict[str, str]:
    """Of each extra, what is installed of it and how to install the rest."""
    from clamp3.tasks.diagnosis.findings import Unchecked
    from clamp3.tasks.diagnosis.installation import EXTRAS, requirements, version_problem

    found = {}
    try:
        for extra, use in EXTRAS.items():
            missing = [problem for one in requirements(extra) if (problem := version_problem(one))]
            state = f'{"; ".join(missing)}: pip install "clamp3[{extra}]"' if missing else "installed"
            found[f"extra {extra}"] = f"{for_console(use)}: {state}"
    except Unchecked as error:
        found["extras"] = str(error)
    return found
