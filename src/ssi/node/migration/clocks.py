"""The clocks of a process that moves: they go on, whatever those of its nodes show.

CRIU restores a process in a time namespace of its own, and notes the clocks of the dumping node:
they are not those of a process that has come from elsewhere itself.
"""

from __future__ import annotations

import dataclasses
import time

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.smallfiles import read_text

SECOND = 10**9
MOST = 2**62


@dataclasses.dataclass(frozen=True, slots=True)
class Clocks:
    """What its clocks show at one moment, in nanoseconds."""

    monotonic: int
    boot: int
    real: int
    """That of the cluster."""

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> Clocks:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            *(wire.get_int(message, name, 0, MOST) for name in ("monotonic", "boot", "real"))
        )

    def now(self) -> Clocks:
        """Return what they have come to."""
        real = time.time_ns()
        passed = max(0, real - self.real)
        return Clocks(self.monotonic + passed, self.boot + passed, real)


def parse_offsets(text: str) -> tuple[int, int]:
    """Return by how much monotonic and boot clocks are ahead of the node's: timens_offsets."""
    found = {"monotonic": 0, "boottime": 0}
    for line in text.splitlines():
        name, seconds, nanoseconds = line.split()
        found[name] = int(seconds) * SECOND + int(nanoseconds)
    return found["monotonic"], found["boottime"]


def read_clocks(pid: int) -> Clocks:
    """Return the clocks of a process; raises OSError."""
    monotonic, boot = parse_offsets(read_text(f"/proc/{pid}/timens_offsets"))
    return Clocks(
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) + monotonic,
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) + boot, time.time_ns(),
    )  # fmt: skip
