"""The nodes' clocks agree, whatever a person sets."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until

NEAR_S = 0.5
"""What a command takes to say the time is within it."""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes of their own: logs of other tests are to be in order."""
    with started(ssi, 3) as cluster:
        yield cluster


def ahead(cluster: Cluster, node: int) -> float:
    """Return how far the clock of `node` is ahead of this machine's, give or take NEAR_S."""
    before = time.time()
    theirs = float(cluster.run(node, "date", "+%s.%N"))
    return theirs - (before + time.time()) / 2


def wait_ahead(cluster: Cluster, node: int, by_s: float) -> None:
    """Wait until the clock of `node` is so far ahead."""
    wait_until(lambda: abs(ahead(cluster, node) - by_s) < NEAR_S, f"node{node} is {by_s} s ahead")


def test_a_clock_that_is_set_wrong_is_set_right(trio: Cluster) -> None:
    leader = int(trio.nodes()[1]["init_node"])
    for node in {1, 2, 3} - {leader}:
        trio.run(node, "date", "-s", "+100 seconds")
    for node in {1, 2, 3} - {leader}:
        wait_ahead(trio, node, 0)


def test_all_go_by_the_init_node(trio: Cluster) -> None:
    leader = int(trio.nodes()[1]["init_node"])
    trio.run(leader, "date", "-s", "+100 seconds")
    try:
        for node in (1, 2, 3):
            wait_ahead(trio, node, 100)
    finally:
        trio.run(leader, "date", "-s", f"@{time.time()}")
    for node in (1, 2, 3):
        wait_ahead(trio, node, 0)
