"""What a node tells of one of its processes, and the files that are made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.process.caller import MAX_PID, MAX_UID

HZ = 100
PAGE_KIB = 4

# Fields of stat, counted as in proc(5).
TERMINAL, START = 7, 22
_FIRST, _LAST = 3, 52
SECRETS = (26, 27, 28, 29, 30, 35, 45, 46, 47, 48, 49, 50, 51)
"""Addresses and the like, which the kernel shows to the owner only."""


def split_stat(stat: str) -> tuple[str, list[str]]:
    """Return what stat has up to the name, and the fields behind it; raises ProtocolError."""
    head, bracket, rest = stat.rpartition(")")
    fields = rest.split()
    if not bracket or len(fields) < _LAST - _FIRST + 1 or not fields[START - _FIRST].isdigit():
        raise ProtocolError(f"no stat: {stat:.60}")
    return head + bracket, fields


def mask_stat(stat: str, terminal: int | None = None) -> str:
    """Return `stat` as a stranger may see it, on `terminal` (a device number) if one is given."""
    head, fields = split_stat(stat)
    for field in SECRETS:
        fields[field - _FIRST] = "0"
    if terminal is not None:
        fields[TERMINAL - _FIRST] = str(terminal)
    return f"{head} {' '.join(fields)}\n"


def parse_status(status: str) -> Mapping[str, str]:
    """Return the fields of a status by name."""
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """What a process has in its memory, and who may see that."""

    cmdline: bytes = b""
    environ: bytes = b""
    uid: int = 0
    gid: int = 0
    """Root's where the process is not to be looked into."""


NO_MEMORY = Memory()


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A process: the texts of its stat and status, a character for each byte, and its memory."""

    pid: int
    stat: str
    status: str
    memory: Memory

    def __post_init__(self) -> None:
        """Raise ProtocolError if this is no process."""
        split_stat(self.stat)

    @property
    def start(self) -> int:
        """When it was started, in ticks since its node was booted."""
        return int(split_stat(self.stat)[1][START - _FIRST])

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "pid": self.pid, "stat": self.stat, "status": self.status,
            "cmdline": wire.put_bytes(self.memory.cmdline),
            "environ": wire.put_bytes(self.memory.environ),
            "uid": self.memory.uid, "gid": self.memory.gid,
        }  # fmt: skip

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Row:
        """Read it from a message, or raise ProtocolError."""
        texts = [wire.get_text(message, key) for key in ("stat", "status")]
        if not all(text.isascii() or max(text) <= "\xff" for text in texts):
            raise ProtocolError("a character that is no byte")
        memory = Memory(
            wire.get_bytes(message, "cmdline"), wire.get_bytes(message, "environ"),
            wire.get_int(message, "uid", 0, MAX_UID), wire.get_int(message, "gid", 0, MAX_UID),
        )  # fmt: skip
        return cls(wire.get_int(message, "pid", 1, MAX_PID), texts[0], texts[1], memory)

    def render(self, name: str, node: int, shift: int) -> bytes:
        """Return the content of a file of places.TABLE.

        `node` is where it runs, `shift` what is added to ticks since that node's boot to have ticks
        since the reader's.
        """
        match name:
            case "stat":
                text = self._shifted(shift)
            case "status":
                text = self.status
            case "cmdline":
                return self.memory.cmdline
            case "environ":
                return self.memory.environ
            case "comm":
                text = split_stat(self.stat)[0].partition("(")[2][:-1] + "\n"
            case "statm":
                text = self._statm()
            case _:
                text = f"{node}\n"
        return text.encode("latin-1")

    def _shifted(self, shift: int) -> str:
        head, fields = split_stat(self.stat)
        # The kernel has no number for what began before it did.
        fields[START - _FIRST] = str(max(0, self.start + shift))
        return f"{head} {' '.join(fields)}\n"

    def _statm(self) -> str:
        fields = parse_status(self.status)

        def pages(*names: str) -> int:
            words = [fields.get(name, "0").split()[0] for name in names]
            return sum(int(word) for word in words if word.isdigit()) // PAGE_KIB

        return (
            f"{pages('VmSize')} {pages('VmRSS')} {pages('RssFile', 'RssShmem')} {pages('VmExe')} 0 "
            f"{pages('VmData', 'VmStk')} 0\n"
        )
