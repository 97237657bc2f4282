"""Semaphores that the kernel gives back when a process ends (SEM_UNDO): that stays with it."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Iterator
from pathlib import Path

from ssi.node.ipc.calls import UNDOS
from ssi.node.smallfiles import read_text

TABLE = Path("/proc/sysvipc/sem")
MOST = 32000

_SEMCTL, _KCMP = 66, 312  # x86-64
_SAME_UNDO = 6  # KCMP_SYSVSEM
_INIT = 1
_GET_UNDO = 21  # image/kernel/patches/sem-undo-sums.patch


def find_obstacles(pid: int) -> Iterator[str]:
    """Yield what keeps a process of this node."""
    if (UNDOS / str(pid)).exists():
        yield "it has semaphores of another node to give back when it ends (SEM_UNDO)"
    elif _has_list(pid) and any(map(_is_owed, _list_sets())):
        yield "it may have semaphores to give back when it ends (SEM_UNDO)"


def _has_list(pid: int) -> bool:
    """Tell whether it has ever used SEM_UNDO, or has had threads. init has not."""
    return _do(_KCMP, pid, _INIT, _SAME_UNDO, 0, 0) > 0


def _list_sets() -> list[tuple[int, int]]:
    """Return identifiers, and how many semaphores each has."""
    lines = read_text(TABLE).splitlines()[1:] if TABLE.exists() else []
    words = [line.split() for line in lines]
    return [(int(one[1]), int(one[3])) for one in words]


def _is_owed(one: tuple[int, int]) -> bool:
    """Tell whether somebody has something of a set to give back."""
    identifier, count = one
    room = array.array("i", bytes(8 * min(count, MOST)))
    address, _ = room.buffer_info()
    # The C library hands on no address for a command that it does not know.
    return _do(_SEMCTL, identifier, 0, _GET_UNDO, address) >= 0 and any(room[count:])


def _do(*words: int) -> int:
    """Make a system call; return its result, -1 if it fails."""
    result: int = ctypes.CDLL(None).syscall(*map(ctypes.c_long, words))
    return result
