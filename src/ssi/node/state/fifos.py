"""FIFOs that are open: in which node's kernel the pipe of each is, the same on every member."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.state.view import View

MAX_FIFOS = 2000
"""At once: with their homes all of them fit one message of corosync."""


@dataclasses.dataclass(frozen=True, slots=True)
class Home:
    """A node, in one of its lives."""

    node: int
    boot: str
    gathers: bool = False
    """It has taken over from a dead one, and has not got all ends yet."""

    def is_alive(self, view: View) -> bool:
        """Tell whether this life of the node has not ended."""
        return self.node in view.alive and view.boot_of(self.node) == self.boot


@dataclasses.dataclass(frozen=True, slots=True)
class Fifos:
    """All of them, by their names (fifo/names.py)."""

    homes: Mapping[str, Home] = dataclasses.field(default_factory=dict)

    def apply(self, message: Message, view: View) -> Fifos:
        """Return what an operation makes of them. One that cannot be done changes nothing."""
        name, operation = check_name(wire.get_text(message, "name")), wire.get_text(message, "do")
        asks = _load_home(message)
        has = self.homes.get(name)
        match operation:
            case "claim":
                return self._claim(name, asks, has, view)
            case "settle":
                if has == dataclasses.replace(asks, gathers=True):
                    return Fifos({**self.homes, name: asks})
                return self
            case "release":
                if has == asks:
                    return Fifos({n: home for n, home in self.homes.items() if n != name})
                return self
            case _:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _claim(self, name: str, asks: Home, has: Home | None, view: View) -> Fifos:
        if not asks.is_alive(view) or (has and has.is_alive(view)):
            return self
        if has is None and len(self.homes) >= MAX_FIFOS:
            return self
        return Fifos({**self.homes, name: dataclasses.replace(asks, gathers=has is not None)})

    def dump(self) -> Message:
        """Return them as a message."""
        return {name: dataclasses.asdict(home) for name, home in self.homes.items()}

    @classmethod
    def load(cls, message: Message) -> Fifos:
        """Read them from a message, or raise ProtocolError."""
        homes = {}
        for name in message:
            fields = wire.get_object(message, name)
            gathers = wire.get_flag(fields, "gathers")
            homes[check_name(name)] = dataclasses.replace(_load_home(fields), gathers=gathers)
        return cls(homes)


def _load_home(message: Message) -> Home:
    return Home(wire.get_int(message, "node", 1, MAX_NODE), wire.get_text(message, "boot"))


def check_name(name: str) -> str:
    """Return `name` if it may be a FIFO's, else raise ProtocolError."""
    if not re.fullmatch(r"[0-9a-f]{1,2}(-[0-9a-f]{8}){1,8}", name):
        raise ProtocolError(f"{name!r:.80} is no name of a FIFO")
    return name
