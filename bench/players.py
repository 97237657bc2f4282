"""What bench/coherence.py runs in the nodes: ``players.py GAME ME SECONDS``, two at a time.

Says "ready", waits for a line, plays for that long, and prints the number of its moves. Both play
on files beside this one, in a shared folder; nothing else connects them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

NUMBER = struct.Struct("=q")


def _count_locked(lock: Callable[[int, int], None], until: float) -> int:
    """Add one to a number in a file, under a lock; a lost update shows in the sum."""
    fd = os.open("number", os.O_RDWR)
    moves = 0
    while time.monotonic() < until:
        lock(fd, fcntl.LOCK_EX)
        number = NUMBER.unpack(os.pread(fd, NUMBER.size, 0))[0]
        os.pwrite(fd, NUMBER.pack(number + 1), 0)
        lock(fd, fcntl.LOCK_UN)
        moves += 1
    return moves


def play_fcntl(_: int, until: float) -> int:
    """Records locked with fcntl."""
    return _count_locked(fcntl.lockf, until)


def play_flock(_: int, until: float) -> int:
    """Files locked with flock."""
    return _count_locked(fcntl.flock, until)


def play_mmap(me: int, until: float) -> int:
    """In turns, add one to a number in shared memory."""
    fd = os.open("number", os.O_RDWR)
    moves = 0
    with mmap.mmap(fd, NUMBER.size) as page:
        while time.monotonic() < until:
            number = NUMBER.unpack_from(page)[0]
            if number % 2 == me:
                NUMBER.pack_into(page, 0, number + 1)
                moves += 1
            else:
                os.sched_yield()
    return moves


def play_data(me: int, until: float) -> int:
    """In turns, add one to a number in a file, without locks."""
    fd = os.open("number", os.O_RDWR)
    moves = 0
    while time.monotonic() < until:
        number = NUMBER.unpack(os.pread(fd, NUMBER.size, 0))[0]
        if number % 2 == me:
            os.pwrite(fd, NUMBER.pack(number + 1), 0)
            moves += 1
        else:
            os.sched_yield()
    return moves


def play_rename(me: int, until: float) -> int:
    """In turns, rename a file to the name for which the other waits."""
    mine, other = Path(f"ball-{me}"), Path(f"ball-{1 - me}")
    moves = 0
    while time.monotonic() < until:
        try:
            mine.rename(other)
            moves += 1
        except FileNotFoundError:
            os.sched_yield()
    return moves


def play_append(me: int, until: float) -> int:
    """Append records without locks; each must be there, whole and once."""
    fd = os.open("records", os.O_WRONLY | os.O_APPEND)
    moves = 0
    while time.monotonic() < until:
        os.write(fd, b"%d %09d\n" % (me, moves))
        moves += 1
    return moves


GAMES = {
    "fcntl": play_fcntl, "flock": play_flock, "mmap": play_mmap,
    "data": play_data, "rename": play_rename, "append": play_append,
}  # fmt: skip


def main() -> None:
    """Play."""
    game, me, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.chdir(Path(__file__).parent)
    print("ready", flush=True)
    sys.stdin.readline()
    print(GAMES[game](me, time.monotonic() + seconds))


if __name__ == "__main__":
    main()
