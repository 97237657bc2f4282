"""Fills the root's disk: a UML kernel, alone, makes the file system and unpacks tars into it.

So uids, devices and capabilities come out right without anybody being root on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host.build.plan import full_disk
from ssi.host.uml.notify import Kind, Notification, NotifySocket
from ssi.host.uml.process import UmlProcess, become_subreaper

DEADLINE_S = 300.0
TAIL_LINES = 15
PREFIX = "ssi-install: "
DONE = "installed"


@dataclasses.dataclass(frozen=True, slots=True)
class Installation:
    """What the installer works with."""

    kernel: Path
    ramdisk: Path
    disk: Path
    userland: Path
    overlay: Path
    table: str = "ssi:root"
    journals: int = 16
    journal_mib: int = 8
    memory_mib: int = 256


def installer_argv(wishes: Installation, folder: Path) -> list[str]:
    """Return the command that runs the installer, with its sockets in `folder`."""
    return [
        os.fspath(wishes.kernel),
        f"mem={wishes.memory_mib}M",
        "umid=install", f"uml_dir={folder}",
        f"initrd={wishes.ramdisk}", "rdinit=/sbin/install-root",
        f"ubd0={wishes.disk}",
        # r: tars are disks that are only read.
        f"ubd1r={wishes.userland}", f"ubd2r={wishes.overlay}",
        "con=null", "con0=null,fd:1", "ssl=null",
        f"mconsole=notify:{folder}/notify",
        "seccomp=on", "panic=-1", "noreboot", "quiet",
        f"ssi.table={wishes.table}",
        f"ssi.journals={wishes.journals}", f"ssi.journal_mib={wishes.journal_mib}",
    ]  # fmt: skip


class Outcome:
    """What the installer has said so far; only what it says itself counts as success."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._hear = hear
        self.done = False
        self.trouble = ""

    def take(self, notification: Notification) -> None:
        """Take what the installer's kernel notified."""
        if notification.kind in {Kind.PANIC, Kind.HANG}:
            self.trouble = self.trouble or f"its kernel stopped: {notification.text}"
        elif notification.text == f"{PREFIX}{DONE}":
            self.done = True
        elif notification.text.startswith(f"{PREFIX}failed: "):
            self.trouble = notification.text.removeprefix(PREFIX)
        elif notification.text.startswith(PREFIX):
            self._hear(notification.text.removeprefix(PREFIX))


async def _run(wishes: Installation, folder: Path, log: Path, outcome: Outcome) -> str:
    """Run the installer; return what went wrong with the process itself, or nothing."""
    become_subreaper()
    notify = NotifySocket(folder / "notify")
    notify.hear = outcome.take
    with contextlib.closing(notify), log.open("wb") as file:
        process = await UmlProcess.start(installer_argv(wishes, folder), pass_fds=(), log=file)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await process.wait()
        except TimeoutError:
            return f"it was not ready within {DEADLINE_S:.0f} s"
        finally:
            await process.kill()
        # Its last words may still be in the socket.
        await asyncio.sleep(0)
    return ""


def _read_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "".join(f"\n  {line.rstrip()}" for line in lines)


def install(wishes: Installation, log: Path, hear: Callable[[str], None]) -> None:
    """Fill `wishes.disk`; raises BuildError with the end of the console's output if that fails.

    `hear` is told each phase that begins.
    """
    # In a short path: the sockets' names have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ssi-install-"))
    outcome = Outcome(hear)
    try:
        trouble = asyncio.run(_run(wishes, folder, log, outcome))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if outcome.done:
        return
    if shutil.disk_usage(wishes.disk.parent).free < 1 << 20:
        raise full_disk(wishes.disk.parent)
    trouble = outcome.trouble or trouble or "it ended without a word"
    raise BuildError(
        f"the root could not be installed: {trouble}{_read_tail(log)}",
        hint=f"the installer's console is in {log}",
    )
