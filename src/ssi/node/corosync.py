"""corosync on this node: its configuration, and its start."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from ssi.common.addresses import MULTICAST, NETWORK, node_address, node_name
from ssi.common.nodes import MAX_NODE
from ssi.node.processes import find_process, start_process
from ssi.node.settings import Settings

CONFIG = Path("/etc/corosync/corosync.conf")


def render_config(settings: Settings) -> str:
    """Return corosync.conf for the node of `settings`."""
    nodes = "".join(
        f" node {{\n  nodeid: {n}\n  name: {node_name(n)}\n  ring0_addr: {node_address(n)}\n"
        # No vote before the root is mounted: joiners alone can then never be a quorum.
        f"  quorum_votes: 0\n }}\n"
        for n in range(1, MAX_NODE + 1)
    )
    return f"""\
totem {{
 version: 2
 cluster_name: {settings.cluster}
 # Multicast: the address list may name every possible node without a packet to each of them.
 # (knet takes over 100 MB a node and its redundant links have no use on one virtual wire.)
 transport: udp
 interface {{
  ringnumber: 0
  bindnetaddr: {NETWORK}
  mcastaddr: {MULTICAST}
  mcastport: 5405
 }}
 crypto_cipher: none
 crypto_hash: none
 token: {settings.token_ms}
 # Else the token time grows by 650 ms with each possible node.
 token_coefficient: 0
 # Up to so many ms before each join message: eight nodes that meet at once, each answering every
 # other's at once, sent tens of thousands, and some found no ring in a minute.
 send_join: 50
}}
system {{
 # Sockets in place of shared memory: 12 MB less a node.
 qb_ipc_type: socket
}}
logging {{
 to_logfile: yes
 logfile: /var/log/cluster/corosync.log
 to_syslog: no
 to_stderr: no
 timestamp: hires
 blackbox: off
}}
quorum {{
 provider: corosync_votequorum
 expected_votes: 1
}}
nodelist {{
{nodes}}}
"""


class Corosync:
    """The process, which is started unless it runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = _start(settings)
        self._fd = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        """Return the descriptor that is readable when it has ended."""
        return self._fd

    def restart(self) -> bool:
        """Start another if it has ended; return whether it had."""
        if not select.select([self._fd], [], [], 0)[0]:
            return False
        os.close(self._fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)
        self._pid = _start(self._settings)
        self._fd = os.pidfd_open(self._pid)
        return True


def _start(settings: Settings) -> int:
    """Start corosync unless it runs; return its PID.

    Without CAP_IPC_LOCK its mlockall fails, which it only logs: nothing of the ramdisk can be paged
    out, and locking makes every unused page of it resident.
    """
    pid = find_process("corosync")
    if pid:
        return pid
    CONFIG.write_text(render_config(settings))
    os.makedirs("/var/log/cluster", exist_ok=True)
    drop = "-ipc_lock,-sys_resource"
    return start_process(
        ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "corosync", "-f"]
    )
