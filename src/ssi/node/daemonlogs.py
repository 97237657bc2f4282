"""The logs of the ramdisk's other daemons: followed into the node's log, and kept small."""

from __future__ import annotations

import asyncio
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ssi.common.logline import EPOCH, now_us, split_text
from ssi.common.rotating import older
from ssi.common.tail import Tail
from ssi.common.watch import Watch
from ssi.node import processes
from ssi.node.logs import NodeLog

FILES = {
    "corosync": Path("/var/log/cluster/corosync.log"),
    "dlm_controld": Path("/var/log/dlm_controld/dlm_controld.log"),
    "daemons": Path(processes.LOG),
}
"""What each source writes. All append, so a truncated file goes on from its beginning."""

LIMIT = 1 << 20
"""Bytes. These files are in RAM; the older part of each is, too."""

PAUSE_S = 0.1
"""Between two looks, so that a daemon that says much is not read line by line."""

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Nov 21 07:33:10.623 [42] node2 corosync notice  [MAIN  ] ...
_COROSYNC = re.compile(
    r"(\w{3}) ([ \d]\d) (\d\d):(\d\d):(\d\d)\.(\d{3}) \[\d+\] \S+ corosync +(.*)", re.ASCII
)
# Nov 21 07:33:10 0 dlm_controld 4.3.0 started
_DLM = re.compile(r"\w{3} [ \d]\d \d\d:\d\d:\d\d \d+ (.*)", re.ASCII)


def read_corosync(line: str, seen_us: int) -> tuple[int, str]:
    """Return when corosync said what; its clock has no year and is UTC, as all in the ramdisk."""
    found = _COROSYNC.fullmatch(line)
    if not found or found[1] not in MONTHS:
        return seen_us, line
    month = MONTHS.index(found[1]) + 1
    day, hour, minute, second, milli = (int(word) for word in found.groups()[1:6])
    year = (EPOCH + timedelta(microseconds=seen_us)).year
    try:
        when = datetime(year, month, day, hour, minute, second, milli * 1000, tzinfo=UTC)
    except ValueError:
        return seen_us, line
    time_us = (when - EPOCH) // timedelta(microseconds=1)
    # Said before it was seen, so before New Year if that does not fit.
    return (time_us if time_us <= seen_us else seen_us), found[7]


def read_line(source: str, line: str, seen_us: int) -> tuple[int, str]:
    """Return time and text of a `line` that was seen now; where it has no exact time, that."""
    if source == "corosync":
        return read_corosync(line, seen_us)
    found = _DLM.fullmatch(line) if source == "dlm_controld" else None
    return seen_us, found[1] if found else line


def limit_size(path: Path, tail: Tail, limit: int = LIMIT) -> None:
    """Begin the file anew if it has got too large. Its daemon keeps it open and notices nothing."""
    if tail.size() > limit:
        older(path).write_bytes(path.read_bytes())
        os.truncate(path, 0)


async def follow(log: NodeLog, *, at_end: bool) -> None:
    """Hand the daemons' lines to `log` until cancelled; with `at_end` only those to come."""
    for path in FILES.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tails = {source: Tail(path, at_end=at_end) for source, path in FILES.items()}
    watch = Watch(FILES.values())
    changed = asyncio.Event()
    asyncio.get_running_loop().add_reader(watch.fileno(), changed.set)
    try:
        while True:
            watch.clear()
            changed.clear()
            seen_us = now_us()
            for source, tail in tails.items():
                for line in tail.read_lines():
                    time_us, text = read_line(source, line, seen_us)
                    for part in split_text(text):
                        log.say(time_us, source, part)
                limit_size(FILES[source], tail)
            await asyncio.sleep(PAUSE_S)
            await changed.wait()
    finally:
        asyncio.get_running_loop().remove_reader(watch.fileno())
        watch.close()
        for tail in tails.values():
            tail.close()
