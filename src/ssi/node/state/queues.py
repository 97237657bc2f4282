"""POSIX message queues: on which node the queue of each name is, the same on every member."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from urllib.parse import quote_from_bytes

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.state.ipc import Home
from ssi.node.state.view import View

MAX_QUEUES = 1000
"""At once: with their homes all of them fit one message of corosync."""

MAX_NAME = 3 * 255


def queue_name(name: bytes) -> str:
    """Return what a queue is called: the kernel's name, without a slash, as in an URL."""
    return quote_from_bytes(name, safe="")


@dataclasses.dataclass(frozen=True, slots=True)
class Queues:
    """All of them, by their names."""

    homes: Mapping[str, Home] = dataclasses.field(default_factory=dict)

    def apply(self, message: Message, view: View) -> Queues:
        """Return what an operation makes of them. One that cannot be done changes nothing."""
        name, home = check_name(wire.get_text(message, "name")), Home.load(message)
        match wire.get_text(message, "do"):
            case "claim":
                # With a node its queues are gone.
                living = {n: at for n, at in self.homes.items() if at.is_alive(view)}
                if name in living or not home.is_alive(view) or len(living) >= MAX_QUEUES:
                    return self
                return Queues({**living, name: home})
            case "release":
                if self.homes.get(name) != home:
                    return self
                return Queues({n: at for n, at in self.homes.items() if n != name})
            case operation:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def list_living(self, view: View) -> dict[str, Home]:
        """Return those whose node lives."""
        return {name: home for name, home in self.homes.items() if home.is_alive(view)}

    def dump(self) -> Message:
        """Return them as a message."""
        return {name: home.dump() for name, home in self.homes.items()}

    @classmethod
    def load(cls, message: Message) -> Queues:
        """Read them from a message, or raise ProtocolError."""
        return cls({check_name(n): Home.load(wire.get_object(message, n)) for n in message})


def check_name(name: str) -> str:
    """Return `name` if it may be a queue's, else raise ProtocolError."""
    if len(name) > MAX_NAME or not re.fullmatch(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", name):
        raise ProtocolError(f"{name!r:.80} is no name of a queue")
    return name
