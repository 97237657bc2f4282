"""State that every member has: operations in one order, and a copy of it all for who joins.

Pure: it is told what the group delivers and returns what is to be sent. All members get the same
messages and changes in the same order.

Who does not know the state asks (`ask`), and keeps the operations that come. The lowest member that
knows it answers (`state`); of the operations kept, those are applied that the answer does not
contain. Whoever cannot be sure of its state (it has lost others and found them again) forgets it
and asks as well.

If nobody knows it any more, as all daemons have died at once, each still has what it had saved. A
voter that asks hears from each ignorant member how far it had come (`ignorant`). When all have said
so, and the ring has no other, the voter that had come furthest begins from there (`begin`). The
first voter of a cluster begins with nothing.

A member says how far it has come (`seen`) once that is saved. What all living nodes have seen can
no longer be lost while one of them lives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message

S = TypeVar("S")

MAX_SERIAL = 2**53
MAX_RUN = 2**63


@dataclasses.dataclass(frozen=True)
class Machine(Generic[S]):
    """What a state of type S is: where it begins, and what an operation makes of it.

    `apply(state, sender, operation)` must depend on nothing else; it raises ProtocolError for what
    is no operation. `dump` and `load` turn a state into a message and back; `load` checks it.
    """

    begin: S
    apply: Callable[[S, int, Message], S]
    dump: Callable[[S], Message]
    load: Callable[[Message], S]


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot(Generic[S]):
    """A state, how many operations made it, and the last one of each sender: its run and number.

    A later run of a sender has a higher number than an earlier one.
    """

    state: S
    index: int
    marks: dict[int, tuple[int, int]]

    def dump(self, machine: Machine[S]) -> Message:
        """Return it as a message."""
        return {
            "index": self.index,
            "marks": [{"node": n, "run": run, "number": k} for n, (run, k) in self.marks.items()],
            "state": machine.dump(self.state),
        }

    @classmethod
    def load(cls, machine: Machine[S], message: Message) -> Snapshot[S]:
        """Read it from a message, or raise ProtocolError."""
        marks = {}
        for mark in wire.get_objects(message, "marks"):
            last = (
                wire.get_int(mark, "run", 0, MAX_RUN),
                wire.get_int(mark, "number", 0, MAX_SERIAL),
            )
            marks[wire.get_int(mark, "node", 1, MAX_NODE)] = last
        state = machine.load(wire.get_object(message, "state"))
        return cls(state, wire.get_int(message, "index", 0, MAX_SERIAL), marks)

    def apply(self, machine: Machine[S], sender: int, message: Message) -> Snapshot[S]:
        """Return what an operation makes of it; one that was applied before changes nothing."""
        number = wire.get_int(message, "number", 1, MAX_SERIAL)
        mark = wire.get_int(message, "run", 0, MAX_RUN), number
        if mark <= self.marks.get(sender, (-1, 0)):
            return self
        state = machine.apply(self.state, sender, wire.get_object(message, "operation"))
        return Snapshot(state, self.index + 1, {**self.marks, sender: mark})


class Replica(Generic[S]):
    """One member's copy of a state."""

    def __init__(self, me: int, machine: Machine[S], saved: Snapshot[S] | None = None) -> None:
        self._me = me
        self._machine = machine
        self._saved = saved
        """What was known before; all there is if the others have forgotten, too."""
        self.known: Snapshot[S] | None = None
        """What is so; None while it is not known."""
        self.seen: dict[int, int] = {}
        """How far each member that knows the state has come, as it said itself."""
        self._voter = self._founder = False
        self._ring: frozenset[int] = frozenset()
        self._members: frozenset[int] = frozenset()
        self._since: list[tuple[int, Message]] = []
        """Operations that have come while the state is not known."""
        self._serial = 0
        """Of our request; a change of the group makes it void, and another is made."""
        self._askers: dict[int, int] = {}
        """Requests of others since the last change, not answered as far as we know."""
        self._ignorant: dict[int, tuple[bool, int]] = {}
        """Who has heard our request and does not know: whether it votes, how far it had come."""
        self._begun = False
        """Somebody has begun since the last change."""
        self._begin_sent = 0

    # -- what happens ----------------------------------------------------------------------------

    def change(
        self, members: frozenset[int], left: frozenset[int], joined: frozenset[int], *, firm: bool
    ) -> list[Message]:
        """The group has changed; return what is to be sent.

        Not `firm`: what others did meanwhile may count for more than what we know.
        """
        self._members = members
        self._askers = {}
        self._begun = False
        for node in left | joined:
            self.seen.pop(node, None)
        if self._me in joined or not firm:
            self._forget()
        return [] if self.known else self._ask()

    def learn(self, *, voter: bool, founder: bool, ring: frozenset[int]) -> list[Message]:
        """These are facts now: whether this node votes, is the first to, and who is in the ring."""
        news = voter and not self._voter
        self._voter, self._founder, self._ring = voter, founder, ring
        if self.known or not self._members:
            return []
        return self._ask() if news else self._begin_if_due()

    def ask_again(self) -> list[Message]:
        """Some time has passed; return what is to be sent once more, nothing if all is well."""
        if self.known or not self._members:
            return []
        return [self._request(urgent=True)]

    def deliver(self, sender: int, message: Message) -> list[Message]:
        """A message has come, in its place in the order; return what is to be sent."""
        kind = wire.get_text(message, "is")
        match kind:
            case "do":
                return self._hear_operation(sender, message)
            case "seen":
                self.seen[sender] = wire.get_int(message, "index", 0, MAX_SERIAL)
                return []
            case "ask":
                return self._hear_ask(sender, message)
            case "state":
                return self._hear_state(message)
            case "ignorant":
                return self._hear_ignorant(sender, message)
            case "begin":
                return self._hear_begin(sender, wire.get_int(message, "serial", 1, MAX_SERIAL))
            case _:
                raise ProtocolError(f"unknown kind {kind!r:.40}")

    # -- asking ----------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._saved = self.known or self._saved
        self.known = None
        self.seen.pop(self._me, None)
        self._since = []

    def _ask(self) -> list[Message]:
        self._serial += 1
        self._ignorant = {}
        return [self._request(urgent=False)]

    def _request(self, *, urgent: bool) -> Message:
        return {"is": "ask", "serial": self._serial, "voter": self._voter, "urgent": urgent}

    def _hear_ask(self, joiner: int, message: Message) -> list[Message]:
        serial = wire.get_int(message, "serial", 1, MAX_SERIAL)
        voter, urgent = wire.get_flag(message, "voter"), wire.get_flag(message, "urgent")
        if joiner != self._me:
            self.seen.pop(joiner, None)
        if self.known:
            # An urgent one was not answered in time: the lowest is not who we think it is.
            lowest = min(self.seen.keys() | {self._me})
            mine = joiner != self._me and (urgent or lowest == self._me)
            return [self._answer(joiner, serial)] if mine else []
        self._askers[joiner] = serial
        if not voter:
            return []
        index = self._saved.index if self._saved else -1
        return [{
            "is": "ignorant", "to": joiner, "serial": serial, "voter": self._voter, "index": index,
        }]  # fmt: skip

    def _answer(self, joiner: int, serial: int) -> Message:
        assert self.known
        seen = [{"node": node, "index": index} for node, index in self.seen.items()]
        return {
            "is": "state", "for": joiner, "serial": serial, "seen": seen,
            **self.known.dump(self._machine),
        }  # fmt: skip

    def _hear_state(self, message: Message) -> list[Message]:
        receiver = wire.get_int(message, "for", 1, MAX_NODE)
        serial = wire.get_int(message, "serial", 1, MAX_SERIAL)
        if receiver != self._me or self.known or serial != self._serial:
            return []
        known = Snapshot.load(self._machine, message)
        for entry in wire.get_objects(message, "seen"):
            node = wire.get_int(entry, "node", 1, MAX_NODE)
            if node in self._members and node not in self.seen and node not in self._askers:
                self.seen[node] = wire.get_int(entry, "index", 0, MAX_SERIAL)
        return self._know(known)

    def _know(self, known: Snapshot[S]) -> list[Message]:
        self.known = known
        since, self._since = self._since, []
        for sender, operation in since:
            self.known = self.known.apply(self._machine, sender, operation)
        return [self._tell_seen()]

    # -- beginning -------------------------------------------------------------------------------

    def _hear_ignorant(self, sender: int, message: Message) -> list[Message]:
        receiver = wire.get_int(message, "to", 1, MAX_NODE)
        serial = wire.get_int(message, "serial", 1, MAX_SERIAL)
        voter, index = (
            wire.get_flag(message, "voter"),
            wire.get_int(message, "index", -1, MAX_SERIAL),
        )
        if receiver != self._me or serial != self._serial:
            return []
        self._ignorant[sender] = (voter, index)
        return self._begin_if_due()

    def _begin_if_due(self) -> list[Message]:
        if self.known or not self._voter or self._begin_sent == self._serial:
            return []
        if self._me not in self._ignorant:
            return []  # our own request has not come yet, or it was made without a vote
        if not self._founder:
            # A node of the ring whose daemon is away may be the one that has come furthest.
            if not (self._ignorant.keys() >= self._members >= self._ring):
                return []
            voters = {n: index for n, (voter, index) in self._ignorant.items() if voter}
            if self._me != max(voters, key=lambda n: (voters[n], -n)):
                return []
        self._begin_sent = self._serial
        return [{"is": "begin", "serial": self._serial}]

    def _hear_begin(self, sender: int, serial: int) -> list[Message]:
        if self._begun or self._askers.get(sender) != serial:
            return []  # a change has overtaken it, or another has been first
        self._begun = True
        if sender != self._me or self.known:
            return []
        messages = self._know(self._saved or Snapshot(self._machine.begin, 0, {}))
        askers = {n: asked for n, asked in self._askers.items() if n != self._me}
        return [*(self._answer(n, asked) for n, asked in askers.items()), *messages]

    # -- operations ------------------------------------------------------------------------------

    def _hear_operation(self, sender: int, message: Message) -> list[Message]:
        if self.known is None:
            self._since.append((sender, message))
            return []
        self.known = self.known.apply(self._machine, sender, message)
        return [self._tell_seen()]

    def _tell_seen(self) -> Message:
        assert self.known
        return {"is": "seen", "index": self.known.index}
