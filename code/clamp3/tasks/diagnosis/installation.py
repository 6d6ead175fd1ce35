"""Checks of the installation: Python, required and optional libraries, settings, access to the hub."""

import importlib
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import clamp3
from clamp3.tasks.diagnosis.findings import (
    Finding,
    Subject,
    Unchecked,
    describe,
    fault,
    ok,
    one_line,
    unchecked,
    warning,
)

PROJECT = Path(__file__).resolve().parents[4] / "pyproject.toml"  # of a clone; an installed package has none
REINSTALL = 'python -m pip install --upgrade "{}"'
# What a distribution is imported as, where that is not its name.
IMPORTED_AS = {"faiss-cpu": "faiss", "scikit-learn": "sklearn", "pyparsing": "pyparsing"}
EXTRAS = {
    "train": "training's curves and Weights & Biases",
    "index": "approximate search in large indexes, and faster exact search",
    "classify": "the classification commands",
    "mteb": "mteb_eval.py",
}
OLDEST_PYTHON = (3, 10)


def python(_subject: Subject) -> Iterator[Finding]:
    """Python's version against what the package supports."""
    version = platform.python_version()
    described = f"{platform.python_implementation()} {version} on {platform.system()} ({platform.machine()})"
    if sys.version_info < OLDEST_PYTHON:
        yield fault(described, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    elif sys.maxsize < 2**32:
        yield fault(f"{described}, of 32 bits", "use a 64-bit Python, which PyTorch requires")
    elif sys.flags.optimize:
        yield warning(f"{described}, with -O", "run without -O and PYTHONOPTIMIZE, which remove internal checks")
    else:
        yield ok(described)
    if (encoding := sys.getfilesystemencoding()).lower() != "utf-8":
        yield warning(
            f"file names are decoded as {encoding}", "set PYTHONUTF8=1, or files with non-ASCII names will fail"
        )


# ---------- libraries ----------


def declared() -> list[str]:
    """The package's requirements, extras with their markers: a clone's pyproject.toml, else what is installed.

    Raises Unchecked where neither can be read.
    """
    if PROJECT.is_file():
        try:
            import tomllib

            project: dict[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        except (ImportError, KeyError, ValueError, OSError):  # Python 3.10 has no tomllib
            pass
        else:
            extras = project.get("optional-dependencies", {}).items()
            return project["dependencies"] + [_marked(one, extra) for extra, listed in extras for one in listed]
    try:
        return metadata.requires("clamp3") or []
    except metadata.PackageNotFoundError:
        raise Unchecked(
            "versions: clamp3 is not installed, and this Python cannot read its pyproject.toml; "
            "`pip install --no-deps --editable .` in the clone"
        ) from None


def _marked(requirement: str, extra: str) -> str:
    """`requirement`, as metadata list it among those of an extra."""
    plain, _, marker = requirement.partition(";")
    return f'{plain}; extra == "{extra}"' + (f" and ({marker})" if marker.strip() else "")


def requirements(extra: str = "") -> list[Any]:
    """Those of the package, or of one of its extras, that apply to this Python, parsed by `packaging`."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in declared()]
    return [
        one
        for one in parsed
        if bool(one.marker and "extra" in str(one.marker)) == bool(extra)
        and (one.marker is None or one.marker.evaluate({"extra": extra}))
    ]


def version_problem(requirement: Any) -> str | None:
    """Why the installed version of a requirement will not do: "… is not installed" or a wrong version."""
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if installed and requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} {installed or 'of unknown version'}, where {requirement.specifier} is needed"


def import_problem(name: str) -> str | None:
    """Why the distribution `name` cannot be imported."""
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library raises errors of many kinds
        return f"{name} is installed and cannot be imported: {type(error).__name__}: {one_line(error)}"
    return None


def libraries(_subject: Subject) -> Iterator[Finding]:
    """Required libraries: that they can be imported, in versions that pyproject.toml allows."""
    yield from _placed()
    needed = requirements()
    problems = {one.name: version_problem(one) or import_problem(one.name) for one in needed}
    for one in needed:
        if problem := problems[one.name]:
            yield fault(problem, REINSTALL.format(f"{one.name}{one.specifier}"))
    if not any(problems.values()):
        yield ok(", ".join(f"{one.name} {metadata.version(one.name)}" for one in needed))
        yield from _shared_arrays()


def _placed() -> Iterator[Finding]:
    """Whether the library in use is the one beside the script."""
    script, library = Path(sys.argv[0]).resolve(), Path(clamp3.__file__).resolve()
    beside = script.parent / "clamp3"
    if script.is_file() and beside.is_dir() and library.parent != beside:
        yield warning(
            f"the scripts in {script.parent} use the library in {library.parent}",
            "unset PYTHONPATH, or `pip uninstall clamp3`: their versions may differ",
        )


def _shared_arrays() -> Iterator[Finding]:
    """Whether PyTorch was built for this NumPy: else it runs, but cannot take or give arrays."""
    import numpy as np
    import torch

    try:
        same = torch.from_numpy(np.arange(3.0)).numpy().sum() == 3
    except RuntimeError as error:
        yield fault(
            f"torch {torch.__version__} and numpy {np.__version__} do not work together: {one_line(error)}",
            'python -m pip install --upgrade torch, or "numpy<2" with an old one',
        )
        return
    if not same:
        yield fault("torch does not return the arrays it is given", REINSTALL.format("torch"))


def extras(_subject: Subject) -> Iterator[Finding]:
    """Optional libraries: which are installed, and what the others are for."""
    for extra, use in EXTRAS.items():
        needed = requirements(extra)
        if not needed:
            continue  # for this Python there is none
        problems = {one.name: version_problem(one) or import_problem(one.name) for one in needed}
        missing = [name for name, problem in problems.items() if problem and problem.endswith("is not installed")]
        wrong = [problem for name, problem in problems.items() if problem and name not in missing]
        if wrong:
            yield warning(f"{extra} ({use}): {'; '.join(wrong)}", REINSTALL.format(f"clamp3[{extra}]"))
        elif missing:
            yield ok(f'{extra}: {", ".join(missing)} not installed; `pip install "clamp3[{extra}]"` for {use}')
        else:
            yield ok(f"{extra}: {', '.join(f'{one.name} {metadata.version(one.name)}' for one in needed)}")


def settings(subject: Subject) -> Iterator[Finding]:
    """config.py and CLAMP3_CONFIG."""
    if subject.knobs_error:
        yield fault(subject.knobs_error, "fix code/config.py or CLAMP3_CONFIG; no command runs until then")
    else:
        said = os.environ.get("CLAMP3_CONFIG", "").strip()
        yield ok(f"config.py{', changed by CLAMP3_CONFIG' if said else ''}: all knobs are valid")


# ---------- the hub ----------


def hub(subject: Subject) -> Iterator[Finding]:
    """Whether weights can be downloaded; the hub is contacted only on request."""
    from huggingface_hub import constants

    place = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        said = "HF_HUB_OFFLINE is set: nothing is downloaded"
        yield warning(said, "unset it to download weights") if subject.online else ok(said)
    elif not subject.online:
        yield unchecked(f"{place} was not contacted", "--online contacts it")
    else:
        yield from _asked(place)


def _asked(place: str) -> Iterable[Finding]:
    from huggingface_hub import get_hf_file_metadata

    from clamp3.models.hub import file_url
    from clamp3.models.releases import RELEASES

    release = RELEASES["saas"]
    try:
        size = get_hf_file_metadata(file_url(release.repository, release.file_name), timeout=10).size
    except Exception as error:  # the hub's client raises errors of many kinds
        return [
            warning(
                f"{place} cannot be reached, or has no {release.repository}: {describe(error)}",
                "check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT; only downloads need them",
            )
        ]
    if release.size is not None and size != release.size:
        return [warning(f"{place} has another {release.file_name}: {size} bytes", "check HF_ENDPOINT")]
    return [ok(f"{place} can be reached, and has the released weights ({release.repository})")]
