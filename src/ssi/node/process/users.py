"""Which nodes use the descriptors of a ghost: that of its body, and those that the body has left.

Where a body was, its children may still have descriptors that lead to the ghost. So each is only
closed when nobody has it on any node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ssi.common import wire
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message

MAX_FD = 2**20


@dataclasses.dataclass(slots=True)
class Users:
    """Of one ghost."""

    closed: set[int] = dataclasses.field(default_factory=set)
    """By the body."""
    others: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    """What those have open that the body has left behind, by their nodes."""
    ended: bool = False
    """The body has, and nobody on its node uses any."""

    def dump(self) -> Message:
        """Return what the next daemon must know."""
        others = [{"node": node, "fds": sorted(fds)} for node, fds in self.others.items()]
        return {"closed": sorted(self.closed), "others": others, "ended": self.ended}

    @classmethod
    def load(cls, saved: Message) -> Users:
        """Read it, or raise ProtocolError."""
        others = {
            wire.get_int(one, "node", 1, MAX_NODE): set(wire.get_ints(one, "fds", 0, MAX_FD))
            for one in wire.get_objects(saved, "others")
        }
        closed = set(wire.get_ints(saved, "closed", 0, MAX_FD))
        return cls(closed, others, wire.get_flag(saved, "ended"))

    @property
    def gone(self) -> bool:
        """Whether nobody uses any descriptor any more."""
        return self.ended and not self.others

    def move(self, old: int, new: int, open_at_old: Collection[int]) -> None:
        """The body goes from one node to another; some of the descriptors are open where it was."""
        if open_at_old and old != new:
            self.others[old] = set(open_at_old)
        self.closed -= self.others.pop(new, set())

    def close(self, node: int, fd: int) -> bool:
        """Take it that `node` has closed one; return whether nobody has it any more."""
        if node in self.others:
            self.others[node].discard(fd)
            if not self.others[node]:
                del self.others[node]
        else:
            self.closed.add(fd)
        return self._is_unused(fd)

    def lose(self, node: int) -> list[int]:
        """Take it that `node` is dead; return what nobody has any more."""
        return [fd for fd in self.others.pop(node, set()) if self._is_unused(fd)]

    def _is_unused(self, fd: int) -> bool:
        return (self.ended or fd in self.closed) and not any(
            fd in fds for fds in self.others.values()
        )
