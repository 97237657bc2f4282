"""Reads /etc/inittab.ssi of the shared root."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.cluster import Cluster
from ssi.node.root import SYSROOT
from ssi.node.state.inittab import CONSOLE, Inittab, dump_entries, parse_inittab

logger = logging.getLogger(__name__)

FILE = "etc/inittab.ssi"
LIMIT = 64 * 1024
"""Bytes: what its entries are must fit one message of corosync."""

WITHIN_S = 30.0
AGAIN_S = 5.0


def _read(path: Path) -> str:
    with path.open(errors="replace") as file:
        return file.read(LIMIT + 1)


async def read_inittab(root: Path = SYSROOT) -> Inittab:
    """Return what is in the file, a login on each console if it is missing; raises SsiError."""
    try:
        # In a thread: while locks are recovered, the root lets its readers wait.
        async with asyncio.timeout(WITHIN_S):
            text = await asyncio.to_thread(_read, root / FILE)
    except FileNotFoundError:
        return parse_inittab(CONSOLE)
    except TimeoutError as error:
        raise SsiError(f"/{FILE}: the root does not answer") from error
    except OSError as error:
        raise SsiError(f"/{FILE}: {error.strerror}") from error
    if len(text) > LIMIT:
        raise SsiError(f"/{FILE} is larger than {LIMIT >> 10} KiB")
    return parse_inittab(text)


def propose_inittab(cluster: Cluster, inittab: Inittab) -> None:
    """Have the cluster's init go by `inittab` from now on."""
    cluster.propose(
        "init", "inittab", entries=dump_entries(inittab.entries), level=inittab.default_level
    )


async def begin(cluster: Cluster) -> None:
    """Read the file for the first time, if it comes to this node to do it; return when it is read.

    The next init node has what this one has read, whatever a person makes of the file meanwhile.
    """

    def ours() -> bool:
        state = cluster.known
        return state is not None and (
            bool(state.init.level) or state.view.init_node == cluster.node
        )

    while True:
        await cluster.changes.wait_for(ours)
        assert cluster.known
        if cluster.known.init.level:
            return
        try:
            inittab = await read_inittab()
        except SsiError as error:
            logger.error("%s", error)
            await asyncio.sleep(AGAIN_S)
            continue
        for fault in inittab.faults:
            logger.warning("/%s: %s", FILE, fault)
        propose_inittab(cluster, inittab)
        await cluster.changes.wait()
