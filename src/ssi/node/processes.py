"""Processes of the ramdisk that outlive the node daemon."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence

from ssi.node.smallfiles import read_text

LOG = "/run/ssi/daemons.log"
ON_ROOT = "/sysroot/"

MAX_BEGUN = 2**34 - 1
"""Of what start_of() returns: five years."""


def start_process(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, *,
    fds: Collection[int] = (), log_path: str = LOG,
) -> int:  # fmt: skip
    """Start `argv` in a session of its own, its output in a log; return its PID.

    It is given `fds` by their numbers. Light on purpose (no subprocess, no asyncio): corosync is
    started while these load.
    """
    # It returns when the program has been read, and the root may stand still until this daemon has
    # had a dead node fenced: what is on the root is begun by a program of the ramdisk.
    if argv[0].startswith(ON_ROOT):
        argv = ["busybox", "env", *argv]
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        return os.posix_spawnp(
            argv[0],
            list(argv),
            os.environ if environment is None else environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                # To itself: it is not closed by the exec.
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def reap(pid: int) -> None:
    """Have the kernel forget a process that has ended, if it is a child of this one."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def find_process(name: str) -> int:
    """Return the PID of the ramdisk's process called `name`, or 0.

    One in another mount namespace is a user's and only bears the name.
    """
    own = os.readlink("/proc/self/ns/mnt")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            found = read_text(f"/proc/{entry}/comm").rstrip("\n") == name
            if found and os.readlink(f"/proc/{entry}/ns/mnt") == own:
                return int(entry)
        except OSError:
            continue  # it has just ended
    return 0


def list_userland() -> list[int]:
    """Return the PIDs of all processes outside the ramdisk's mount namespace."""
    own = os.readlink("/proc/self/ns/mnt")
    pids = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            # A kernel thread has no program (kdevtmpfs a namespace of its own); nor has a zombie.
            os.readlink(f"/proc/{entry}/exe")
            if os.readlink(f"/proc/{entry}/ns/mnt") != own:
                pids.append(int(entry))
        except OSError:
            continue
    return pids


def start_of(pid: int) -> int:
    """Return when process `pid` began, in ticks since boot: with the PID it names one process."""
    return int(read_stat(pid)[19])


def read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name; raises OSError."""
    return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def read_status(pid: int) -> dict[str, list[str]]:
    """Return the words of /proc/PID/status; raises ProcessLookupError."""
    try:
        lines = read_text(f"/proc/{pid}/status").splitlines()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
