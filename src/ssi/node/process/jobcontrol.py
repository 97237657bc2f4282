"""Process groups of this node, and what their terminal being in other hands means to them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Collection

from ssi.node.pids import origin_of
from ssi.node.processes import list_userland, read_stat
from ssi.node.smallfiles import read_text


def list_people() -> list[int]:
    """Return the processes of the userland."""
    return [pid for pid in list_userland() if origin_of(pid)]


def list_group(group: int) -> list[int]:
    """Return the processes of this node that are in a process group."""
    return [pid for pid in list_people() if group_of(pid) == group]


def has_members(group: int) -> bool:
    """Tell whether a group has members on this node."""
    return group_of(group) == group or bool(list_group(group))


def group_of(pid: int) -> int:
    """Return the process group of `pid`; 0 if it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def refuses(thread: int, number: int) -> bool:
    """Tell whether a thread ignores or blocks a signal."""
    try:
        text = read_text(f"/proc/{thread}/status")
    except OSError:
        return False
    fields = {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}
    mask = int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16)
    return bool(mask >> (number - 1) & 1)


def session_of(pid: int) -> int:
    """Return the session of `pid`; 0 if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def parent_of(pid: int) -> int:
    """Return the parent of `pid`; 0 if it is gone."""
    try:
        return int(read_stat(pid)[1])
    except (OSError, IndexError):
        return 0


def _is_orphaned(group: int) -> bool:
    """Tell whether no member's parent is in another group of the session, to continue it."""
    for pid in list_group(group):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = read_stat(pid)
            parent, session = int(fields[1]), int(fields[3])
            if os.getsid(parent) == session and os.getpgid(parent) != group:
                return False
    return True


def stop_for(thread: int, number: signal.Signals, spared: Collection[int]) -> int:
    """Send a background process's group SIGTTIN or SIGTTOU, as its terminal would.

    Returns the error that its call then ends with: EINTR, so that it begins again when it goes on,
    or EIO where it cannot be stopped; 0 when it may write all the same.
    """
    try:
        group = os.getpgid(thread)
    except ProcessLookupError:
        return errno.EINTR
    if refuses(thread, number):
        return errno.EIO if number == signal.SIGTTIN else 0
    if _is_orphaned(group):
        return errno.EIO
    for pid in list_group(group):
        if pid not in spared:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    return errno.EINTR
