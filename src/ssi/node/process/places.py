"""Where a process is: its PID says from where it comes, and here is known who is elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ssi.node.pids import origin_of
from ssi.node.process.bodies import Bodies
from ssi.node.process.ghosts import Ghosts
from ssi.node.process.jobcontrol import group_of
from ssi.node.process.standins import StandIns


class Places:
    """What this node knows."""

    def __init__(self, node: int, ghosts: Ghosts, bodies: Bodies, stand_ins: StandIns) -> None:
        self.node = node
        self.ghosts = ghosts
        self.bodies = bodies
        self.stand_ins = stand_ins
        self.arriving: set[int] = set()
        """Processes that are being restored here."""
        self.kept: set[int] = set()
        """Processes that only keep the memory of one that has left."""
        self.on_move: list[Callable[[int], Awaitable[None]]] = []
        """Hear of a process that is about to be here, or no more."""

    async def tell_move(self, pid: int) -> None:
        """Have everybody forget where process `pid` was."""
        for hear in self.on_move:
            await hear(pid)

    def find(self, pid: int) -> int:
        """Return the node to ask about process `pid`: this one if it can only be here."""
        if ghost := self.ghosts.find(pid):
            return ghost.node
        if self.bodies.find(pid):
            return self.node
        return origin_of(pid) or self.node

    def is_arriving(self, pid: int) -> bool:
        """Tell whether it is being restored here, and may still run where it comes from."""
        return any(body.pid == pid for body in self.bodies.arriving)

    def is_placeholder(self, pid: int) -> bool:
        """Tell whether a process of this node only stands for one elsewhere."""
        return pid in self.stand_ins or self.ghosts.find(pid) is not None

    @property
    def hidden(self) -> set[int]:
        """All processes of this node that only stand for one elsewhere, or keep what it has."""
        return self.ghosts.pids | self.stand_ins.pids | self.kept

    @property
    def terminals(self) -> dict[int, int]:
        """The device number of the terminal, at home, of each body that has one."""
        return {body.pid: body.tty for body in self.bodies.all if body.pid and body.tty}

    def is_ghost(self, pid: int) -> bool:
        """Tell whether it is a ghost here."""
        return self.ghosts.find(pid) is not None

    def is_spread(self, group: int) -> bool:
        """Tell whether a group has, or may have, members on other nodes."""
        known = {*self.ghosts.pids, *self.stand_ins.pids, *(b.pid for b in self.bodies.all)}
        return group in known or any(group_of(pid) == group for pid in known)

    def nodes_of_group(self, group: int, members: list[int]) -> set[int]:
        """Return the other nodes on which there may be members of a group.

        `members` are those of this node, placeholders with them: where one is a ghost, others may
        be where its body is, and so they may where the body of the leader is.
        """
        ghosts = (self.ghosts.find(pid) for pid in (group, *members))
        return {ghost.node for ghost in ghosts if ghost}
