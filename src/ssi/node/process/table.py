"""The table of processes: what people run on this node."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ssi.node.pids import origin_of
from ssi.node.process.caller import read_caller
from ssi.node.processes import list_userland
from ssi.node.smallfiles import read_bytes, read_text

TICKS = os.sysconf("SC_CLK_TCK")
MAX_COMMAND = 4096
"""Characters of a command that are told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A process."""

    pid: int
    ppid: int
    uid: int
    """The effective user."""
    state: str
    """As ps has it: a letter."""
    time_s: float
    """Of processors, used by itself."""
    command: str


def parse_row(stat: str, uid: int, words: bytes) -> Row:
    """Return the process that /proc/PID/stat and cmdline tell of; who has no words has a name."""
    head, _, rest = stat.rpartition(")")
    pid, _, name = head.partition("(")
    fields = rest.split()
    command = words.replace(b"\0", b" ").strip().decode(errors="replace") or f"[{name}]"
    time_s = (int(fields[11]) + int(fields[12])) / TICKS
    return Row(int(pid), int(fields[1]), uid, fields[0], time_s, command[:MAX_COMMAND])


def list_rows(is_hidden: Callable[[int], bool], *, everything: bool) -> Iterator[Row]:
    """Yield the processes of the userland, by PID, and zombies whose parents are of it; or all."""
    people = {pid for pid in list_userland() if origin_of(pid)}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if is_hidden(pid) or not (everything or origin_of(pid)):
            continue
        row = _read_row(pid)
        if row and (everything or pid in people or (row.state == "Z" and row.ppid in people)):
            yield row


def _read_row(pid: int) -> Row | None:
    folder = Path(f"/proc/{pid}")
    try:
        uid = read_caller(pid).uids[1]
        return parse_row(read_text(folder / "stat"), uid, read_bytes(folder / "cmdline"))
    except (OSError, ValueError, IndexError):
        return None  # it has just ended
