"""What the applets have to know of the cluster, and who provides it does not matter to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ssi.common.errors import SsiError, UsageError
from ssi.common.nodes import parse_node

STATES = ("NEVERUP", "COMINGUP", "UP", "SHUTDOWN", "GOINGDOWN", "KCLEANUP", "UCLEANUP", "DOWN")
NEVERUP, UP = "NEVERUP", "UP"


class Transition(Protocol):
    """A node went from one state to another."""

    @property
    def number(self) -> int:
        """Its number: they grow by one, the same on all nodes."""

    @property
    def time(self) -> float:
        """Seconds since 1970."""

    @property
    def node(self) -> int:
        """Which node."""

    @property
    def was(self) -> str:
        """The state before."""

    @property
    def now(self) -> str:
        """The state after."""

    @property
    def cause(self) -> str:
        """Why."""

    @property
    def view(self) -> int:
        """The number of the view it belongs to."""


class Cluster(Protocol):
    """The cluster as this node knows it now."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def node(self) -> int:
        """This node."""

    @property
    def view(self) -> int:
        """The number of the current view."""

    @property
    def members(self) -> tuple[int, ...]:
        """The nodes in the current view."""

    @property
    def states(self) -> Mapping[int, str]:
        """The state of each node that is known."""

    @property
    def init_node(self) -> int | None:
        """Where the cluster's init runs."""

    @property
    def pending_events(self) -> int:
        """How many nodeups and nodedowns still wait for their script."""

    @property
    def transitions(self) -> Sequence[Transition]:
        """The last few hundred, oldest first."""

    async def wait_transition(self, after: int) -> None:
        """Return once there is a transition with a number above `after`."""

    async def set_state(self, node: int, state: str, cause: str) -> None:
        """Have `node` go to `state`; raise SsiError if it cannot."""


class Denied(SsiError):
    """The caller may not do this (EX_NOPERM)."""

    code = "denied"
    exit_status = 77


def find_state(cluster: Cluster, node: int) -> str:
    """Return the state of `node`."""
    return cluster.states.get(node, NEVERUP)


def find_last(cluster: Cluster, node: int) -> Transition | None:
    """Return the last transition of `node` that is remembered."""
    return next((each for each in reversed(cluster.transitions) if each.node == node), None)


def last_number(cluster: Cluster) -> int:
    """Return the number of the last transition, 0 before the first."""
    return cluster.transitions[-1].number if cluster.transitions else 0


def is_simple(transition: Transition) -> bool:
    """Tell whether a node became UP, or ceased to be."""
    return (transition.was == UP) != (transition.now == UP)


async def change_state(cluster: Cluster, uid: int, node: str, state: str, cause: str) -> None:
    """Have the node called `node` go to `state`, as user `uid` asks for `cause`."""
    number = parse_node(node)
    if state not in STATES:
        raise UsageError(f"{state!r} is not a state", hint=f"states are {', '.join(STATES)}")
    if uid != 0:
        raise Denied("only root may change the state of a node")
    await cluster.set_state(number, state, cause)
