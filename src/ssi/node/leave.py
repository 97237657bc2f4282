"""One node leaves in order: users first, then the root, the locks, the ring, the power."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal

from ssi.common.errors import SsiError
from ssi.node import dlm, root
from ssi.node.devfs import keeper as device_keeper
from ssi.node.fifo import keeper as fifo_keeper
from ssi.node.hostline import HostLine
from ssi.node.ipc import device as segments
from ssi.node.ipc import keeper as ipc_keeper
from ssi.node.processes import find_process, list_userland
from ssi.node.queues import keeper as queue_keeper
from ssi.node.relay import keeper as relay_keeper
from ssi.node.smallfiles import read_text
from ssi.node.unix import keeper as unix_keeper
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

KEEPERS = (
    fifo_keeper.PROGRAM.name, relay_keeper.PROGRAM.name, device_keeper.PROGRAM.name,
    ipc_keeper.PROGRAM.name, queue_keeper.PROGRAM.name,
    unix_keeper.PROGRAM.name,
)  # fmt: skip
"""They run from the root."""

RB_POWER_OFF = 0x4321FEDC
USERS_S = 3.0
STEP_S = 5.0

PAGES = "ssi-pages"
"""Has the memory of a process that has left, until that has all of it (native/criu/preload.c)."""
PAGES_S = 8.0
"""Within the host's deadline. Who has not got his memory by then dies of it."""


def power_off() -> None:
    """Switch this node off at once."""
    ctypes.CDLL(None).reboot(RB_POWER_OFF)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_keepers() -> list[int]:
    """Kill one of each kind that is there: a keeper's children have its name, and go with it."""
    pids = [pid for name in KEEPERS if (pid := find_process(name))]
    _signal(pids, signal.SIGKILL)
    return pids


def _has_pages() -> bool:
    """Tell whether memory is here that others still need."""
    for pid in list_userland():
        with contextlib.suppress(OSError):
            if read_text(f"/proc/{pid}/comm") == f"{PAGES}\n":
                return True
    return False


async def end_userland() -> None:
    """End every process of the userland: SIGTERM and SIGHUP, then SIGKILL."""
    pids = list_userland()
    _signal(pids, signal.SIGTERM)
    _signal(pids, signal.SIGHUP)  # interactive shells ignore SIGTERM
    _signal(pids, signal.SIGCONT)
    if not await wait_until(lambda: not list_userland(), within_s=USERS_S):
        left = list_userland()
        logger.warning("killing %s", left)
        _signal(left, signal.SIGKILL)
        await wait_until(lambda: not list_userland(), within_s=STEP_S)


async def leave(host: HostLine, how: str) -> None:
    """Leave the cluster in order and switch off. The host has a deadline of its own.

    `how` says what the whole cluster does (state.init.HOW): a virtual node is switched on again by
    the host, when all have left.
    """
    host.say("going", how=how)
    host.say("phase", name="leaving")
    await wait_until(lambda: not _has_pages(), within_s=PAGES_S)
    await end_userland()
    await wait_until(lambda: not _kill_keepers(), within_s=STEP_S)
    segments.remove_all()
    try:
        await root.leave_root()
    except SsiError as error:
        logger.warning("%s", error)
    if not (await root.wait_unmounted(within_s=STEP_S) and await dlm.wait_gone(within_s=STEP_S)):
        # Leaving the ring with a lockspace would have us fenced; the host's deadline decides.
        host.say("trouble", text="the root is still in use")
        return
    if pid := find_process("dlm_controld"):
        _signal([pid], signal.SIGTERM)
        await wait_until(lambda: not find_process("dlm_controld"), within_s=STEP_S)
    if find_process("corosync"):
        with contextlib.suppress(SsiError):
            await root.run("corosync-cfgtool", "-H")
        await wait_until(lambda: not find_process("corosync"), within_s=STEP_S)
    host.say("phase", name="left")
    os.sync()
    power_off()
