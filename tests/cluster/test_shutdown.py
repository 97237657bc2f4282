"""The whole cluster goes down by one word, typed anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until
from support.terminal import PASSWORD, attached

DOWN_S = 90


@pytest.fixture
def duo(ssi: Ssi) -> Iterator[Cluster]:
    """Two nodes; the password has been changed, and a shutdown leaves a trace on the consoles."""
    with started(ssi, 2) as cluster:
        cluster.run(2, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        script = b"#!/bin/sh\necho services have ended on node$SSI_NODE\n"
        cluster.run(2, "tee", "/etc/rc.d/rc.shutdown", given=script)
        yield cluster


def is_running(cluster: Cluster) -> bool:
    return any(c["id"] == cluster.number for c in cluster.ssi.json("ls"))


def console(cluster: Cluster, node: int) -> str:
    return (cluster.logs / f"node{node}.console").read_text(errors="replace")


def check_order(cluster: Cluster) -> None:
    """The entry for a shutdown has run once, on the init node, and both nodes left in order."""
    said = console(cluster, 1) + console(cluster, 2)
    assert said.count("services have ended on node1") == 1
    for node in (1, 2):
        assert "Power down" in console(cluster, node), "the node did not switch itself off"
        assert "GFS2" not in console(cluster, node).rpartition("services have ended")[2] or (
            "withdraw" not in console(cluster, node)
        )


def test_shutdown_takes_all_down(duo: Cluster) -> None:
    with attached(duo, 2) as terminal, attached(duo, 1) as other:
        other.expect("login: ")
        terminal.log_in()
        terminal.type("shutdown now\r")
        terminal.expect("The cluster is going down for power-off NOW!")
        terminal.end()
    wait_until(lambda: not is_running(duo), "the cluster is gone", within_s=DOWN_S)
    check_order(duo)


def test_reboot_starts_all_nodes_again(duo: Cluster) -> None:
    boots = [duo.run(node, "cat", "/proc/sys/kernel/random/boot_id") for node in (1, 2)]
    duo.run(1, "touch", "/root/stays")
    with attached(duo, 1) as terminal:
        terminal.log_in()
        terminal.type("reboot\r")
        terminal.end()
    wait_until(
        lambda: [row["state"] for row in duo.nodes().values()] == ["ready", "ready"]
        and [duo.try_run(n, "cat", "/proc/sys/kernel/random/boot_id").out for n in (1, 2)] != boots,
        "both nodes are up again", within_s=DOWN_S,
    )  # fmt: skip
    duo.run(2, "ls", "/root/stays")
    assert duo.run(2, "cluster") == "1-2\n"
    with attached(duo, 2) as terminal:
        terminal.log_in()


def test_a_planned_shutdown_can_be_cancelled(duo: Cluster) -> None:
    with attached(duo, 1) as terminal:
        terminal.log_in()
        said = duo.run(2, "shutdown", "-r", "+10", "New", "disks.")
        assert "The cluster goes down at" in said
        terminal.expect("The cluster is going down for reboot in 10 minutes!\\s+New disks.")
        terminal.type("shutdown -c\r")
        terminal.expect("The shutdown is cancelled.")
    denied = duo.try_run(1, "setpriv", "--reuid=nobody", "--clear-groups", "poweroff")
    assert (denied.status, denied.out) == (77, "")
    assert "only root" in denied.err
    wrong = duo.try_run(1, "shutdown", "soon")
    assert wrong.status == 2
    assert "'soon' is no time" in wrong.err
    assert duo.run(1, "cluster") == "1-2\n"


def test_ctrl_alt_del_does_what_inittab_says(duo: Cluster) -> None:
    duo.run(1, "sed", "-i", "s|^ca:.*|ca::ctrlaltdel:/sbin/poweroff|", "/etc/inittab.ssi")
    duo.run(1, "telinit", "q")
    # So the kernel tells PID 1 of the keys.
    duo.try_run(2, "kill", "-INT", "1")
    wait_until(lambda: not is_running(duo), "the cluster is gone", within_s=DOWN_S)
    check_order(duo)


def test_ssi_stop_takes_the_same_way(duo: Cluster) -> None:
    duo.ssi("stop", str(duo.number))
    check_order(duo)


def test_one_node_leaves_in_order(duo: Cluster) -> None:
    service = b"#!/bin/sh\ntrap 'echo the service ends; exit' TERM\nsleep 1000000 & wait\n"
    path = "/usr/local/sbin/service"
    duo.run(1, "sh", "-c", 'cat >"$0" && chmod 755 "$0"', path, given=service)
    duo.run(1, "tee", "-a", "/etc/inittab.ssi", given=f"tr:3:respawn@all:{path}\n".encode())
    duo.run(1, "telinit", "q")
    duo.run(1, "sh", "-c", "until pgrep -x sleep; do sleep 0.1; done")
    # The init node is the one that leaves: what it has for the cluster goes to the other.
    duo.run(2, "clusternode_shutdown", "1")
    wait_until(lambda: set(duo.nodes()) == {2}, "node1 is off")
    assert "the service ends" in console(duo, 1)
    assert "Power down" in console(duo, 1)
    assert duo.nodes()[2]["init_node"] == 2
    wait_until(lambda: duo.run(2, "clusternode_getstate", "1") == "DOWN\n", "node1 is DOWN")
    last = duo.try_run(2, "clusternode_shutdown", "2")
    assert (last.status, last.out) == (1, "")
    assert "is the last one" in last.err
    gone = duo.try_run(2, "clusternode_shutdown", "1")
    assert "node1 is DOWN, not UP" in gone.err
    duo.add(1)
    assert duo.run(1, "cluster") == "1-2\n"


def test_the_next_init_node_goes_on_with_a_shutdown(duo: Cluster) -> None:
    script = b"#!/bin/sh\n[ $SSI_NODE != 1 ] || sleep 1000\necho services have ended\n"
    duo.run(2, "tee", "/etc/rc.d/rc.shutdown", given=script)
    duo.run(2, "poweroff")
    wait_until(lambda: duo.nodes()[1]["state"] == "stopping", "the shutdown has begun")
    duo.crash(1)
    wait_until(lambda: not is_running(duo), "node2 goes down, too", within_s=DOWN_S)
    assert "services have ended" in console(duo, 2)
