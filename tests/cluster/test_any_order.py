"""Nodes come and go in any order, and the root outlives them all."""

from __future__ import annotations

import json

import pytest

from support.clusters import Cluster, Ssi, started, wait_until


def ring(cluster: Cluster, *nodes: int) -> None:
    """Wait until exactly `nodes` are one."""
    wait_until(lambda: cluster.sees_all(*nodes), f"{nodes} are one")


def test_any_nodes_in_any_order(ssi: Ssi) -> None:
    with started(ssi, 1) as cluster:
        number = str(cluster.number)
        cluster.add(5, 3)
        ring(cluster, 1, 3, 5)
        cluster.add(2)
        cluster.crash(1)
        cluster.run(5, "sh", "-c", "echo without 1 >/root/order; sync /root/order")
        ring(cluster, 2, 3, 5)
        assert ssi.json("add", number, "1", "3-5")["nodes"] == [1, 4]
        ring(cluster, 1, 2, 3, 4, 5)
        assert {cluster.run(n, "cat", "/root/order") for n in range(1, 6)} == {"without 1\n"}
        assert ssi.json("add", number, "1-5")["nodes"] == []


def test_the_root_is_kept_until_a_fresh_start(ssi: Ssi) -> None:
    with started(ssi, 2) as cluster:
        number = str(cluster.number)
        cluster.run(2, "sh", "-c", "echo kept >/root/kept")
        ssi("stop", number)
        assert number not in ssi("ls")
        assert number in ssi("ls", "--all")
        ssi("start", "1", "-c", number, *ssi.images.options)
        assert cluster.run(1, "cat", "/root/kept") == "kept\n"
        ssi("stop", number)
        ssi("start", "1", "-c", number, "--fresh", *ssi.images.options)
        assert cluster.try_run(1, "cat", "/root/kept").status == 1


def test_the_list_shows_what_there_is(trio: Cluster) -> None:
    number = trio.number
    [listed] = [c for c in trio.ssi.json("ls") if c["id"] == number]
    assert listed["state"] == "running"
    assert [node["node"] for node in listed["nodes"]] == [1, 2, 3]
    assert {node["state"] for node in listed["nodes"]} == {"ready"}
    lines = trio.ssi("ls").splitlines()
    assert lines[0] == "The following clusters have been found:"
    assert lines[1].split() == ["ID", "Nodes", "Date", "started"]
    [line] = [line for line in lines if line.startswith(str(number))]
    assert line.split()[1:4] == ["1", "2", "3"]
    rows = [line.split() for line in trio.ssi("ls", "-v").splitlines()]
    assert [row[1:5] for row in rows if row[:1] == [str(number)]][1:] == [
        [str(node), "ready", "1-3", "yes"] for node in (1, 2, 3)
    ]
    assert json.loads(trio.ssi("ls", "--all", "--json"))


@pytest.mark.slow
def test_more_nodes_than_the_root_has_journals_for(ssi: Ssi) -> None:
    with started(ssi, 18) as cluster:
        assert set(cluster.nodes()) == set(range(1, 19))
        cluster.run(18, "sh", "-c", "echo many >/root/many; sync /root/many")
        assert cluster.run(1, "cat", "/root/many") == "many\n"
