"""The shared root, and the userland that lives on it in a mount namespace of its own."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.waiting import wait_until

SYSROOT = Path("/sysroot")
USERLAND = Path("/run/userland.ns")
"""The userland's mount namespace, kept alive by a bind mount of its file."""

GFS2 = Path("/sys/fs/gfs2")

META = Path("/run/ssi/meta")
JOURNAL_MIB = 32
"""The least that gfs2_jadd makes: with 8 it says "bad journal size" and exits 0."""

MS_NOATIME = 1024

VM = Path("/proc/sys/vm")
SMALL = 4 * 1024**3
MAY_WAIT = {"dirty_background_ratio": 40, "dirty_ratio": 60}
"""Percents of a small node's memory that may wait to be written to the root. Mapped memory is part
of that (/dev/shm): above the kernel's 10 it is written, and each of its pages faults anew, all the
time. Where there is more memory they are enough."""


def is_mounted(path: Path = SYSROOT) -> bool:
    """Tell whether something is mounted on `path`."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == os.fspath(path) for line in lines)


async def run(*argv: str) -> None:
    """Run `argv` of the ramdisk; raise SsiError with what it said when it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode:
        said = output.decode(errors="replace").strip().replace("\n", "; ")
        raise SsiError(f"{' '.join(argv)}: {said or f'exit status {process.returncode}'}")


class NoJournal(SsiError):
    """The file system has a journal for each mounted node already, and none for us."""


def _mount(device: str) -> None:
    # mount(2) itself, as no command tells EUSERS from other failures.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(device.encode(), os.fsencode(SYSROOT), b"gfs2", MS_NOATIME, None) == 0:
        return
    number = ctypes.get_errno()
    kind = NoJournal if number == errno.EUSERS else SsiError
    raise kind(
        f"mounting the root {device}: {os.strerror(number)}",
        hint="the kernel's messages say more: `ssi exec --ramdisk NODE -- dmesg`",
    )


async def mount_root(device: str) -> None:
    """Mount the shared root on SYSROOT; blocks while locks are recovered.

    Raises NoJournal when more nodes want to mount than have a journal.
    """
    if is_mounted():
        return
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < SMALL:
        for name, percent in MAY_WAIT.items():
            (VM / name).write_text(f"{percent}\n")
    await asyncio.to_thread(_mount, device)


def _count_journals() -> int:
    return len(list((META / "jindex").glob("journal*")))


async def add_journals(wanted: int) -> None:
    """See to it that the mounted root has `wanted` journals at least."""
    META.mkdir(exist_ok=True)
    await run("mount", "-t", "gfs2meta", os.fspath(SYSROOT), os.fspath(META))
    try:
        missing = wanted - _count_journals()
    finally:
        await run("umount", os.fspath(META))
    if missing > 0:
        await run("gfs2_jadd", "-j", str(missing), "-J", str(JOURNAL_MIB), os.fspath(SYSROOT))


async def enter_userland(node: int, life: str) -> None:
    """Make the userland's namespace, in which SYSROOT is the root; once a boot.

    `life` names this life of the cluster: what is in /dev/shm lives as long.
    """
    if is_mounted(USERLAND):
        return
    USERLAND.touch()
    await run(
        "unshare", f"--mount={USERLAND}", "--propagation", "private",
        "/sbin/make-userland", str(node), life,
    )  # fmt: skip


def userland_argv(argv: list[str]) -> list[str]:
    """Return the command that runs `argv` in the userland."""
    return ["nsenter", f"--mount={USERLAND}", "--", *argv]


async def leave_root() -> None:
    """Unmount the root. No userland process may be left."""
    if is_mounted(USERLAND):
        await run("umount", os.fspath(USERLAND))
    if is_mounted():
        await run("umount", os.fspath(SYSROOT))


async def wait_unmounted(*, within_s: float) -> bool:
    """Wait until the kernel has given up the last GFS2; False if the time is up.

    The last reference goes with the namespace, some moments after its last process.
    """
    return await wait_until(lambda: not GFS2.exists() or not any(GFS2.iterdir()), within_s=within_s)
