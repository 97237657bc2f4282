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
class Row:
    """A process: the texts of its stat, status and cmdline, a character for each byte."""

    pid: int
    stat: str
    status: str
    cmdline: str
    uid: int
    gid: int
    """Effective IDs."""
    start: int
    """In ticks since its node was booted."""

    @classmethod
    def make(cls, pid: int, stat: str, status: str, cmdline: str) -> Row:
        """Return the row of these texts; raises ProtocolError."""
        fields = parse_status(status)
        try:
            uid, gid = (int(fields[key].split()[1]) for key in ("Uid", "Gid"))
        except (KeyError, ValueError, IndexError) as error:
            raise ProtocolError(f"no status: {status:.60}") from error
        if not (0 <= uid <= MAX_UID and 0 <= gid <= MAX_UID):
            raise ProtocolError(f"users {uid} and {gid}")
        start = int(split_stat(stat)[1][START - _FIRST])
        return cls(pid, stat, status, cmdline, uid, gid, start)

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "pid": self.pid, "stat": self.stat, "status": self.status,
            "cmdline": wire.put_bytes(self.cmdline.encode("latin-1")),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Row:
        """Read it from a message, or raise ProtocolError."""
        texts = [wire.get_text(message, key) for key in ("stat", "status")]
        if not all(text.isascii() or max(text) <= "\xff" for text in texts):
            raise ProtocolError("a character that is no byte")
        cmdline = wire.get_bytes(message, "cmdline").decode("latin-1")
        return cls.make(wire.get_int(message, "pid", 1, MAX_PID), texts[0], texts[1], cmdline)

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
                text = self.cmdline
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
