"""Becoming somebody in the userland, just before a program is run there.

A process of its own does it, so that the daemon never waits for the root. What the user gives comes
into effect when his rights are the only ones left: his environment (LD_PRELOAD!) and his folder. It
comes by a descriptor, because everybody sees a command line. Imports little: it is run often.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

NAMESPACE = "/run/userland.ns"

CLEAN = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}

NOT_EXECUTABLE, NOT_FOUND = 126, 127


def enter_argv(fd: int) -> list[str]:
    """Return the command that runs what `pack` has put into `fd`."""
    code = (
        'import sys; sys.path.insert(0, "/usr/lib/ssi"); from ssi.node.enter import main; '
        f"sys.exit(main({fd}))"
    )
    return [sys.executable or "/usr/bin/python3", "-IS", "-c", code]


def pack(
    ids: tuple[int, int, Sequence[int]], umask: int, cwd: str, argv: Sequence[str],
    environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Return a descriptor with what is to be run; `ids` are user, group, other groups."""
    uid, gid, groups = ids
    fields = [
        str(uid), str(gid), " ".join(map(str, groups)), str(umask), cwd, str(len(argv)),
        *argv, *(f"{name}={value}" for name, value in environment.items()),
    ]  # fmt: skip
    fd = os.memfd_create("ssi-enter")
    with open(fd, "wb", closefd=False) as file:
        file.write(b"\0".join(map(os.fsencode, fields)))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def main(fd: int) -> int:
    """Run what is in `fd`; return only if that cannot be."""
    with open(fd, "rb") as file:
        uid, gid, groups, umask, cwd, argc, *words = file.read().split(b"\0")
    argv, environment = words[: int(argc)], words[int(argc) :]
    namespace = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    if sys.version_info >= (3, 12):
        os.setns(namespace, os.CLONE_NEWNS)
    os.setgroups([int(group) for group in groups.split()])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.umask(int(umask))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # Python has its own ways with these
    try:
        os.chdir(cwd)
    except OSError as error:
        return _complain(cwd, error)
    try:
        os.execvpe(argv[0], argv, dict(each.split(b"=", 1) for each in environment))
    except OSError as error:
        return _complain(argv[0], error)


def _complain(what: bytes, error: OSError) -> int:
    os.write(2, what + f": {error.strerror}\n".encode())
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
