"""A node's own files on the shared root: /cluster/nodeN, which all nodes see.

/sbin/make-userland makes the folder and mounts its parts where they belong. What need not be done
before the node is up is done here.
"""

from __future__ import annotations

import logging

from ssi.common.errors import SsiError
from ssi.node import root
from ssi.node.cluster import Cluster

logger = logging.getLogger(__name__)

# In the userland: the names of groups are those of the root. -x: what is mounted in /dev (pts, shm)
# is no device node. These files only tell of the devices: /cluster is mounted nodev.
TIDY = """\
cd "/cluster/node$1" || exit
chgrp utmp run/utmp && chmod 664 run/utmp
rm -rf .old.* .new && mkdir .new && cp -ax /dev/. .new && rm -rf dev && mv .new dev
# What processes of the cluster's former lives have shared.
for old in /cluster/shm.* /cluster/sysv.*; do case $old in *".$2") ;; *) rm -rf "$old" ;; esac; done
"""


async def tidy(cluster: Cluster) -> None:
    """List this node's devices in /cluster/nodeN/dev, and remove what its last /run had."""
    state = await cluster.wait_known()
    argv = ["/bin/sh", "-c", TIDY, "sh", str(cluster.node), state.view.life]
    try:
        await root.run(*root.userland_argv(argv))
    except SsiError as error:
        logger.warning("/cluster/node%d: %s", cluster.node, error)
