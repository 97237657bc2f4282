"""The kernel's configuration: fragments that say what is wanted, and whether it came true."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host.paths import IMAGE

FRAGMENTS = IMAGE / "kernel"

SET = re.compile(r"(CONFIG_\w+)=(.*)")
UNSET = re.compile(r"# (CONFIG_\w+) is not set")


def parse_config(text: str) -> dict[str, str]:
    """Return the options in `text`, a fragment or a .config; one that is not set is ``n``."""
    options = {}
    for line in text.splitlines():
        if matched := SET.fullmatch(line.strip()):
            options[matched[1]] = matched[2]
        elif matched := UNSET.fullmatch(line.strip()):
            options[matched[1]] = "n"
    return options


def list_fragments() -> list[Path]:
    """Return the fragments, in the order in which they are merged."""
    return sorted(FRAGMENTS.glob("*.config"))


def merge_fragments(fragments: Iterable[Path]) -> dict[str, str]:
    """Return what all `fragments` want; two that want different things are an error."""
    merged: dict[str, str] = {}
    origin: dict[str, str] = {}
    for path in fragments:
        for name, value in parse_config(path.read_text()).items():
            if merged.get(name, value) != value:
                raise BuildError(
                    f"{name} is {merged[name]} in {origin[name]} and {value} in {path.name}"
                )
            merged[name], origin[name] = value, path.name
    return merged


def render_config(options: Mapping[str, str]) -> str:
    """Return `options` as Kconfig reads them."""
    return "".join(f"{name}={value}\n" for name, value in options.items())


def find_lost(wanted: Mapping[str, str], result: Mapping[str, str]) -> list[str]:
    """Return the options whose value in `result` is not the `wanted` one, as NAME=WANTED."""
    return [f"{name}={value}" for name, value in wanted.items() if result.get(name, "n") != value]


def check_survival(wanted: Mapping[str, str], config: Path) -> None:
    """Raise BuildError naming the wanted options that Kconfig did not accept."""
    if lost := find_lost(wanted, parse_config(config.read_text())):
        raise BuildError(
            f"the kernel's configuration lost {', '.join(lost)}",
            hint="a dependency is missing or the option has another name in this series:"
            " see `make ARCH=um menuconfig` (search with /), correct image/kernel/*.config",
        )
