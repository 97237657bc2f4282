"""One line of a log. Nodes and host write the same, so that all logs can be merged in order."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from datetime import UTC, datetime, timedelta

from ssi.common.nodes import MAX_NODE

HOST = 0
"""In place of a node's number."""

MAX_TEXT = 900
"""Characters. A line then fits into PIPE_BUF, so that a pipe takes all of it or nothing."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z (?:host|node(?P<node>\d{1,3})) "
    r"view(?P<view>\d{1,15}) (?P<source>[a-z_]{1,16}): (?P<text>.*)",
    re.ASCII | re.DOTALL,
)


@dataclasses.dataclass(frozen=True, slots=True)
class LogLine:
    """What was said when, by whom, and in which view of the cluster (0 before there is one)."""

    time_us: int
    """Microseconds since the epoch."""
    node: int
    view: int
    source: str
    """The program, or a file that several write to: lower-case letters and underscores."""
    text: str

    def __str__(self) -> str:
        """Return it as parse_line reads it, without a newline."""
        name = f"node{self.node}" if self.node else "host"
        return f"{render_time(self.time_us)} {name} view{self.view} {self.source}: {self.text}"


def render_time(time_us: int) -> str:
    """Return a time as logs have it."""
    return f"{(EPOCH + timedelta(microseconds=time_us)).isoformat('T', 'microseconds')[:-6]}Z"


def now_us() -> int:
    """Return the time in microseconds."""
    return time.time_ns() // 1000


def parse_line(text: str) -> LogLine | None:
    """Return the line in `text`, None if it is none."""
    found = _LINE.fullmatch(text)
    if not found:
        return None
    node = int(found["node"] or HOST)
    if node > MAX_NODE:
        return None
    try:
        when = datetime.fromisoformat(found["time"] + "+00:00")
    except ValueError:
        return None
    return LogLine(
        (when - EPOCH) // timedelta(microseconds=1), node, int(found["view"]), found["source"],
        found["text"],
    )  # fmt: skip


def split_text(text: str) -> list[str]:
    """Return the lines of `text`, each fit for a log and for a terminal that shows it."""
    return [_tame(line) for line in text.splitlines()] or [""]


def _tame(text: str) -> str:
    text = text[:MAX_TEXT]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)[:MAX_TEXT]


class LineFormatter(logging.Formatter):
    """Renders a record as log lines, one for each line of its text."""

    def __init__(self, node: int, source: str) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self.node = node
        self.view = 0
        self.source = source

    def lines(self, record: logging.LogRecord) -> list[LogLine]:
        """Return the lines of `record`."""
        return [
            LogLine(int(record.created * 1_000_000), self.node, self.view, self.source, text)
            for text in split_text(super().format(record))
        ]

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of `record` as one text."""
        return "\n".join(map(str, self.lines(record)))
