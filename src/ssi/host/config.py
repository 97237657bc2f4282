"""The user's own defaults: ~/.ssiuml/ssiuml.conf, with the keys of the 2002 HOWTO."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from ssi.common.errors import SsiError, UsageError

IMAGES = {"KERNEL": "kernel", "INITRD": "ramdisk", "ROOT": "root"}

OBSOLETE = {
    "CIDEV": "the cluster keeps nothing on a device of its own any more",
    "INITRD_MEMEXP": "there is no lock server any more, so it needs no ramdisk",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """What the file says, None where it says nothing. `notes` are for the user to read."""

    kernel: Path | None = None
    ramdisk: Path | None = None
    root: Path | None = None
    notes: tuple[str, ...] = ()


def default_path() -> Path:
    """Return where the file is, if there is one."""
    return Path.home() / ".ssiuml" / "ssiuml.conf"


def read_config(path: Path | None = None) -> Config:
    """Return what the file at `path` says; one that does not exist says nothing."""
    path = path or default_path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise SsiError(f"{path} cannot be read: {error}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Return what `text` says, or raise UsageError that names the line of `path`."""
    images: dict[str, Path | None] = {}
    notes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        assignment = _parse_line(line, where)
        if assignment is None:
            continue
        key, value = assignment
        if key in OBSOLETE:
            notes.append(f"{where}: {key} is obsolete: {OBSOLETE[key]}")
        else:
            images[IMAGES[key]] = _parse_path(value, path.parent, where)
    return Config(**images, notes=tuple(notes))


def _parse_line(line: str, where: str) -> tuple[str, str] | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"{where}: {str(error).lower()}") from error
    if not words:
        return None
    key, equals, value = words[0].partition("=")
    if len(words) > 1 or not equals:
        raise UsageError(
            f"{where}: {line.strip()!r} is not KEY=VALUE", hint='quote spaces: KERNEL="my/kernel"'
        )
    if key not in IMAGES and key not in OBSOLETE:
        raise UsageError(f"{where}: unknown key {key!r}", hint=f"known are {', '.join(IMAGES)}")
    return key, value


def _parse_path(value: str, base: Path, where: str) -> Path | None:
    if not value:
        return None
    if "$" in value or "`" in value:
        # It looks like a shell's file and is none: what a shell would run or replace is refused.
        raise UsageError(f"{where}: nothing but ~ is expanded", hint="write the path out")
    try:
        return base / Path(value).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{where}: {value!r}: there is no such user") from error
