"""What scripts and programs in a node can ask about the cluster."""

from __future__ import annotations

import json

from support.clusters import Cluster, wait_until

# Says what it notices, by the descriptor that polls.
WATCH = """\
import select, ssi.api
with ssi.api.Events(ssi.api.membership().transition) as events:
    print("watching", flush=True)
    while True:
        select.select([events], [], [])
        moved = events.read()
        print(moved.node, moved.was, moved.now, flush=True)
"""

LIBSSI = """\
import ctypes
libssi = ctypes.CDLL("libssi.so.1")
print(libssi.clusternode_num(), libssi.cluster_ssiconfig(), libssi.clusternode_avail(2))
"""


def test_commands(trio: Cluster) -> None:
    for node in (1, 2, 3):
        assert trio.run(node, "clusternode_num") == f"{node}\n"
        assert trio.run(node, "cluster") == "1-3\n"
        assert trio.run(node, "clustername") == "ssi\n"
    table = trio.run(2, "cluster", "-v").splitlines()
    assert [line.split()[:2] for line in table] == [
        ["NODE", "STATE"], ["1", "UP"], ["2", "UP"], ["3", "UP"]
    ]  # fmt: skip
    about = json.loads(trio.run(3, "cluster", "-V", "1", "--json"))
    assert (about["node"], about["state"], about["address"]) == (1, "UP", "192.168.50.1")
    assert json.loads(trio.run(1, "cluster", "--json"))["members"] == [1, 2, 3]
    assert trio.run(1, "python3", "-c", LIBSSI) == "1 1 1\n"


def test_what_is_said_of_a_dead_node(trio: Cluster) -> None:
    watch = trio.start_python(1, WATCH)
    assert watch.stdout
    assert watch.stdout.readline() == b"watching\n"
    trio.crash(3)
    assert watch.stdout.readline().startswith(b"3 UP KCLEANUP")
    assert trio.try_run(2, "clusternode_avail", "3").status == 1
    wait_until(lambda: trio.run(2, "clusternode_getstate", "3") == "DOWN\n", "node3 is DOWN")
    assert trio.run(2, "cluster") == "1-2\n"
    assert trio.run(2, "clusternode_getstate", "99") == "NEVERUP\n"
    trio.add(3)
    assert watch.stdout.readline() == b"3 COMINGUP UP\n"
    watch.kill()


def test_registers(trio: Cluster) -> None:
    trio.run(1, "clreg", "set", "test/word", "two words")
    assert trio.run(3, "clreg", "get", "test/word") == "two words\n"
    assert [trio.run(n, "clreg", "add", "test/sum", "2").strip() for n in (1, 2, 3)] == list("246")
    denied = trio.try_run(
        2, "setpriv", "--reuid=nobody", "--clear-groups", "clreg", "add", "x", "1"
    )
    assert (denied.status, denied.out) == (77, "")
    assert trio.try_run(2, "clreg", "add", "test/word", "1").status == 2
    for name in ("test/word", "test/sum"):
        trio.run(2, "clreg", "delete", name)
    assert trio.try_run(1, "clreg", "get", "test/word").status == 1
