"""The network fails: no joiners found a cluster beside a living one, a split has one side."""

from __future__ import annotations

import signal
import subprocess

from support.clusters import Cluster, Ssi, started, wait_until


def rings(cluster: Cluster) -> dict[int, list[int]]:
    return {node: state["ring"] for node, state in cluster.nodes().items()}


def test_joiners_that_see_only_each_other_wait(ssi: Ssi) -> None:
    with started(ssi, 1) as cluster:
        number = str(cluster.number)
        ssi("net", "-c", number, "partition", "1", "2,3")
        joining = ssi.person.start(["ssi", "add", number, "2", "3"])
        wait_until(
            lambda: rings(cluster) == {1: [1], 2: [2, 3], 3: [2, 3]}, "the joiners' own ring"
        )
        # Two of three are a majority, and still nothing happens to the root.
        quorate = ssi(
            "exec",
            "-c",
            number,
            "--ramdisk",
            "2",
            "--",
            "sh",
            "-c",
            "corosync-quorumtool | grep Quorate:; grep -c gfs2 /proc/mounts; true",
        )
        assert quorate.split() == ["Quorate:", "No", "0"]
        assert {n: s["state"] for n, s in cluster.nodes().items()} == {
            1: "ready", 2: "ring", 3: "ring",
        }  # fmt: skip
        cluster.run(1, "sh", "-c", "echo alive >/root/alive; sync /root/alive")
        ssi("net", "-c", number, "heal")
        assert joining.wait(timeout=90) == 0
        assert cluster.run(3, "cat", "/root/alive") == "alive\n"


def test_the_larger_side_of_a_split_lives(trio: Cluster) -> None:
    trio.ssi("net", "-c", str(trio.number), "partition", "1", "2,3")
    trio.run(2, "sh", "-c", "echo 2 >/root/split; sync /root/split")
    assert set(trio.nodes()) == {2, 3}
    trio.run(3, "rm", "/root/split")


def test_of_two_one_lives(trio: Cluster) -> None:
    trio.crash(3)
    trio.run(1, "sync", "-f", "/root")
    wait_until(lambda: trio.sees_all(1, 2), "node3 is out of the ring")
    trio.ssi("net", "-c", str(trio.number), "partition", "1", "2")
    trio.run(1, "sh", "-c", "echo 1 >/root/split; sync /root/split")
    assert set(trio.nodes()) == {1}
    trio.run(1, "rm", "/root/split")


def test_a_hanging_majority_does_not_outvote_the_one_that_works(trio: Cluster) -> None:
    groups = [str(trio.nodes()[node]["pid"]) for node in (1, 2)]
    for group in groups:
        subprocess.run(["pkill", "-STOP", "-g", group], check=True)
    trio.run(3, "sh", "-c", "echo 3 >/root/split; sync /root/split")
    assert set(trio.nodes()) == {3}
    trio.run(3, "rm", "/root/split")


def test_a_founder_that_dies_has_a_successor(ssi: Ssi) -> None:
    with started(ssi, 1) as cluster:
        number = str(cluster.number)
        ssi("net", "-c", number, "partition", "1", "2,3")
        joining = ssi.person.start(["ssi", "add", number, "2", "3"])
        wait_until(
            lambda: rings(cluster) == {1: [1], 2: [2, 3], 3: [2, 3]}, "the joiners' own ring"
        )
        # The only one who has the root dies: now the joiners may, and one of them is the first.
        cluster.crash(1)
        assert joining.wait(timeout=90) == 0
        cluster.run(3, "true")


def test_messages_that_are_late_or_lost_do_no_harm(trio: Cluster) -> None:
    number = str(trio.number)
    trio.ssi("net", "-c", number, "drop", "1", "2", "5%")
    trio.ssi("net", "-c", number, "delay", "all", "20ms")
    for node in (1, 2, 3):
        trio.run(node, "sh", "-c", f"for i in 1 2 3; do echo {node} >>/root/late; done")
    assert len(trio.run(1, "cat", "/root/late").split()) == 9
    assert set(trio.nodes()) == {1, 2, 3}
    trio.run(1, "rm", "/root/late")


def test_a_supervisor_that_is_killed_leaves_nothing(ssi: Ssi) -> None:
    number = str(ssi.json("start", "2", "--new", *ssi.images.options)["id"])
    processes = ssi.person.processes()
    (supervisor, guard) = sorted(
        (pid for pid, words in processes.items() if f"guard {number} " in words), reverse=True
    )
    assert supervisor != guard
    subprocess.run(["kill", "-KILL", str(supervisor)], check=True)
    mine = {supervisor, guard} | {p for p, w in processes.items() if f"/{number}/" in w}
    wait_until(lambda: not mine & ssi.person.processes().keys(), "all have ended")
    assert number not in ssi("ls")
    ssi("clean", "--kept", number)


def test_clean_removes_what_a_crash_of_the_host_left(ssi: Ssi) -> None:
    number = str(ssi.json("start", "2", "--new", *ssi.images.options)["id"])
    before = ssi.person.processes()
    keepers = [pid for pid, words in before.items() if f"guard {number} " in words]
    # The guard first, or it would clean up.
    for pid in sorted(keepers):
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=True)
    ssi("clean")
    mine = {pid for pid, words in before.items() if f"/{number}/" in words}
    assert not mine & ssi.person.processes().keys()
    assert not (ssi.person.home / f"run/ssi/{number}").exists()
    # What was on its disk is still there.
    ssi("start", "1", "-c", number, *ssi.images.options)
    ssi("stop", number)
    ssi("clean", "--kept", number)
