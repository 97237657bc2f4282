"""CRIU, as it is called here."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import re
import secrets
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.keeper import close_all
from ssi.node.launcher import Program
from ssi.node.processes import start_process
from ssi.node.root import SYSROOT, USERLAND

PROGRAM = "/usr/sbin/criu"
FOLDER = "/usr/lib/ssi/criu"
PRELOADED = "/usr/lib/ssi/criu.preload.so"
WITHOUT = "/usr/lib/ssi/criu.without"
"""Stands for libraries that are for what is not done here (TLS, locks of the network): loading
CRIU takes a third of the time without them."""
ENTER = "/run/ssi/enter"
"""What runs a program in another mount namespace: a copy in memory of the root's. It is no wait for
the root, and starts in a third of nsenter's time."""
VARIABLE, PLACE, LINE, PAGES = "SSI_MOVE", "SSI_PLACE", "SSI_LINE", "SSI_PAGES"
FOLLOWING = "following"
"""Beside the images: pages of which CRIU knows nothing, addresses and numbers of pages in pairs
(native/criu/preload.c)."""


class Way(enum.IntEnum):
    """How the memory of a process goes."""

    BY_CRIU = 0
    AT_ONCE = 1
    """That of large mappings straight from there, behind what CRIU sends."""
    LATER = 2
    """When it is asked for."""


KNOWN = Path("/run/ssi/public/criu.kdat")
"""What CRIU has found out about this kernel: it would take a tenth of a second each time."""

WHOLE = Path("/run/ssi/criu.whole")
"""Is there if it cannot be loaded without the libraries that WITHOUT stands for."""

_TOP, _TOP_OF_UML = 0x7FFFFFFFF000, 0x7F8000000000
"""Where a process's addresses end: CRIU knows one answer for all kernels of this machine."""

_ROOTS_PROGRAM = SYSROOT / PROGRAM.lstrip("/")
_ROOTS_ENTER = SYSROOT / "usr/lib/ssi/enter"

COMMON = (
    "--shell-job", "--manage-cgroups=ignore", "--libdir", FOLDER, "--log-file", "log",
    "--verbosity=2",
)  # fmt: skip

OWN_FILES = "/run/ssi/proc/self/fd"
"""In the kernel's own procfs: to that of the cluster who has come home is foreign for a second."""

IMAGES = 3
"""The descriptor by which CRIU has the folder with the images: it is not in its name space."""


class CannotMove(SsiError):
    """The process stays where it is."""

    code = "cannot-move"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, number: int = errno.EIO) -> None:
        """`number` is the errno of it, for who writes to /proc/PID/goto."""
        super().__init__(message, hint=hint)
        self.number = number


def environment(move: str) -> dict[str, str]:
    """Return CRIU's environment."""
    # 130: without hardware breakpoints, which UML has not.
    return {
        VARIABLE: move, "LD_PRELOAD": PRELOADED, "CRIU_FAULT": "130",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        **({} if WHOLE.exists() else {"LD_LIBRARY_PATH": WITHOUT}),
    }  # fmt: skip


async def check_installed() -> None:
    """Raise CannotMove if the root has no CRIU."""
    # By a thread: the root may stand still.
    if not await asyncio.to_thread(_ROOTS_PROGRAM.exists):
        raise CannotMove(
            "this root has no CRIU",
            hint="apt-get install criu (4.1 or newer)",
            number=errno.EOPNOTSUPP,
        )


async def learn_kernel() -> None:
    """Have CRIU find out about this kernel, once for each CRIU that is installed."""
    with contextlib.suppress(FileNotFoundError):
        installed = await asyncio.to_thread(_ROOTS_PROGRAM.stat)
        if KNOWN.stat().st_mtime > installed.st_ctime:
            return
    entered = Path(f"{ENTER}.{secrets.token_hex(4)}")
    await asyncio.to_thread(shutil.copy, _ROOTS_ENTER, entered)
    entered.rename(ENTER)
    # In a mount namespace in which it finds /run as it wants it, and the kernel's own /proc.
    script = (
        "mount -t tmpfs none /run && mount -t proc none /proc && "
        f"{PROGRAM} check >&2; cat /run/criu.kdat"
    )
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--mount={USERLAND}", "unshare", "--mount", "sh", "-c", script,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    known, said = await process.communicate()
    if not known:
        lines = said.decode(errors="replace").strip().splitlines() or ["criu check failed"]
        raise CannotMove(f"this kernel is not fit for CRIU: {lines[-1]}")
    if "User Mode Linux" in Path("/proc/cpuinfo").read_text():
        known = known.replace(struct.pack("<Q", _TOP), struct.pack("<Q", _TOP_OF_UML))
    WHOLE.unlink(missing_ok=True)
    short = await asyncio.create_subprocess_exec(
        ENTER, os.fspath(USERLAND), PROGRAM, "--version", env=environment(""),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    if await short.wait():
        # It was built to look for all that it might call before it begins.
        WHOLE.touch()
    partial = KNOWN.with_suffix(".partial")
    partial.write_bytes(known)
    partial.rename(KNOWN)


def dump(
    move: str, pid: int, folder: Path, pages: socket.socket | None, way: Way = Way.BY_CRIU
) -> int:  # fmt: skip
    """Start a dump of `pid` into `folder`, of its memory to where a connection leads.

    Without one it is loaded, and then the plugin asks for it. What comes of it the plugin tells,
    too. Returns CRIU's PID; it is to be reaped.
    """
    option = "--lazy-pages" if way == Way.LATER else "--page-server"
    variables = environment(move)
    fds = [
        os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
        os.dup(pages.fileno()) if pages else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),
    ]
    number = str(fds[-1])
    if pages is None:
        variables[LINE] = number
    if way != Way.BY_CRIU:
        fds.append(os.open(folder / FOLLOWING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        variables[PAGES] = f"{number},{fds[-1]},{pid},{int(way == Way.LATER)}"
    try:
        # Not below the filter: the kernel shows a filter only to who has none.
        return start_process(
            [
                ENTER, f"/proc/{pid}/ns/mnt", PROGRAM, "dump", "--tree", str(pid),
                "--images-dir", f"{OWN_FILES}/{fds[0]}", "--leave-running", "--network-lock=skip",
                "--ghost-limit=64M", "--link-remap", "--file-locks", option, "--ps-socket",
                number, *COMMON,
            ],
            variables, fds=fds, log_path=os.devnull,
        )  # fmt: skip
    finally:
        close_all(fds)


def restore(move: str, pid: int, *, lazy: bool = False) -> Program:
    """Return what becomes process `pid`, if it is given the images' folder.

    A pager brings its memory later, or that is among the images.
    """
    argv = [
        PROGRAM, "restore", "--images-dir", f"{OWN_FILES}/{IMAGES}", "--restore-detached",
        "--lazy-pages" if lazy else "--auto-dedup", "--file-locks", *COMMON,
    ]  # fmt: skip
    return Program(argv, {**environment(move), PLACE: str(pid)}, pid=pid)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Yield descriptors for what becomes a process of these images, and their numbers there."""
    images = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield [null, null, null, images], [0, 1, 2, IMAGES]
    finally:
        close_all([images, null])


def read_errors(folder: Path) -> str:
    """Return what CRIU says went wrong, in a line."""
    try:
        text = (folder / "log").read_text(errors="replace")
    except OSError:
        return "CRIU did not start"
    errors = re.findall(r"Error \([^)]*\): (.*)", text)
    useful = [line for line in errors if "FAILED" not in line]
    return "; ".join(dict.fromkeys(useful)) or "CRIU failed"
