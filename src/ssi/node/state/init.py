"""The cluster's one init: its entries, runlevel, what has been run, and a shutdown under way."""

from __future__ import annotations

import dataclasses
import enum

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.state.inittab import BEFORE, LEVELS, Entry, dump_entries, load_entries
from ssi.node.state.view import View

LIMIT = 2**53
HOW = ("poweroff", "halt", "reboot")


class Phase(enum.StrEnum):
    """How far a shutdown is."""

    PLANNED = "planned"
    STOPPING = "stopping"
    """Services end; entries with the action shutdown run."""
    LEAVING = "leaving"
    """Every node leaves."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shutdown:
    """The cluster is to go down at `time`, a Unix time in seconds."""

    how: str
    time: float
    by: str
    text: str
    phase: Phase


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """An entry that has been run to its end: on which node (0: for the cluster), in which life."""

    entry: str
    node: int
    life: str


@dataclasses.dataclass(frozen=True, slots=True)
class Init:
    """The state of the cluster's init."""

    entries: tuple[Entry, ...] = ()
    level: str = ""
    """Empty until inittab.ssi has been read for the first time."""
    previous: str = ""
    turn: int = 0
    """Grows with each change of the runlevel."""
    done: frozenset[Mark] = frozenset()
    shutdown: Shutdown | None = None

    def mark_for(self, entry: Entry, node: int, boot: str) -> Mark:
        """Return the mark that says `entry` has been run, on `node` in its life `boot`."""
        life = [] if entry.is_of_cluster else [boot]
        if entry.action not in BEFORE:
            life.append(str(self.turn))
        return Mark(entry.id, 0 if entry.is_of_cluster else node, "/".join(life))

    def apply(self, message: Message, view: View) -> Init:
        """Return what an operation makes of it, or raise ProtocolError."""
        operation = wire.get_text(message, "do")
        match operation:
            case "inittab":
                entries = load_entries(message, "entries")
                level = self.level or _get_level(message, "level")
                return dataclasses.replace(self, entries=entries, level=level)
            case "level":
                return self._enter(_get_level(message, "level"))
            case "ran":
                return self._note(_load_mark(message), view)
            case "shutdown":
                return self._plan(_load_shutdown(message))
            case "cancel":
                return self._plan(None)
            case "phase":
                return self._go_on(Phase(wire.get_word(message, "phase", list(Phase))))
            case _:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _plan(self, shutdown: Shutdown | None) -> Init:
        # From one that has begun there is no way back.
        if self.shutdown and self.shutdown.phase is not Phase.PLANNED:
            return self
        return dataclasses.replace(self, shutdown=shutdown)

    def _enter(self, level: str) -> Init:
        if level == self.level:
            return self
        # Marks of the level that was left say nothing any more.
        kinds = {entry.id: entry.action for entry in self.entries}
        kept = frozenset(mark for mark in self.done if kinds.get(mark.entry) in BEFORE)
        return dataclasses.replace(
            self, level=level, previous=self.level, turn=self.turn + 1, done=kept
        )

    def _note(self, mark: Mark, view: View) -> Init:
        living = {view.boot_of(node) for node in view.alive}
        kept = {m for m in self.done if m.node == 0 or m.life.partition("/")[0] in living}
        return dataclasses.replace(self, done=frozenset({*kept, mark}))

    def _go_on(self, phase: Phase) -> Init:
        order = list(Phase)
        if not self.shutdown or order.index(phase) <= order.index(self.shutdown.phase):
            return self
        shutdown = dataclasses.replace(self.shutdown, phase=phase)
        return dataclasses.replace(self, shutdown=shutdown)

    # -- on the wire -----------------------------------------------------------------------------

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "entries": dump_entries(self.entries), "level": self.level, "previous": self.previous,
            "turn": self.turn, "done": [dataclasses.asdict(mark) for mark in sorted(
                self.done, key=lambda m: (m.entry, m.node, m.life)
            )],
            "shutdown": [dataclasses.asdict(self.shutdown)] if self.shutdown else [],
        }  # fmt: skip

    @classmethod
    def load(cls, message: Message) -> Init:
        """Read it from a message, or raise ProtocolError."""
        shutdowns = wire.get_objects(message, "shutdown")
        return cls(
            entries=load_entries(message, "entries"), level=wire.get_text(message, "level"),
            previous=wire.get_text(message, "previous"),
            turn=wire.get_int(message, "turn", 0, LIMIT),
            done=frozenset(map(_load_mark, wire.get_objects(message, "done"))),
            shutdown=_load_shutdown(shutdowns[0]) if shutdowns else None,
        )  # fmt: skip


def _get_level(message: Message, key: str) -> str:
    return wire.get_word(message, key, list(LEVELS))


def _load_mark(message: Message) -> Mark:
    return Mark(
        wire.get_text(message, "entry"), wire.get_int(message, "node", 0, MAX_NODE),
        wire.get_text(message, "life"),
    )  # fmt: skip


def _load_shutdown(message: Message) -> Shutdown:
    return Shutdown(
        wire.get_word(message, "how", HOW), wire.get_number(message, "time"),
        wire.get_text(message, "by"), wire.get_text(message, "text"),
        Phase(wire.get_word(message, "phase", list(Phase))),
    )  # fmt: skip
