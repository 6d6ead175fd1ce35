"""Findings, what the checks examine, and how a check is run so that its own failure becomes a finding.

This module imports no third-party package, since any of them may be the broken one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clamp3.errors import UserError

if TYPE_CHECKING:
    from clamp3.features.embedder import Embedder
    from clamp3.models.releases import Release
    from clamp3.sizes import ModelSizes

State = Literal["ok", "warning", "fault", "unchecked"]
GB = 1e9  # bytes
LONGEST = 300  # characters of a message
SEE_LIBRARIES = "fix what the check `libraries` reports, then run this again"
REPORT_IT = "the commands are likely to fail in the same way; if the message does not help, please report it"


@dataclass(frozen=True)
class Finding:
    """One result of a check; `advice` says what to do, where there is something to do."""

    state: State
    found: str
    advice: str = ""
    check: str = ""

    def record(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def warning(found: str, advice: str) -> Finding:
    """Something is slow, or will fail in some uses."""
    return Finding("warning", found, advice)


def fault(found: str, advice: str) -> Finding:
    """Something does not work, or gives wrong results."""
    return Finding("fault", found, advice)


def unchecked(found: str, advice: str = "") -> Finding:
    """Something that could not be examined, and why."""
    return Finding("unchecked", found, advice)


class Unchecked(Exception):
    """Raised by a check that does not apply or cannot be made; the message says why."""


@dataclass
class Subject:
    """What is examined: the installation, the machine, and the weights of one model."""

    knobs: Mapping[str, Any] = field(default_factory=dict)  # of config.py; empty where it cannot be read
    knobs_error: str = ""  # why it cannot
    variant: str | None = None  # "saas", "c2" or "tiny"; without one the weights are at
    path: Path | None = None  # a file, as the user or config.py names it
    folder: Path | None = None  # where else it may be
    asked_for: bool = False  # by the user, so that no other weights will do
    output_dir: Path = Path(".")
    online: bool = False  # whether the hub may be asked

    @property
    def candidates(self) -> tuple[Path, ...]:
        """Where the weights may be."""
        from clamp3.models.releases import RELEASES

        path = Path(RELEASES[self.variant].file_name) if self.variant in RELEASES else self.path
        if path is None:
            return ()
        return (path, self.folder / path) if self.folder else (path,)

    @cached_property
    def found(self) -> Path | None:
        """The file of the weights that are asked for; None where it is not on this machine.

        Raises UserError where the small model is asked for and is not there.
        """
        from clamp3.models.releases import TINY, find_in_folder, find_weights, tiny_sizes

        if self.variant == "tiny":
            tiny_sizes()
            return TINY / "clamp3.safetensors"
        beside = (found for path in self.candidates if (found := find_in_folder(path)))
        return next(beside, None) or next((found for path in self.candidates if (found := find_weights(path))), None)

    @cached_property
    def weights(self) -> Path | None:
        """`found`; else the small model's file, where the weights that config.py names are a release's."""
        from clamp3.models.releases import TINY

        falls_back = self.found is None and self.release and not self.asked_for and TINY.is_dir()
        return TINY / "clamp3.safetensors" if falls_back else self.found

    @property
    def release(self) -> "Release | None":
        """The release whose weights are asked for, by the file's name."""
        from clamp3.models.releases import release_named

        return release_named(self.candidates[0].name) if self.candidates else None

    @property
    def is_tiny(self) -> bool:
        """Whether it is the small model that is looked at."""
        from clamp3.models.releases import TINY

        return self.weights is not None and self.weights.resolve().parent == TINY.resolve()

    @property
    def sizes(self) -> "ModelSizes":
        """Those of the model."""
        from clamp3.models.releases import tiny_sizes
        from clamp3.sizes import ModelSizes

        if self.is_tiny:
            return tiny_sizes()
        return ModelSizes() if self.variant else ModelSizes.from_knobs(self.knobs)

    @cached_property
    def embedder(self) -> "Embedder":
        """The model on the CPU. Raises Unchecked where it does not load, which the check of its file says."""
        try:
            return self.load()
        except UserError as error:
            raise Unchecked(f"the weights cannot be loaded: {str(error).splitlines()[0]}") from None

    def load(self, precision: str = "fp32") -> "Embedder":
        """A model on the CPU. Raises UserError where the weights do not load, Unchecked where there are none."""
        from clamp3.features.embedder import Embedder
        from clamp3.models.pretrained import load_pretrained
        from clamp3.models.releases import TINY

        if self.weights is None:
            raise Unchecked("there are no weights")
        mert = TINY / "mert" if self.is_tiny else None
        found = load_pretrained(self.weights, configured=self.sizes)
        return Embedder(found.model, found.sizes, "cpu", precision, mert=mert, weights=found.path)


Check = Callable[[Subject], Iterable[Finding]]


def run_check(name: str, check: Check, subject: Subject) -> list[Finding]:
    """What `check` finds, under its `name`. Whatever goes wrong in it is a finding too, but Ctrl-C."""
    found: list[Finding] = []
    try:
        for finding in check(subject):
            found.append(replace(finding, check=name))
    except Unchecked as reason:
        found.append(Finding("unchecked", str(reason), check=name))
    except KeyboardInterrupt:
        raise
    except ImportError as error:
        found.append(Finding("unchecked", f"a package cannot be imported: {one_line(error)}", SEE_LIBRARIES, name))
    except UserError as error:
        first, *others = str(error).splitlines() or ["no reason given"]
        found.append(Finding("fault", first, "; ".join(line.strip() for line in others), name))
    except BaseException as error:  # Rust's panics are no Exceptions, nor is SystemExit
        found.append(Finding("fault", f"the check failed: {describe(error)}", REPORT_IT, name))
    return found


def one_line(error: BaseException) -> str:
    """What `error` says, its first line, not too long."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def describe(error: BaseException) -> str:
    """The kind of `error`, and what it says."""
    return f"{type(error).__name__}: {one_line(error)}"
