"""The Debian packages that this project needs on the host: reads packages.txt."""

from __future__ import annotations

import dataclasses
import enum
import glob
import shutil
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")


class Need(enum.Enum):
    """What a package is needed for."""

    RUN = "run"
    BUILD = "build"
    TEST = "test"
    EXTRA = "extra"
    OFFER = "offer"


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """A package, how to see whether it is there, and why it is wanted."""

    name: str
    sign: str
    need: Need
    reason: str

    def find(self) -> str | None:
        """Return where its program or file is, None when it is missing."""
        if not self.sign.startswith("/"):
            return shutil.which(self.sign)
        return next(iter(sorted(glob.glob(self.sign))), None)  # noqa: PTH207 - the pattern is absolute


def parse_packages(text: str) -> list[Package]:
    """Return the packages that `text`, a file like ours, lists."""
    packages = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, sign, need, reason = (field.strip() for field in line.split("|", 3))
            packages.append(Package(name, sign, Need(need), reason))
    return packages


def read_packages() -> list[Package]:
    """Return the packages of our list."""
    return parse_packages(LIST.read_text())
