"""Shards of a folder of inputs: the shares of runs that any scheduler starts, and that know nothing of each other."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

FAILURES_FILE = "failures.jsonl"
WARNINGS_FILE = "warnings.jsonl"
REPORT_NAME = re.compile(r"(failures|warnings)(-\d+-of-\d+)?\.jsonl")


@dataclass(frozen=True)
class Shard:
    """The `number`th of `count` shares, from 1 on."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """That of "3/16". Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise ValueError(f"{text!r} is no share of a folder, such as 3/16")
        return shard

    def takes(self, path: Path) -> bool:
        """Whether an input is in this share, by its path relative to the folder of inputs.

        The SHA-256 of the path decides, so that an input stays in its share whatever others come and go.
        """
        digest = hashlib.sha256(os.fsencode(path.as_posix())).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def report_name(name: str, shard: Shard | None) -> str:
    """What FAILURES_FILE or WARNINGS_FILE is called for a run of one share, or of all."""
    return name if shard is None else name.replace(".", f"-{shard.number}-of-{shard.count}.")
