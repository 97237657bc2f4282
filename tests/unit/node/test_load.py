"""Which node has the least to do."""

from __future__ import annotations

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.load import Load, choose_least, parse_load


def test_reads_what_the_kernel_says() -> None:
    assert parse_load("0.50 0.10 0.05 3/120 40000\n", 2) == Load(2, 0.5, 2)
    assert parse_load("0.00 0.00 0.00 0/1 1\n", 1) == Load(0, 0.0, 1)


def test_the_least_has_the_fewest_for_each_processor() -> None:
    loads = [(1, Load(4, 0.0, 4)), (2, Load(1, 1.0, 1)), (3, Load(1, 0.0, 4))]
    assert choose_least(loads, 1) == 3


def test_of_equals_it_is_this_node_then_the_lowest() -> None:
    loads = [(node, Load(0, 0.01 * node, 1)) for node in (4, 3, 2)]
    assert choose_least(loads, 3) == 3
    assert choose_least(loads, 9) == 2
    assert choose_least([], 9) == 9


@pytest.mark.parametrize(
    "wrong",
    [{"running": -1}, {"running": "2"}, {"average": "x"}, {"average": float("nan")},
     {"processors": 0}, {"processors": None}],
)  # fmt: skip
def test_refuses(wrong: dict[str, object]) -> None:
    good = Load(1, 0.5, 2)
    assert Load.load(good.dump()) == good
    with pytest.raises(ProtocolError):
        Load.load({**good.dump(), **wrong})
