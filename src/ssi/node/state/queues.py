"""POSIX message queues: on which node the queue of each name is, the same on every member."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from urllib.parse import quote_from_bytes

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.state.ipc import Home, may_take
from ssi.node.state.view import View

MAX_QUEUES = 1000
"""At once: with their homes all of them fit one message of corosync."""

MAX_NAME = 3 * 255

MAX_HEIRS = 64
"""Lives that are over, and of which it is known who has their queues."""


def queue_name(name: bytes) -> str:
    """Return what a queue is called: the kernel's name, without a slash, as in an URL."""
    return quote_from_bytes(name, safe="")


@dataclasses.dataclass(frozen=True, slots=True)
class Queues:
    """All of them, by their names."""

    homes: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    lives: tuple[Home, ...] = ()
    """Lives of nodes in which others have had queues of theirs open; a dead one's until its queues
    are taken."""
    heirs: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """Who has taken the queues of a life that is over: the oldest first."""
    takers: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """Who makes those of a life anew that is over, until that is done."""

    def apply(self, message: Message, view: View) -> Queues:
        """Return what an operation makes of them. One that cannot be done changes nothing."""
        home = Home.load(message)
        match wire.get_text(message, "do"):
            case "claim":
                return self._claim(check_name(wire.get_text(message, "name")), home, view)
            case "release":
                return self._release(check_name(wire.get_text(message, "name")), home)
            case "share":
                if home in self.lives or not home.is_alive(view):
                    return self
                return dataclasses.replace(self, lives=(*self.lives, home))
            case "begin":
                return self._begin(Home.load(wire.get_object(message, "dead")), home, view)
            case "take":
                return self._take(message, home, view)
            case operation:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _claim(self, name: str, home: Home, view: View) -> Queues:
        # With a node those of its queues are gone that nobody else has had open.
        there = {n: at for n, at in self.homes.items() if at.is_alive(view) or at in self.lives}
        if name in there or not home.is_alive(view) or len(there) >= MAX_QUEUES:
            return self
        return dataclasses.replace(self, homes={**there, name: home})

    def _release(self, name: str, home: Home) -> Queues:
        if self.homes.get(name) != home:
            return self
        homes = {n: at for n, at in self.homes.items() if n != name}
        return dataclasses.replace(self, homes=homes)

    def _begin(self, dead: Home, home: Home, view: View) -> Queues:
        """`home` takes the queues of a dead one, unless another does."""
        if dead not in self.list_dead(view) or not may_take(home, dead, self.takers, view):
            return self
        return dataclasses.replace(self, takers={**self.takers, dead.boot: home})

    def _take(self, message: Message, heir: Home, view: View) -> Queues:
        """`heir` has made anew what could be, of all that dead ones had."""
        named = [Home.load(one) for one in wire.get_objects(message, "dead")]
        over = self.list_dead(view)
        dead = [one for one in named if one in over and self.takers.get(one.boot) == heir]
        names = {check_name(name) for name in wire.get_texts(message, "names")}
        if not dead:
            return self
        homes = {
            name: heir if at in dead else at
            for name, at in self.homes.items()
            if at not in dead or name in names
        }
        lives = [one for one in self.lives if one not in dead and one != heir]
        heirs = {**self.heirs, **{one.boot: heir for one in dead}}
        latest = list(heirs.items())[-MAX_HEIRS:]
        boots = {one.boot for one in dead}
        takers = {boot: at for boot, at in self.takers.items() if boot not in boots}
        return Queues(homes, (*lives, heir), dict(latest), takers)

    def list_living(self, view: View) -> dict[str, Home]:
        """Return those whose node lives."""
        return {name: home for name, home in self.homes.items() if home.is_alive(view)}

    def list_dead(self, view: View) -> list[Home]:
        """Return the lives that are over, and whose queues nobody has taken yet."""
        return [home for home in self.lives if not home.is_alive(view)]

    def follow(self, home: Home, view: View) -> Home | None:
        """Return who has now what `home` had: it may be dead and not taken yet; None: nobody."""
        while not home.is_alive(view) and home not in self.lives:
            if home.boot not in self.heirs:
                return None
            home = self.heirs[home.boot]
        return home

    def dump(self) -> Message:
        """Return them as a message."""
        return {
            "homes": {name: home.dump() for name, home in self.homes.items()},
            "lives": [home.dump() for home in self.lives],
            "heirs": {boot: home.dump() for boot, home in self.heirs.items()},
            "takers": {boot: home.dump() for boot, home in self.takers.items()},
        }

    @classmethod
    def load(cls, message: Message) -> Queues:
        """Read them from a message, or raise ProtocolError."""
        parts = ("homes", "heirs", "takers")
        homes, heirs, takers = (wire.get_object(message, part) for part in parts)
        return cls(
            {check_name(name): Home.load(wire.get_object(homes, name)) for name in homes},
            tuple(Home.load(one) for one in wire.get_objects(message, "lives")),
            {boot: Home.load(wire.get_object(heirs, boot)) for boot in heirs},
            {boot: Home.load(wire.get_object(takers, boot)) for boot in takers},
        )


def check_name(name: str) -> str:
    """Return `name` if it may be a queue's, else raise ProtocolError."""
    if len(name) > MAX_NAME or not re.fullmatch(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", name):
        raise ProtocolError(f"{name!r:.80} is no name of a queue")
    return name
