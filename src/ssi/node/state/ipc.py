"""System V IPC objects that more than one node may mean: where they are, alike on every member."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.state.view import View

MAX_KEYS = 2000
MAX_MOVED = 2000
"""At once: with their homes all of them fit one message of corosync."""

RANGE_SHIFT, RANGES = 14, 1024
LIVES = 8
"""A range is `node * LIVES` and one of so many lives: what identifiers a node gives in this one."""

MAX_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Home:
    """A node, in one of its lives."""

    node: int
    boot: str

    def is_alive(self, view: View) -> bool:
        """Tell whether this life of the node has not ended."""
        return self.node in view.alive and view.boot_of(self.node) == self.boot

    def dump(self) -> Message:
        """Return it as a message."""
        return {"node": self.node, "boot": self.boot}

    @classmethod
    def load(cls, message: Message) -> Home:
        """Read it from a message, or raise ProtocolError."""
        return cls(wire.get_int(message, "node", 1, MAX_NODE), wire.get_text(message, "boot"))


def may_take(home: Home, dead: Home, takers: Mapping[str, Home], view: View) -> bool:
    """Tell whether `home` may make anew what a dead one had: nobody else that lives does."""
    taker = takers.get(dead.boot)
    return home.is_alive(view) and (taker is None or not taker.is_alive(view))


def key_name(kind: int, key: int) -> str:
    """Return what an object with a key is called."""
    return f"{kind}-{key & 0xFFFFFFFF:08x}"


def object_name(kind: int, identifier: int) -> str:
    """Return what an object is called."""
    return f"{kind}-{identifier}"


def range_of(identifier: int) -> int:
    """Return whose range an identifier is from."""
    return identifier >> RANGE_SHIFT & (RANGES - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Ipc:
    """All that is known of them."""

    lives: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """By range: which life of a node gives identifiers of it. Of a dead one until it is taken."""
    keys: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """Where the object of each key is."""
    moved: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """Where objects are whose first home is dead."""
    takers: Mapping[str, Home] = dataclasses.field(default_factory=dict)
    """Who makes anew what a life had that is over, until that is done."""

    def find(self, kind: int, identifier: int) -> Home | None:
        """Return where an object is, if there is one."""
        moved = self.moved.get(object_name(kind, identifier))
        return moved or self.lives.get(str(range_of(identifier)))

    def list_dead(self, view: View) -> list[Home]:
        """Return the lives that are over, and whose objects nobody has taken yet."""
        return [home for home in self.lives.values() if not home.is_alive(view)]

    def apply(self, message: Message, view: View) -> Ipc:
        """Return what an operation makes of it. One that cannot be done changes nothing."""
        home = Home.load(message)
        match wire.get_text(message, "do"):
            case "live":
                return self._live(wire.get_int(message, "range", LIVES, RANGES - 1), home, view)
            case "claim":
                return self._claim(_check_key(wire.get_text(message, "key")), home, view)
            case "release":
                key = _check_key(wire.get_text(message, "key"))
                return self._without(key) if self.keys.get(key) == home else self
            case "remove":
                name = _check_object(wire.get_text(message, "object"))
                moved = {n: h for n, h in self.moved.items() if n != name}
                return dataclasses.replace(self, moved=moved)
            case "begin":
                return self._begin(Home.load(wire.get_object(message, "dead")), home, view)
            case "take":
                return self._take(message, home, view)
            case operation:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _live(self, number: int, home: Home, view: View) -> Ipc:
        name = str(number)
        if name in self.lives or not home.is_alive(view) or home in self.lives.values():
            return self
        return dataclasses.replace(self, lives={**self.lives, name: home})

    def _claim(self, key: str, home: Home, view: View) -> Ipc:
        if key in self.keys or not home.is_alive(view) or len(self.keys) >= MAX_KEYS:
            return self
        return dataclasses.replace(self, keys={**self.keys, key: home})

    def _without(self, key: str) -> Ipc:
        return dataclasses.replace(self, keys={k: h for k, h in self.keys.items() if k != key})

    def _begin(self, dead: Home, home: Home, view: View) -> Ipc:
        """`home` takes what a dead one had, unless another does."""
        if dead not in self.list_dead(view) or not may_take(home, dead, self.takers, view):
            return self
        return dataclasses.replace(self, takers={**self.takers, dead.boot: home})

    def _take(self, message: Message, home: Home, view: View) -> Ipc:
        """`home` has made anew what could be, of all that a dead one had."""
        dead = Home.load(wire.get_object(message, "dead"))
        keys = {_check_key(key) for key in wire.get_texts(message, "keys")}
        objects = [_check_object(name) for name in wire.get_texts(message, "objects")][:MAX_MOVED]
        if dead not in self.list_dead(view) or self.takers.get(dead.boot) != home:
            return self
        stay = {name: at for name, at in self.moved.items() if at != dead}
        return Ipc(
            {name: at for name, at in self.lives.items() if at != dead},
            {
                key: home if at == dead else at
                for key, at in self.keys.items()
                if at != dead or key in keys
            },
            {**stay, **dict.fromkeys(objects, home)},
            {boot: at for boot, at in self.takers.items() if boot != dead.boot},
        )

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            part: {name: home.dump() for name, home in getattr(self, part).items()}
            for part in ("lives", "keys", "moved", "takers")
        }

    @classmethod
    def load(cls, message: Message) -> Ipc:
        """Read it from a message, or raise ProtocolError."""
        parts = ("lives", "keys", "moved", "takers")
        lives, keys, moved, takers = (wire.get_object(message, part) for part in parts)
        return cls(
            {_check_range(name): Home.load(wire.get_object(lives, name)) for name in lives},
            {_check_key(name): Home.load(wire.get_object(keys, name)) for name in keys},
            {_check_object(name): Home.load(wire.get_object(moved, name)) for name in moved},
            {boot: Home.load(wire.get_object(takers, boot)) for boot in takers},
        )


def _check_range(name: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", name) or int(name) >= RANGES:
        raise ProtocolError(f"{name!r:.40} is no range of identifiers")
    return name


def _check_key(name: str) -> str:
    if not re.fullmatch(r"[012]-[0-9a-f]{8}", name):
        raise ProtocolError(f"{name!r:.40} is no key of an IPC object")
    return name


def _check_object(name: str) -> str:
    if not re.fullmatch(r"[012]-[0-9]{1,10}", name):
        raise ProtocolError(f"{name!r:.40} is no IPC object")
    return name
