"""What happened in a cluster: the logs of its nodes and of its supervisor as one, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import select
from collections.abc import Collection, Iterator
from pathlib import Path

from ssi.common.errors import SsiError, UsageError
from ssi.common.logline import HOST, LogLine, now_us, parse_line, split_text
from ssi.common.rotating import older
from ssi.common.tail import Tail
from ssi.common.watch import Watch
from ssi.host.cluster.spec import ClusterPlace, list_kept, list_running

SETTLE_MS = 300
"""What is said in several nodes at once may take so long to be in all their logs."""

LOOK_MS = 1000
"""inotify does not tell that the folder was removed while we have files of it open."""


def choose_logs(cluster: int | None) -> ClusterPlace:
    """Return the cluster meant: the one given, else the only one that runs, or is kept."""
    kept = [place for place in list_kept() if place.logs.is_dir()]
    if cluster is not None:
        if ClusterPlace(cluster) not in kept:
            raise SsiError(f"cluster {cluster} has no logs", hint="see `ssi ls --all`")
        return ClusterPlace(cluster)
    meant = [place for place in list_running() if place in kept] or kept
    if not meant:
        raise SsiError("there is no cluster, and no log of one", hint="start one with `ssi start`")
    if len(meant) > 1:
        ids = ", ".join(str(place.id) for place in meant)
        raise UsageError(f"several clusters have logs: {ids}", hint="say which one with -c")
    return meant[0]


@dataclasses.dataclass(slots=True)
class _Log:
    """One file, and its last line: what is no line of its own belongs to that."""

    node: int
    tail: Tail
    last: LogLine

    def read(self) -> list[LogLine]:
        """Return the lines that are new."""
        lines = []
        for text in self.tail.read_lines():
            parsed = parse_line(text)
            if parsed is None or parsed.node != self.node:
                parsed = dataclasses.replace(self.last, text=" ".join(split_text(text)))
            self.last = parsed
            lines.append(parsed)
        return lines


class History:
    """The logs of a cluster, or of some nodes of it."""

    def __init__(self, place: ClusterPlace, nodes: Collection[int]) -> None:
        """Without `nodes`, the logs of all and the supervisor's."""
        self._place = place
        self._nodes = nodes
        self._logs: dict[Path, _Log] = {}

    def _find(self) -> None:
        """Open logs that are new."""
        for path in sorted(self._place.logs.glob("*.log")):
            found = re.fullmatch("node([0-9]{1,3})", path.stem)
            node = int(found[1]) if found else HOST
            if path in self._logs or (self._nodes and node not in self._nodes):
                continue
            source = "ssid" if node else "supervisor"
            self._logs[path] = _Log(node, Tail(path), LogLine(0, node, 0, source, ""))

    def read(self) -> list[LogLine]:
        """Return the lines that are new, in order."""
        new: list[LogLine] = []
        self._find()
        for log in self._logs.values():
            new += log.read()
        return sorted(new, key=lambda line: line.time_us)

    def read_all(self) -> list[LogLine]:
        """Return all lines there are, those in the older parts, too; called first."""
        self._find()
        lines: list[LogLine] = []
        for path, log in self._logs.items():
            if older(path).exists():
                former = Tail(older(path))
                lines += _Log(log.node, former, log.last).read()
                former.close()
        return sorted(lines + self.read(), key=lambda line: line.time_us)

    def close(self) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.tail.close()
        self._logs.clear()

    def follow(self, output: int) -> Iterator[list[LogLine]]:
        """Yield new lines as they come, in order, until the logs are gone.

        Raises BrokenPipeError when nobody reads the descriptor `output` any more.
        """
        with contextlib.closing(Watch([self._place.logs])) as watch:
            yield from self._follow(watch, output)

    def _follow(self, watch: Watch, output: int) -> Iterator[list[LogLine]]:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(output, 0)  # poll tells of its end unasked
        waiting: list[LogLine] = []
        while True:
            watch.clear()  # before the look: what happens from here on wakes us
            if not self._place.logs.is_dir():
                return
            waiting = sorted(waiting + self.read(), key=lambda line: line.time_us)
            settled_us = now_us() - SETTLE_MS * 1000
            yield [line for line in waiting if line.time_us <= settled_us]
            waiting = [line for line in waiting if line.time_us > settled_us]
            events = dict(poll.poll(SETTLE_MS if waiting else LOOK_MS))
            if output in events:
                raise BrokenPipeError
