"""fastnode and fast: the node with the least to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.clusters import Cluster, stop_daemon, wait_until


def burn(cluster: Cluster, node: int) -> str:
    """Have `node` busy with two processes; return what kills them."""
    script = "for i in 1 2; do setsid sh -c 'while :; do :; done' & echo $!; done 2>&1 </dev/null"
    return cluster.run(node, "sh", "-c", script.replace("& echo", ">/dev/null 2>&1 & echo"))


@pytest.fixture
def busy(trio: Cluster) -> Iterator[Cluster]:
    """The cluster, in which nodes 1 and 2 have something to do."""
    pids = [(node, burn(trio, node).split()) for node in (1, 2)]
    wait_until(lambda: trio.run(1, "fastnode") == "3\n", "node3 has the least to do")
    yield trio
    for node, some in pids:
        trio.run(node, "kill", "-9", *some)


def test_the_least_loaded_is_chosen(busy: Cluster) -> None:
    for node in (1, 2, 3):
        assert busy.run(node, "fastnode") == "3\n"
    assert busy.run(1, "fastnode", "--json") == '{"node": 3}\n'
    assert busy.run(1, "fast", "hostname") == "node3\n"
    assert busy.run(3, "fast", "-p", "hostname") == "node3\n"
    assert busy.run(2, "fast", "sh", "-c", "read x; echo $x", given=b"word\n") == "word\n"


def test_exit_statuses_are_those_of_onnode(busy: Cluster) -> None:
    assert busy.try_run(1, "fast", "sh", "-c", "exit 7").status == 7
    unknown = busy.try_run(1, "fast", "no-such-command")
    assert (unknown.status, unknown.err.split(":")[:2]) == (127, ["fast", " node3"])
    assert "no command is given" in busy.try_run(1, "fast").err
    assert "usage: fast [-h] [-p] ..." in busy.run(1, "fast", "--help")


def test_a_silent_node_is_skipped(busy: Cluster) -> None:
    stopped = stop_daemon(busy, 3, 8)
    wait_until(lambda: busy.run(1, "fastnode") != "3\n", "node3 does not answer", within_s=6)
    assert stopped.wait() == 0
