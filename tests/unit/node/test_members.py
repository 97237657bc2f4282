"""In which order the processes of a group or a session move."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ssi.node.migration.members import put_in_order

LOW = 7
"""The parent of orphans."""


@pytest.mark.parametrize(
    ("parents", "leader", "wanted"),
    [
        ({}, 40, []),
        ({42: 40, 41: 40, 40: 39}, 40, [40, 41, 42]),
        # A parent is before its children, whatever their numbers are.
        ({40: 50, 45: 60, 50: LOW, 60: 50}, 50, [50, 40, 60, 45]),
        # The leader is first even if another one has started it.
        ({40: LOW, 41: 40, 42: 41}, 41, [41, 40, 42]),
        # It may have ended.
        ({42: LOW, 41: 42}, 40, [42, 41]),
        # Parents and PIDs of several nodes are of several moments.
        ({40: 41, 41: 40}, 40, [40, 41]),
    ],
)
def test_order(parents: Mapping[int, int], leader: int, wanted: list[int]) -> None:
    assert put_in_order(parents, leader) == wanted
