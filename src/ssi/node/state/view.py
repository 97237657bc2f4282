"""The view: the numbered membership that is the same on every member, and each node's state."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message

HISTORY = 256
"""Transitions that are remembered."""

LIMIT = 2**53


class NodeState(enum.StrEnum):
    """OpenSSI's eight states of a node."""

    NEVERUP = "NEVERUP"
    COMINGUP = "COMINGUP"
    """Its daemon has joined; it has not mounted the root yet."""
    UP = "UP"
    SHUTDOWN = "SHUTDOWN"
    """It is being shut down in order: its services end, and then it is GOINGDOWN."""
    GOINGDOWN = "GOINGDOWN"
    """Its processes end, and it leaves the root."""
    KCLEANUP = "KCLEANUP"
    """Its death is confirmed; kernels recover what it held."""
    UCLEANUP = "UCLEANUP"
    """rc.nodedown runs for it."""
    DOWN = "DOWN"


ALIVE = frozenset({NodeState.COMINGUP, NodeState.UP, NodeState.SHUTDOWN, NodeState.GOINGDOWN})
STAYS_INIT = frozenset({NodeState.UP, NodeState.SHUTDOWN})
_S = NodeState

LEGAL = {
    (_S.UP, _S.SHUTDOWN), (_S.UP, _S.GOINGDOWN), (_S.SHUTDOWN, _S.UP), (_S.SHUTDOWN, _S.GOINGDOWN),
}  # fmt: skip
"""What a person may ask for (clusternode_setstate); the rest comes about by itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """What is known of one node; `boot` names its life, `since` is a Unix time in seconds."""

    state: NodeState
    boot: str
    since: float


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One node's way from one state to another, and the view from then on."""

    number: int
    time: float
    node: int
    was: NodeState
    now: NodeState
    cause: str
    view: int


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A nodeup or nodedown whose script has not been run to its end yet."""

    number: int
    kind: str
    node: int


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """The membership. `number` grows by one with each change of `members`."""

    number: int = 0
    nodes: Mapping[int, Node] = dataclasses.field(default_factory=dict)
    init_node: int | None = None
    """Runs what the cluster has only one of; stays until it is lost, then the lowest member."""
    life: str = ""
    """Names this life of the cluster: the first life of a node in it."""
    transitions: tuple[Transition, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def members(self) -> tuple[int, ...]:
        """The nodes that are up."""
        return tuple(sorted(n for n, node in self.nodes.items() if node.state is NodeState.UP))

    @property
    def alive(self) -> frozenset[int]:
        """The nodes whose death is not confirmed, members or not."""
        return frozenset(n for n, node in self.nodes.items() if node.state in ALIVE)

    def state_of(self, node: int) -> NodeState:
        """Return the state of `node`, any number."""
        return self.nodes[node].state if node in self.nodes else NodeState.NEVERUP

    def boot_of(self, node: int) -> str:
        """Return the name of the present or last life of `node`."""
        return self.nodes[node].boot if node in self.nodes else ""

    def apply(self, message: Message) -> View:
        """Return the view after an operation, or raise ProtocolError."""
        operation = wire.get_text(message, "do")
        if operation == "event-done":
            return self._end_event(message)
        node = wire.get_int(message, "node", 1, MAX_NODE)
        boot, cause = wire.get_text(message, "boot"), wire.get_text(message, "cause")
        time = wire.get_number(message, "time")
        match operation:
            case "coming":
                return self._come(node, boot, time, cause)
            case "state":
                state = get_state(message, "state")
                # One that speaks of a former life, or of what is so already, changes nothing.
                if boot != self.boot_of(node) or not self._may(node, state):
                    return self
                return _move(self, node, state, boot, time, cause)
            case _:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _may(self, node: int, state: NodeState) -> bool:
        was = self.state_of(node)
        match state:
            case NodeState.UP:
                return was in {NodeState.COMINGUP, NodeState.SHUTDOWN}
            case NodeState.KCLEANUP:
                return was in ALIVE
            case NodeState.UCLEANUP:
                return was is NodeState.KCLEANUP
            case NodeState.DOWN:
                return was in {NodeState.KCLEANUP, NodeState.UCLEANUP}
            case _:
                return (was, state) in LEGAL

    def _come(self, node: int, boot: str, time: float, cause: str) -> View:
        if self.state_of(node) not in ALIVE:
            view = self if self.life else dataclasses.replace(self, life=boot)
            return _move(view, node, NodeState.COMINGUP, boot, time, cause)
        if boot == self.boot_of(node):
            return self
        # It cannot live twice, so its former life is over.
        view = _move(self, node, NodeState.KCLEANUP, self.boot_of(node), time, "it is back")
        return _move(view, node, NodeState.COMINGUP, boot, time, cause)

    def _end_event(self, message: Message) -> View:
        number = wire.get_int(message, "event", 1, LIMIT)
        left = tuple(event for event in self.events if event.number != number)
        return dataclasses.replace(self, events=left)

    # -- on the wire -----------------------------------------------------------------------------

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "number": self.number, "init_node": self.init_node or 0, "life": self.life,
            "nodes": [{"node": n, **dataclasses.asdict(node)} for n, node in self.nodes.items()],
            "transitions": [dataclasses.asdict(t) for t in self.transitions],
            "events": [dataclasses.asdict(event) for event in self.events],
        }  # fmt: skip

    @classmethod
    def load(cls, message: Message) -> View:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            number=wire.get_int(message, "number", 0, LIMIT),
            nodes={
                wire.get_int(node, "node", 1, MAX_NODE): Node(
                    get_state(node, "state"), wire.get_text(node, "boot"),
                    wire.get_number(node, "since"),
                )
                for node in wire.get_objects(message, "nodes")
            },
            init_node=wire.get_int(message, "init_node", 0, MAX_NODE) or None,
            life=wire.get_text(message, "life"),
            transitions=tuple(map(_load_transition, wire.get_objects(message, "transitions"))),
            events=tuple(
                Event(
                    wire.get_int(event, "number", 1, LIMIT), wire.get_text(event, "kind"),
                    wire.get_int(event, "node", 1, MAX_NODE),
                )
                for event in wire.get_objects(message, "events")
            ),
        )  # fmt: skip


def _move(view: View, node: int, state: NodeState, boot: str, time: float, cause: str) -> View:
    was = view.state_of(node)
    nodes = {**view.nodes, node: Node(state, boot, time)}
    number = view.number + (NodeState.UP in {was, state})
    last = view.transitions[-1].number if view.transitions else 0
    transition = Transition(last + 1, time, node, was, state, cause, number)
    moved = dataclasses.replace(
        view, number=number, nodes=nodes, events=(*view.events, *_list_events(transition)),
        transitions=(*view.transitions, transition)[-HISTORY:],
    )  # fmt: skip
    if view.init_node is not None and moved.state_of(view.init_node) in STAYS_INIT:
        return moved
    return dataclasses.replace(moved, init_node=_choose_init(moved))


def _choose_init(view: View) -> int | None:
    lowest = min(view.members, default=None)
    if view.init_node is None and lowest != min(view.alive, default=None):
        return None  # a cluster comes up: it waits for the lowest of those that do
    return lowest


def _list_events(moved: Transition) -> list[Event]:
    if moved.now is NodeState.UP and moved.was is NodeState.COMINGUP:
        return [Event(moved.number, "nodeup", moved.node)]
    # One that never was up is nobody's loss.
    if moved.now is NodeState.KCLEANUP and moved.was is not NodeState.COMINGUP:
        return [Event(moved.number, "nodedown", moved.node)]
    return []


def get_state(message: Mapping[str, Any], key: str) -> NodeState:
    """Return the node state in field `key`, or raise ProtocolError."""
    return NodeState(wire.get_word(message, key, list(NodeState)))


def _load_transition(message: Message) -> Transition:
    return Transition(
        wire.get_int(message, "number", 1, LIMIT), wire.get_number(message, "time"),
        wire.get_int(message, "node", 1, MAX_NODE), get_state(message, "was"),
        get_state(message, "now"), wire.get_text(message, "cause"),
        wire.get_int(message, "view", 0, LIMIT),
    )  # fmt: skip
