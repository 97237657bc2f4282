"""What the supervisor knows of one node while it lives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ssi.host.uml.node import VirtualNode

PHASES = ("booting", "init", "ring", "locks", "mounted", "ready", "stopping", "leaving",
          "left")  # fmt: skip
"""What a node says of itself, in this order; ready: member, root mounted, userland entered."""

TAIL = 6


@dataclasses.dataclass(slots=True)
class Member:
    """A node's state."""

    virtual: VirtualNode
    phase: str = "booting"
    boot: str = ""
    """Names this life of the node, as it says itself."""
    uptime_s: float = 0.0
    trouble: str = ""
    ring: tuple[int, ...] = ()
    quorate: bool = False
    view: int = 0
    """The number of the view it is in, whose members and init node follow."""
    view_members: tuple[int, ...] = ()
    init_node: int = 0
    going: str = ""
    """What the cluster is going down for, as this node says: poweroff, halt or reboot."""
    crashed: bool = False
    """`ssi rm` or the fence has killed it."""

    @property
    def number(self) -> int:
        """The node's number."""
        return self.virtual.number

    @property
    def ready(self) -> bool:
        """Whether it has come up."""
        return self.phase == "ready"

    def row(self) -> dict[str, Any]:
        """Return its state for `ssi ls -v` and --json."""
        return {
            "node": self.number, "state": self.phase, "ring": list(self.ring),
            "quorate": self.quorate, "view": self.view, "members": list(self.view_members),
            "init_node": self.init_node or None, "trouble": self.trouble,
            "pid": self.virtual.process.group,
        }  # fmt: skip


def read_tail(path: Path) -> str:
    """Return the last lines of the log at `path`, on one line."""
    try:
        lines = path.read_text(errors="replace").replace("\r", "").splitlines()
    except OSError:
        return ""
    return "; ".join(line.strip() for line in lines[-TAIL:] if line.strip())
