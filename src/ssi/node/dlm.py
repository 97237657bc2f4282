"""dlm_controld on this node: its configuration, its start, and what it must be told."""

from __future__ import annotations

from pathlib import Path

from ssi.common.errors import TimedOut
from ssi.common.nodes import MAX_NODE
from ssi.node.processes import find_process, start_process
from ssi.node.waiting import wait_until

CONFIG = Path("/etc/dlm/dlm.conf")
COMMS = Path("/sys/kernel/config/dlm/cluster/comms")
LOCKSPACES = Path("/sys/kernel/dlm")


def render_config() -> str:
    """Return dlm.conf: every death is confirmed by the host before anything is recovered."""
    devices = "".join(f"connect host node={n} port={n}\n" for n in range(1, MAX_NODE + 1))
    return (
        "enable_fencing=1\n"
        # Members that never mounted have nothing to recover.
        "enable_startup_fencing=0\n"
        # A confirmed kill is stronger than a vote: the last of three nodes may ask for it too.
        "enable_quorum_fencing=0\n"
        # But no lockspace starts without quorum: it closes the moment between a joiner's
        # admission and its mount, in which the network may fail.
        "enable_quorum_lockspace=1\n"
        "post_join_delay=0\n"
        "enable_concurrent_fencing=1\n"
        "device host /sbin/fence_ssi\n" + devices
    )


def start_dlm() -> int:
    """Start dlm_controld unless it runs; return its PID."""
    pid = find_process("dlm_controld")
    if pid:
        return pid
    CONFIG.write_text(render_config())
    return start_process(["dlm_controld", "--foreground"])


async def wait_ready(node: int, *, within_s: float) -> None:
    """Wait until the kernel's DLM knows this node's address.

    A mount before that fails with "no local IP address has been set". configfs announces
    nothing.
    """
    path = COMMS / str(node) / "local"

    def known() -> bool:
        return path.exists() and path.read_text().strip() == "1"

    if not await wait_until(known, within_s=within_s):
        raise TimedOut(f"node{node}: dlm_controld gave the kernel no address")


async def wait_gone(*, within_s: float) -> bool:
    """Wait until no lockspace is left in the kernel; False if the time is up."""
    return await wait_until(
        lambda: not LOCKSPACES.exists() or not any(LOCKSPACES.iterdir()), within_s=within_s
    )
