"""/etc/inittab.ssi: what the cluster's one init runs.

The lines are inittab's, ``id:runlevels:action:process``. An action may say where, after an ``@``:
``init`` (the init node, which is also what nothing means), ``all`` (every node), or node numbers
such as ``1-3,7``.
"""

from __future__ import annotations

import dataclasses
import re

from ssi.common import wire
from ssi.common.errors import ProtocolError, UsageError
from ssi.common.nodes import parse_nodes
from ssi.common.wire import Message

LEVELS = "0123456S"
DEFAULT_LEVEL = "3"

BEFORE = ("sysinit", "boot", "bootwait")
"""Run once in the life of the cluster, or of a node for those that are run on nodes."""
WAITED = ("sysinit", "bootwait", "wait")
"""What comes later in the file waits for these."""
IN_LEVEL = ("wait", "once", "respawn")
AT_TIMES = ("ctrlaltdel", "shutdown")
ACTIONS = (*BEFORE, *IN_LEVEL, *AT_TIMES, "initdefault", "off")

MAX_ENTRIES = 500

CONSOLE = "con:S12345:respawn@all:/sbin/agetty --noclear -L ${CONSOLE#/dev/} 115200 xterm-256color"
"""What a root without inittab.ssi has: a login on each console."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    id: str
    levels: str
    action: str
    where: str
    command: str

    def is_in(self, level: str) -> bool:
        """Tell whether it belongs to runlevel `level`; without runlevels it belongs to all."""
        return not self.levels or level in self.levels

    def is_for(self, node: int, init_node: int | None) -> bool:
        """Tell whether `node` runs it."""
        if self.where == "init":
            return node == init_node
        return self.where == "all" or node in parse_nodes(self.where)

    @property
    def is_of_cluster(self) -> bool:
        """Whether it runs once in the cluster rather than once a node."""
        return self.where == "init"


@dataclasses.dataclass(frozen=True, slots=True)
class Inittab:
    """The whole file. `faults` are the lines that are none, with the reason."""

    entries: tuple[Entry, ...]
    faults: tuple[str, ...] = ()

    @property
    def default_level(self) -> str:
        """The runlevel to start in."""
        levels = [entry.levels for entry in self.entries if entry.action == "initdefault"]
        return levels[0] if levels else DEFAULT_LEVEL


def _check_id(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9~_.-]{1,16}", name):
        raise UsageError(f"{name!r} is no id")


def _parse_line(line: str) -> Entry:
    parts = line.split(":", 3)
    if len(parts) != 4:
        raise UsageError("it has not the form id:runlevels:action:process")
    name, levels, what, command = parts
    action, _, where = what.partition("@")
    _check_id(name)
    if set(levels.upper()) - set(LEVELS):
        raise UsageError(f"{levels!r} are no runlevels")
    if action not in ACTIONS:
        raise UsageError(f"{action!r} is no action")
    if where not in {"", "init", "all"}:
        parse_nodes(where)
    if action == "initdefault":
        if len(levels) != 1 or levels in "06":
            raise UsageError(f"{levels!r} is no runlevel to start in")
    elif action != "off" and not command.strip():
        raise UsageError("it names no process")
    # sysvinit's mark for "no entry in utmp".
    return Entry(name, levels.upper(), action, where or "init", command.strip().removeprefix("+"))


def parse_inittab(text: str) -> Inittab:
    """Return what is in `text`. Lines that are none are left out and told."""
    entries: dict[str, Entry] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = _parse_line(line.strip())
            if entry.id in entries:
                raise UsageError(f"the id {entry.id!r} is there twice")
            if len(entries) >= MAX_ENTRIES:
                raise UsageError(f"there are more than {MAX_ENTRIES} entries")
        except UsageError as error:
            faults.append(f"line {number}: {error}")
        else:
            entries[entry.id] = entry
    return Inittab(tuple(entries.values()), tuple(faults))


def dump_entries(entries: tuple[Entry, ...]) -> list[Message]:
    """Return `entries` for a message."""
    return [dataclasses.asdict(entry) for entry in entries]


def load_entries(message: Message, key: str) -> tuple[Entry, ...]:
    """Read entries from field `key`, or raise ProtocolError."""
    entries = []
    for item in wire.get_objects(message, key):
        words = {f.name: wire.get_text(item, f.name) for f in dataclasses.fields(Entry)}
        try:
            _check_id(words["id"])
            if words["where"] not in {"init", "all"}:
                parse_nodes(words["where"])
        except UsageError as error:
            raise ProtocolError(str(error)) from error
        entries.append(Entry(**words))
    return tuple(entries)
