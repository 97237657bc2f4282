"""Start of the node daemon: corosync first, as it needs longest, then the rest of Python."""

from __future__ import annotations

import os
import resource
import sys

from ssi.common.addresses import GATEWAY, PREFIX_LENGTH, node_address, node_name
from ssi.node.corosync import Corosync
from ssi.node.processes import start_process
from ssi.node.settings import Settings, read_settings

RUN = "/run/ssi"
MOST_DESCRIPTORS = 16384


def start_network(settings: Settings) -> None:
    """Give the interface its address and set the host name."""
    address = f"{node_address(settings.node)}/{PREFIX_LENGTH}"
    for argv in (
        ["hostname", node_name(settings.node)],
        ["ip", "addr", "replace", address, "broadcast", "+", "dev", settings.interface],
        ["ip", "link", "set", settings.interface, "up"],
        # Whether somebody answers there is the host's affair.
        ["ip", "route", "replace", "default", "via", GATEWAY],
    ):
        os.waitpid(start_process(argv), 0)


def main() -> int:
    """Run the daemon; called by PID 1, again whenever it ends."""
    restarted = os.path.isdir(RUN)
    os.makedirs(RUN, mode=0o700, exist_ok=True)
    os.chdir("/")
    # Each ghost has a connection, and 1024 are the default.
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, MOST_DESCRIPTORS))
    settings = read_settings()
    if not restarted:
        start_network(settings)
    corosync = Corosync(settings)

    # asyncio takes 0.4 s to load in a virtual node, in which corosync forms the ring.
    import asyncio  # noqa: PLC0415

    from ssi.node.daemon import run  # noqa: PLC0415
    from ssi.node.logs import set_up_logging  # noqa: PLC0415

    log = set_up_logging(settings.node)
    asyncio.run(run(settings, log, corosync, restarted=restarted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
