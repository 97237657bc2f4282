"""`ssi ps` and `ssi kill`: all processes of a cluster, from the host."""

from __future__ import annotations

from typing import Any

from support.clusters import Cluster, Result, kill_daemon, wait_until

SLEEP = "setsid sleep {0} >/dev/null 2>&1 </dev/null & echo $!"


def table(cluster: Cluster) -> dict[int, dict[str, Any]]:
    """Return what `ssi ps` tells, by PID."""
    rows = cluster.ssi.json("ps", str(cluster.number))
    assert len({row["pid"] for row in rows}) == len(rows), "one is there twice"
    return {row["pid"]: row for row in rows}


def kill(cluster: Cluster, *words: str) -> Result:
    """Type ``ssi kill WORDS``."""
    return cluster.ssi.try_("kill", "-c", str(cluster.number), *words)


def test_processes_of_all_nodes_and_each_once(trio: Cluster) -> None:
    pids = [int(trio.run(node, "sh", "-c", SLEEP.format(1000 + node))) for node in (1, 2, 3)]
    script = "setsid onnode 3 nice -n 5 sleep 1004 >/dev/null 2>&1 </dev/null & echo $!"
    pids.append(int(trio.run(1, "sh", "-c", script)))
    wait_until(lambda: trio.run(1, "where_pid", str(pids[3])) == "3\n", "it runs there")
    rows = table(trio)
    for pid, node, number in zip(pids, (1, 2, 3, 3), (1001, 1002, 1003, 1004), strict=True):
        row = rows[pid]
        assert (row["node"], row["user"]) == (node, "root")
        assert row["state"] in {"S", "D", "R"}
        assert row["command"].endswith(f"sleep {number}")
    assert not [row for row in rows.values() if "api-processes" in row["command"]]
    assert not [row for row in rows.values() if row["pid"] < 32768]
    lines = trio.ssi("ps", str(trio.number)).splitlines()
    assert lines[0].split() == ["PID", "PPID", "NODE", "USER", "STAT", "TIME", "COMMAND"]
    assert any(line.split()[0] == str(pids[1]) for line in lines[1:])

    assert kill(trio, *map(str, pids)) == Result(0, "", "")
    wait_until(lambda: not table(trio).keys() & set(pids), "all have ended")


def commands(cluster: Cluster) -> set[str]:
    """Return what runs, as `ssi ps` has it: what comes of the boot may still."""
    return {row["command"].split()[0] for row in cluster.ssi.json("ps", str(cluster.number))}


def test_what_nodes_have_for_themselves_is_not_shown(trio: Cluster) -> None:
    assert trio.run(1, "onnode", "2", "hostname") == "node2\n"  # there are visitors on node 2 now
    kill_daemon(trio, 2)
    wait_until(lambda: trio.try_run(2, "cluster").out == "1-3\n", "it is back")
    wait_until(lambda: commands(trio) == {"/sbin/agetty"}, f"not {commands(trio)} but the consoles")
    rows = trio.ssi.json("ps", str(trio.number))
    assert sorted(row["node"] for row in rows) == [1, 2, 3]
    everything = trio.ssi.json("ps", "--all", str(trio.number))
    for word in ("init", "[kthreadd]", "corosync", "/sysroot/usr/lib/ssi/launcher", "busybox"):
        found = {row["node"] for row in everything if row["command"].split()[0] == word}
        assert found == {1, 2, 3}, word
    lines = trio.ssi("ps", "--all", str(trio.number)).splitlines()
    assert any(line.endswith("[kthreadd]") for line in lines)
    assert not [line for line in lines if line != line.rstrip()]


def test_kill_says_what_kill_says(trio: Cluster) -> None:
    pid = trio.run(3, "sh", "-c", SLEEP.format(1000)).strip()
    gone = str((2 << 15) + 32000)
    assert kill(trio, "-s", "0", pid).status == 0
    assert kill(trio, "-s", "STOP", pid).status == 0
    wait_until(lambda: table(trio)[int(pid)]["state"] == "T", "it is stopped")
    some = kill(trio, "-s", "sigkill", pid, gone)
    here = trio.try_run(1, "kill", "-s", "9", "--", pid, gone)
    assert f"({gone})" in some.err
    assert "No such process" in some.err
    assert some.err.splitlines()[-1:] == here.err.splitlines()[-1:]
    wait_until(lambda: int(pid) not in table(trio), "it has ended")


def test_what_is_no_pid_or_signal(trio: Cluster) -> None:
    for words, said in (
        (("12",), "each node's own"),
        (("x",), "'x' is no PID"),
        (("-s", "NONE", "40000"), "'NONE' is no signal"),
    ):
        refused = kill(trio, *words)
        assert refused.status == 2
        assert said in refused.err
