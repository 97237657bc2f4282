"""One node leaves in order: users first, then the root, the locks, the ring, the power."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal

from ssi.common.errors import SsiError
from ssi.node import dlm, root
from ssi.node.hostline import HostLine
from ssi.node.processes import find_process, list_userland
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

RB_POWER_OFF = 0x4321FEDC
USERS_S = 3.0
STEP_S = 5.0


def power_off() -> None:
    """Switch this node off at once."""
    ctypes.CDLL(None).reboot(RB_POWER_OFF)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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
    await end_userland()
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
