"""Places in /devfs: their numbers, and what is there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.process.caller import MAX_UID

FILE = Path("/run/ssi/devfs.names")
MAX_PATH = 4095
MAX_NAME = 255
FIRST = 2
"""The root has 1."""

FOLDER = "/devfs"
HOME = re.compile(r"\.home([1-9]\d{0,3})")

TERMINALS = "pts"
TERMINAL_BITS = 12
"""A node's terminals have numbers from (node - 1) << 12 (image/ramdisk/tree/init)."""

MAX_NUMBER = 8
"""Digits that no terminal's number has."""

MAX_U32 = 2**32 - 1
MAX_I64 = 2**63 - 1


def check_path(path: str) -> str:
    """Return a path below /dev, or raise ProtocolError."""
    parts = path.split("/") if path else []
    if len(path) > MAX_PATH or "\0" in path or any(part in {"", ".", ".."} for part in parts):
        raise ProtocolError(f"{path[:64]!r} is no path below /dev")
    return path


def home_folder(node: int) -> str:
    """Return the folder that is /dev for those of a node who run on others."""
    return f"{FOLDER}/.home{node}"


def terminal_node(name: str) -> int:
    """Return the node of a terminal by its name in /dev/pts; 0 if it is none."""
    return 1 + (int(name) >> TERMINAL_BITS) if name.isdigit() and len(name) < MAX_NUMBER else 0


def encode_device(number: int) -> int:
    """Return a device number as the kernel has it in 32 bits."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What stat and readlink show."""

    name: str
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    links: int
    mtime_ns: int
    target: str = ""

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Look:
        """Read it from a message, or raise ProtocolError."""
        mode = wire.get_int(message, "mode", 0, 0o177777)
        name = wire.get_text(message, "name")
        if not stat.S_IFMT(mode) or "/" in name or "\0" in name or len(name) > MAX_NAME:
            raise ProtocolError(f"{name[:64]!r} of mode {mode:o} is nothing to be shown")
        return cls(
            name, mode,
            wire.get_int(message, "uid", 0, MAX_UID), wire.get_int(message, "gid", 0, MAX_UID),
            wire.get_int(message, "rdev", 0, MAX_I64), wire.get_int(message, "size", 0, MAX_I64),
            wire.get_int(message, "links", 0, MAX_U32),
            wire.get_int(message, "mtime_ns", 0, MAX_I64), wire.get_text(message, "target"),
        )  # fmt: skip


class Places:
    """The kernel's numbers of nodes' paths, also those that a daemon before this one has given.

    A negative node is that one's /dev as visitors have it.
    """

    def __init__(self, path: Path = FILE) -> None:
        self._path = path
        self._all: list[tuple[int, str]] = []
        self._numbers: dict[tuple[int, str], int] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    node, below = json.loads(line)
                except ValueError:
                    break  # that was being written
                self._add(int(node), str(below))

    def _add(self, node: int, path: str) -> int:
        number = self._numbers[node, path] = FIRST + len(self._all)
        self._all.append((node, path))
        return number

    def number_of(self, node: int, path: str) -> int:
        """Return the number of a path below a node's /dev."""
        if (number := self._numbers.get((node, path))) is not None:
            return number
        with self._path.open("a") as file:
            file.write(json.dumps([node, path]) + "\n")
        return self._add(node, path)

    def find(self, number: int) -> tuple[int, str]:
        """Return node and path; raises FileNotFoundError."""
        if not FIRST <= number < FIRST + len(self._all):
            raise FileNotFoundError(number)
        return self._all[number - FIRST]
