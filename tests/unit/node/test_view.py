"""The view: what operations make of the nodes' states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import ProtocolError
from ssi.common.wire import Message, decode, encode
from ssi.node.state.view import LEGAL, NodeState, View


def coming(node: int, boot: str = "a") -> Message:
    return {"do": "coming", "node": node, "boot": boot, "time": 1.0, "cause": "test"}


def state(node: int, now: NodeState, boot: str = "a") -> Message:
    return {
        "do": "state", "node": node, "boot": boot, "state": now.value, "time": 1, "cause": "test",
    }  # fmt: skip


def after(*operations: Message) -> View:
    view = View()
    for operation in operations:
        view = view.apply(operation)
    return view


def up(*nodes: int) -> View:
    return after(
        *(coming(n) for n in nodes), *(state(n, NodeState.UP) for n in nodes)
    )  # fmt: skip


def test_a_node_comes_up_and_goes_down() -> None:
    view = after(coming(2))
    assert (view.number, view.members, view.state_of(2)) == (0, (), NodeState.COMINGUP)
    view = view.apply(state(2, NodeState.UP))
    assert (view.number, view.members, view.init_node) == (1, (2,), 2)
    view = view.apply(state(2, NodeState.KCLEANUP))
    assert (view.number, view.members, view.init_node) == (2, (), None)
    view = view.apply(state(2, NodeState.UCLEANUP)).apply(state(2, NodeState.DOWN))
    assert (view.number, view.state_of(2), view.state_of(7)) == (
        2, NodeState.DOWN, NodeState.NEVERUP,
    )  # fmt: skip
    assert [t.now.value for t in view.transitions] == [
        "COMINGUP", "UP", "KCLEANUP", "UCLEANUP", "DOWN",
    ]  # fmt: skip


def test_each_up_and_down_is_one_event_until_it_is_done() -> None:
    view = up(1, 2).apply(state(1, NodeState.KCLEANUP)).apply(state(1, NodeState.KCLEANUP))
    assert [(e.kind, e.node) for e in view.events] == [
        ("nodeup", 1), ("nodeup", 2), ("nodedown", 1),
    ]  # fmt: skip
    view = view.apply({"do": "event-done", "event": view.events[1].number})
    assert [(e.kind, e.node) for e in view.events] == [("nodeup", 1), ("nodedown", 1)]


def test_a_node_that_never_was_up_is_nobodys_loss() -> None:
    view = after(coming(1), state(1, NodeState.KCLEANUP))
    assert (view.events, view.number) == ((), 0)


def test_the_init_node_is_the_lowest_and_stays_when_a_lower_one_joins() -> None:
    view = up(2, 3)
    assert view.init_node == 2
    view = view.apply(coming(1)).apply(state(1, NodeState.UP))
    assert view.init_node == 2
    assert view.apply(state(2, NodeState.SHUTDOWN)).init_node == 2
    assert view.apply(state(2, NodeState.KCLEANUP)).init_node == 1


def test_a_cluster_that_comes_up_waits_for_its_lowest_node() -> None:
    view = after(coming(1), coming(2), state(2, NodeState.UP))
    assert view.init_node is None
    assert view.apply(state(1, NodeState.UP)).init_node == 1
    assert view.apply(state(1, NodeState.KCLEANUP)).init_node == 2


def test_what_is_said_of_a_former_life_changes_nothing() -> None:
    view = up(1).apply(state(1, NodeState.KCLEANUP)).apply(coming(1, "b"))
    assert view.apply(state(1, NodeState.KCLEANUP)) == view
    assert view.state_of(1) is NodeState.COMINGUP


def test_one_that_comes_back_before_its_death_was_told_has_died() -> None:
    view = up(1, 2).apply(coming(1, "b"))
    assert [(e.kind, e.node) for e in view.events][-1] == ("nodedown", 1)
    assert view.members == (2,)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(NodeState), st.sampled_from("ab"))))
def test_only_legal_ways_are_gone(steps: list[tuple[int, NodeState, str]]) -> None:
    view = up(1)
    ways = {*LEGAL, ("COMINGUP", "UP")}
    for node, now, boot in steps:
        operation = coming(node, boot) if now is NodeState.COMINGUP else state(node, now, boot)
        before, view = view, view.apply(operation)
        assert (view.number != before.number) == (view.members != before.members)
        assert View.load(decode(encode(view.dump()))) == view
        for moved in view.transitions[len(before.transitions) :]:
            assert moved.now in {"COMINGUP", "KCLEANUP", "UCLEANUP", "DOWN"} or (
                (moved.was, moved.now) in ways
            )


@pytest.mark.parametrize(
    "message",
    [{}, {"do": "nope", "node": 1}, {"do": "coming", "node": 128}, {"do": "event-done"},
     {**state(1, NodeState.UP), "state": "SIDEWAYS"}, {**coming(1), "time": float("nan")}],
)  # fmt: skip
def test_refuses(message: Message) -> None:
    with pytest.raises(ProtocolError):
        View().apply(message)
