"""Where POSIX message queues are: what all nodes agree on."""

from __future__ import annotations

import dataclasses

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.process.caller import Caller
from ssi.node.queues.keeper import Order, Wish
from ssi.node.state.ipc import Home
from ssi.node.state.queues import MAX_QUEUES, Queues, check_name, queue_name
from ssi.node.state.state import MACHINE, State
from ssi.node.state.view import Node, NodeState, View

NAME = queue_name("jobs/ä".encode())


def view_of(**boots: str) -> View:
    """Return a view in which these nodes are up: n1="boot" and so on."""
    nodes = {int(key[1:]): Node(NodeState.UP, boot, 0.0) for key, boot in boots.items()}
    return dataclasses.replace(View(), nodes=nodes)


def do(queues: Queues, view: View, operation: str, node: int, boot: str) -> Queues:
    """Return what one operation makes of them."""
    return queues.apply({"do": operation, "name": NAME, "node": node, "boot": boot}, view)


BOTH = view_of(n1="a", n2="b")


def test_who_claims_first_has_it() -> None:
    queues = do(Queues(), BOTH, "claim", 2, "b")
    assert do(queues, BOTH, "claim", 1, "a") == queues
    assert queues.homes == {NAME: Home(2, "b")}
    assert do(queues, BOTH, "release", 1, "a") == queues
    assert do(queues, BOTH, "release", 2, "b") == Queues()
    assert do(Queues(), BOTH, "claim", 1, "an earlier life") == Queues()
    with pytest.raises(ProtocolError):
        do(queues, BOTH, "rename", 1, "a")


def test_with_a_node_its_queues_are_gone() -> None:
    queues = do(Queues(), BOTH, "claim", 2, "b")
    later = view_of(n1="a", n2="another life")
    assert queues.list_living(later) == {}
    assert do(queues, later, "claim", 1, "a").homes == {NAME: Home(1, "a")}


def test_there_is_a_most() -> None:
    full = Queues({f"q{number}": Home(1, "a") for number in range(MAX_QUEUES)})
    assert do(full, BOTH, "claim", 1, "a") == full


def test_they_go_with_the_state() -> None:
    state = dataclasses.replace(State(), queues=do(Queues(), BOTH, "claim", 1, "a"))
    assert MACHINE.load(MACHINE.dump(state)) == state


@pytest.mark.parametrize("name", ["", "a/b", "ä", "%zz", "%2f", "a" * 766])
def test_refuses_names(name: str) -> None:
    with pytest.raises(ProtocolError):
        check_name(name)


def test_an_order() -> None:
    caller = Caller(1, (1, 2, 3), (4, 5, 6), (7, 8))
    packet = Wish(9, 10, Order.OPEN, caller=caller, data=b"jobs").pack()
    assert packet[:4] == b"\1\0\0\0"
    assert packet.endswith(b"\2\0\0\0\5\0\0\0\2\0\0\0\7\0\0\0\x08\0\0\0jobs")
