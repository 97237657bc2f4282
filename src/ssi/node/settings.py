"""What the kernel command line tells a node: who it is, and of which cluster."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ssi.common.errors import UsageError
from ssi.common.nodes import parse_node


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """A node's wishes; read once at its start."""

    node: int
    cluster: str = "ssi"
    token_ms: int = 1000
    root: str = "/dev/ubda"
    swap: str = "/dev/ubdb"
    line: str = "/dev/ttyS0"
    console: str = "tty0"
    interface: str = "vec0"


def parse_settings(cmdline: str) -> Settings:
    """Return the settings in the words ``ssi.KEY=VALUE`` of `cmdline`, or raise UsageError."""
    words = (word.partition("=") for word in cmdline.split() if word.startswith("ssi."))
    given = {key.removeprefix("ssi."): value for key, _, value in words}
    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    if unknown := given.keys() - kinds.keys():
        raise UsageError(f"kernel command line: unknown word ssi.{min(unknown)}")
    if "node" not in given:
        raise UsageError("kernel command line: ssi.node=N is missing")
    node = parse_node(given.pop("node"))
    token_ms = given.pop("token_ms", "1000")
    if not re.fullmatch("[0-9]{1,9}", token_ms):
        raise UsageError(f"kernel command line: ssi.token_ms={token_ms} is no number")
    return Settings(node=node, token_ms=int(token_ms), **given)


def read_settings() -> Settings:
    """Return the settings of the running kernel."""
    return parse_settings(Path("/proc/cmdline").read_text())
