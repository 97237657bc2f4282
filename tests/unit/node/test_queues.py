"""Where POSIX message queues are: what all nodes agree on."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.process.caller import Caller
from ssi.node.queues.keeper import Order, Wish
from ssi.node.queues.snapshots import Snapshot, Snapshots
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


def share(queues: Queues, view: View, node: int, boot: str) -> Queues:
    """Return them when others have one open of that node."""
    return queues.apply({"do": "share", "node": node, "boot": boot}, view)


def begin(queues: Queues, view: View, heir: Home, dead: Home) -> Queues:
    """Return them when `heir` is to make anew what a dead one had."""
    return queues.apply({"do": "begin", **heir.dump(), "dead": dead.dump()}, view)


def take(queues: Queues, view: View, heir: Home, dead: Home, *names: str) -> Queues:
    """Return them when `heir` has made those of these names anew."""
    words = {"do": "take", **heir.dump(), "dead": [dead.dump()], "names": list(names)}
    return queues.apply(words, view)


def test_heirs_take_what_others_have_had_open() -> None:
    one, two = Home(1, "a"), Home(2, "b")
    queues = share(do(Queues(), BOTH, "claim", 2, "b"), BOTH, 2, "b")
    queues = queues.apply({"do": "claim", "name": "lost", "node": 2, "boot": "b"}, BOTH)
    assert take(queues, BOTH, one, two, NAME) == queues
    later = view_of(n1="a", n2="another life")
    assert queues.list_dead(later) == [two]
    # Until then nobody has its names.
    assert do(queues, later, "claim", 1, "a") == queues
    assert queues.follow(two, later) == two
    assert take(queues, later, one, two, NAME) == queues
    queues = begin(queues, later, one, two)
    assert begin(queues, later, Home(2, "another life"), two) == queues
    taken = take(queues, later, one, two, NAME)
    assert taken.takers == {}
    assert taken.homes == {NAME: one}
    assert taken.list_dead(later) == []
    assert taken.follow(two, later) == one
    last = view_of(n2="another life", n3="c")
    again = take(begin(taken, last, Home(3, "c"), one), last, Home(3, "c"), one)
    assert again.homes == {}
    assert again.follow(two, last) == Home(3, "c")
    assert again.follow(Home(4, "d"), last) is None
    state = dataclasses.replace(State(), queues=again)
    assert MACHINE.load(MACHINE.dump(state)) == state


def pack(version: int, text: bytes = b"") -> bytes:
    """Return what a queue is, as the keeper says it."""
    head = struct.pack("=QQ9I", version, 7, 0o600, 0, 0, 8, 1024, 4, 1, 0, 0)
    return head + b"jobs" + struct.pack("=II", 0, len(text)) + text


def test_the_latest_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "kept")
    snapshots.keep("a", pack(2))
    snapshots.keep("a", pack(1))
    assert [(one.id, one.version, one.name) for one in snapshots.list_all()] == [(7, 2, "jobs")]
    large = Snapshot.load("b", pack(3, bytes(80000)))
    first, second, third = large.cut()
    assert snapshots.take_piece(first)
    assert not snapshots.take_piece(third)
    assert [snapshots.take_piece(piece) for piece in (first, second, third)] == [True] * 3
    assert Snapshots(tmp_path / "kept").find(7) == large
    snapshots.forget(7)
    assert snapshots.list_all() == []
    with pytest.raises(ProtocolError):
        snapshots.keep("a", b"cut off")
