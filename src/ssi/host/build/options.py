"""What a person may wish of a build, and what a build tells him on its way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class BuildOptions:
    """Wishes for a build; the defaults are what `ssi build all` makes."""

    source: Path | None = None
    suite: str = "trixie"
    include: tuple[str, ...] = ()
    recipe: Path | None = None
    force: bool = False


class Report(Protocol):
    """Hears of the progress of a build."""

    def step(self, name: str) -> None:
        """Hear that the step `name` begins, and so the one before has ended."""

    def progress(self, done: int, total: int) -> None:
        """Hear how far the step is; `total` may be an estimate."""

    def note(self, text: str) -> None:
        """Hear something worth a line, such as why there is something to do."""


class Silence:
    """A report for who does not want one."""

    def step(self, name: str) -> None:
        """Ignore it."""

    def progress(self, done: int, total: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
