"""This node's log lines on their way to the host, where they outlive the node."""

from __future__ import annotations

import asyncio
import dataclasses

from ssi.common.logline import LogLine, now_us
from ssi.node.hostline import HostLine

RATE = 8 * 1024
BURST = 64 * 1024
"""Bytes a second, and at once, for each source: the line takes a thousand times that, but is for
fencing first."""

BEHIND = 64 * 1024
"""With so much waiting for the line, no log is added."""

AGAIN_S = 1.0


class Allowance:
    """How many bytes may be sent: RATE a second, no more than BURST at once."""

    def __init__(self, now_s: float) -> None:
        self._free = float(BURST)
        self._at_s = now_s

    def take(self, count: int, now_s: float) -> bool:
        """Count `count` bytes as sent; False, and none are, if there is no allowance for them."""
        self._free = min(BURST, self._free + RATE * (now_s - self._at_s))
        self._at_s = now_s
        if self._free < count:
            return False
        self._free -= count
        return True


@dataclasses.dataclass(slots=True)
class _Source:
    allowance: Allowance
    left_out: int = 0


class HostLog:
    """An outlet of the node's log that leaves out what would be too much for the line."""

    def __init__(self, host: HostLine) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._sources: dict[str, _Source] = {}

    def __call__(self, line: LogLine) -> None:
        """Send `line`, or count it as left out."""
        source = self._sources.get(line.source)
        if source is None:
            source = self._sources[line.source] = _Source(Allowance(self._loop.time()))
        if source.left_out == 0 and self._send(source, line):
            return
        if source.left_out == 0:
            self._loop.call_later(AGAIN_S, self._resume, source, line)
        source.left_out += 1

    def _resume(self, source: _Source, last: LogLine) -> None:
        """Say how many lines were left out; from then on they are sent again."""
        note = dataclasses.replace(
            last, time_us=now_us(), text=f"{source.left_out} lines left out here"
        )
        if self._send(source, note):
            source.left_out = 0
        else:
            self._loop.call_later(AGAIN_S, self._resume, source, last)

    def _send(self, source: _Source, line: LogLine) -> bool:
        size = len(line.text) + 100
        if self._host.waiting() > BEHIND or not source.allowance.take(size, self._loop.time()):
            return False
        self._host.say("log", time=line.time_us, view=line.view, source=line.source, text=line.text)
        return True
