"""Where the pipes of FIFOs are: what all nodes agree on, and what one knows of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from ssi.common.changes import Changes
from ssi.common.errors import ProtocolError
from ssi.node.fifo import homes
from ssi.node.fifo.homes import Homes
from ssi.node.fifo.keeper import Order, Wish, pack_order
from ssi.node.fifo.names import SIZE, pack_name, read_name
from ssi.node.state.fifos import MAX_FIFOS, Fifos, Home
from ssi.node.state.state import MACHINE, State
from ssi.node.state.view import Node, NodeState, View

NAME = "4-00000000-00000007-00000000-0001a2b3"
OTHER = "4-00000000-00000008-00000000-0001a2b3"


def view_of(**boots: str) -> View:
    """Return a view in which these nodes are up: n1="boot" and so on."""
    nodes = {int(key[1:]): Node(NodeState.UP, boot, 0.0) for key, boot in boots.items()}
    return dataclasses.replace(View(), nodes=nodes)


def do(fifos: Fifos, view: View, operation: str, node: int, boot: str, name: str = NAME) -> Fifos:
    """Return what one operation makes of them."""
    return fifos.apply({"do": operation, "name": name, "node": node, "boot": boot}, view)


BOTH = view_of(n1="a", n2="b")


def test_who_claims_first_has_it() -> None:
    fifos = do(Fifos(), BOTH, "claim", 2, "b")
    assert do(fifos, BOTH, "claim", 1, "a") == fifos
    assert fifos.homes == {NAME: Home(2, "b")}


def test_a_dead_home_is_followed_by_one_that_gathers() -> None:
    fifos = do(Fifos(), BOTH, "claim", 2, "b")
    for later in (view_of(n1="a"), view_of(n1="a", n2="another life")):
        taken = do(fifos, later, "claim", 1, "a")
        assert taken.homes == {NAME: Home(1, "a", gathers=True)}
        assert do(taken, later, "release", 1, "a") == taken
        assert do(taken, later, "settle", 1, "a").homes == {NAME: Home(1, "a")}
        assert do(taken, later, "settle", 2, "b") == taken


def test_only_its_home_gives_it_up() -> None:
    fifos = do(Fifos(), BOTH, "claim", 2, "b")
    assert do(fifos, BOTH, "release", 1, "a") == fifos
    assert do(fifos, BOTH, "release", 2, "an earlier life") == fifos
    assert do(fifos, BOTH, "release", 2, "b") == Fifos()


def test_who_is_dead_claims_nothing() -> None:
    assert do(Fifos(), BOTH, "claim", 3, "c") == Fifos()
    assert do(Fifos(), BOTH, "claim", 1, "an earlier life") == Fifos()


def test_there_is_a_most() -> None:
    full = Fifos({f"4-{number:08x}": Home(1, "a") for number in range(MAX_FIFOS)})
    assert do(full, BOTH, "claim", 1, "a") == full


def test_they_go_with_the_state() -> None:
    fifos = do(Fifos(), BOTH, "claim", 2, "b")
    state = dataclasses.replace(State(), fifos=do(fifos, view_of(n1="a"), "claim", 1, "a"))
    assert MACHINE.load(MACHINE.dump(state)) == state


@pytest.mark.parametrize("name", ["", "4", "4-1", "../x", "4-0000000g", "4-00000000" * 9])
def test_refuses_names(name: str) -> None:
    with pytest.raises(ProtocolError):
        do(Fifos(), BOTH, "claim", 1, "a", name)
    with pytest.raises(ProtocolError):
        pack_name(name)


def test_names_are_file_handles() -> None:
    assert read_name(pack_name(NAME)) == NAME
    assert len(pack_name(NAME)) == SIZE
    with pytest.raises(ProtocolError):
        read_name(b"x" * (SIZE - 1))
    with pytest.raises(ProtocolError):
        read_name(bytes(SIZE))


def test_an_order_is_what_the_keeper_reads() -> None:
    packed = pack_order(Wish(7, 5, Order.WRITE, end=3, data=b"abc"))
    assert packed.endswith(b"abc")
    assert len(packed) == 32 + 3


class OneCluster:
    """The cluster's state, and what is proposed."""

    node, boot = 1, "a"

    def __init__(self) -> None:
        self.known = dataclasses.replace(State(), view=BOTH)
        self.changes = Changes()
        self.proposed: list[str] = []

    def propose(self, part: str, operation: str, **fields: object) -> int:
        """Do it at once."""
        self.proposed.append(operation)
        words = {"on": part, "do": operation, **fields}
        self.known = MACHINE.apply(self.known, 0, words)
        self.changes.tell()
        return 0


def test_opens_are_counted_once_and_known_to_the_next_daemon(tmp_path: Path) -> None:
    async def run() -> None:
        cluster = OneCluster()
        path = tmp_path / "fifos.json"
        first = Homes(cluster, path)  # type: ignore[arg-type]
        assert (await first.claim(NAME)).node == 1
        for number in (10, 11, 11):
            first.enter(NAME, number)
        second = Homes(cluster, path)  # type: ignore[arg-type]
        second.enter(NAME, 11)
        assert not second.release(NAME)
        second.leave(NAME, 12, 1)
        assert not second.release(NAME)
        second.leave(NAME, 13, 1)
        assert second.release(NAME)
        assert cluster.proposed == ["claim", "release"]

    asyncio.run(run())


def test_a_pipe_that_others_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "LINGER_S", 0)

    async def run() -> None:
        cluster = OneCluster()
        ours = Homes(cluster, tmp_path / "fifos.json")  # type: ignore[arg-type]
        await ours.claim(NAME)
        await ours.claim(OTHER)
        ours.is_used = lambda name: name == NAME
        ours.look_at_all()
        await cluster.changes.wait_for(lambda: OTHER not in cluster.known.fifos.homes)
        assert NAME in cluster.known.fifos.homes

    asyncio.run(run())
