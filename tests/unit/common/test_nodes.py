"""Node numbers as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import UsageError
from ssi.common.nodes import MAX_NODE, fold_nodes, parse_node, parse_nodes

numbers = st.integers(1, MAX_NODE)


@given(st.frozensets(numbers, min_size=1))
def test_folded_nodes_parse_to_themselves(nodes: frozenset[int]) -> None:
    assert parse_nodes(fold_nodes(nodes)) == nodes


@given(st.frozensets(numbers, min_size=1))
def test_folding_is_as_short_as_can_be(nodes: frozenset[int]) -> None:
    runs = sum(1 for node in nodes if node - 1 not in nodes)
    assert len(fold_nodes(nodes).split(",")) == runs


@pytest.mark.parametrize(
    ("nodes", "text"),
    [((), "none"), ((5,), "5"), ((1, 2), "1-2"), ((3, 1, 2, 7), "1-3,7"), ((1, 3), "1,3")],
)
def test_folds(nodes: tuple[int, ...], text: str) -> None:
    assert fold_nodes(nodes) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "128", "x", "-1", "1.0", " 1", "1 ", "+1", "\u0661", "\u00b2", "1_0", "9" * 5000],
)
def test_refuses_what_is_no_node(text: str) -> None:
    with pytest.raises(UsageError, match="not a node number") as caught:
        parse_node(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "3-1", "1-", "-3", "1-2-3", "1-128", "0-3", "none"]
)
def test_refuses_what_is_no_set_of_nodes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_nodes(text)


@given(st.text() | st.text("0123456789,-", max_size=8))
def test_any_text_is_nodes_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        nodes = parse_nodes(text)
        assert nodes
        assert all(1 <= node <= MAX_NODE for node in nodes)
