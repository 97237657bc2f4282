"""Node numbers and sets of them: parsing what people type, folding what they read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ssi.common.errors import UsageError

MAX_NODE = 127
"""PIDs have 22 bits, 15 of them local to a node, so nodes have seven: 1..127."""


def parse_node(text: str) -> int:
    """Return the node number in `text`, or raise UsageError."""
    # Few digits: Python refuses to make a number of thousands.
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_NODE:
        raise UsageError(
            f"{text!r} is not a node number", hint=f"nodes are numbered 1 to {MAX_NODE}"
        )
    return int(text)


def parse_nodes(text: str) -> frozenset[int]:
    """Return the set that `text` such as ``1-3,7`` names, or raise UsageError."""
    nodes: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = parse_node(first)
        high = parse_node(last) if dash else low
        if high < low:
            raise UsageError(f"{part!r} is not a range of nodes", hint=f"write {high}-{low}")
        nodes.update(range(low, high + 1))
    return frozenset(nodes)


def fold_nodes(nodes: Iterable[int]) -> str:
    """Return `nodes` as people write them: ``1-3,7``; an empty set is ``none``."""
    runs: list[list[int]] = []
    for node in sorted(set(nodes)):
        if runs and runs[-1][-1] == node - 1:
            runs[-1][1:] = [node]
        else:
            runs.append([node])
    return ",".join("-".join(map(str, run)) for run in runs) or "none"
