"""Processes whose memory follows: they go on before it has come, and all of it comes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

PROGRAM = TOP / "tests/programs/lazy.py"
MIB = 64
MANY_MIB = 150
"""This takes longer than to stop what brings it."""
FEW_MIB = 24
"""For several that have no page in common: what comes for one does not come for all."""

# Moves a process, and has its memory come no further.
STOP = """
migrate "$1" "$0" && onnode "$1" env SSI_PROC=local pkill -STOP -x pager
"""
GO_ON = ("env", "SSI_PROC=local", "pkill", "-CONT", "-x", "pager")
SERVER = "env SSI_PROC=local pkill -9 -x ssi-pages"
# There are two of it: who brings the pages is the other one's child.
BRINGER = """
export SSI_PROC=local
for pid in $(pgrep -x pager); do pkill -9 -x pager -P $pid; done
pkill -CONT -x pager
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with some memory."""
    with started(ssi, 3, "-m", "448") as cluster:
        yield cluster


@contextlib.contextmanager
def held(
    cluster: Cluster, what: str, mib: int = MIB
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Have PROGRAM run on node 1; give its PID, and who sees its end."""
    with cluster.start_python(1, PROGRAM.read_text(), what, str(mib)) as process:
        assert process.stdout
        pid = process.stdout.readline().decode().strip()
        try:
            yield pid, process
        finally:
            process.kill()


def read_all(process: subprocess.Popen[bytes]) -> list[str]:
    """Return what it said behind its PID."""
    assert process.stdout
    return process.stdout.read().decode().splitlines()


def is_missing(cluster: Cluster, node: int, pid: str) -> bool:
    """Tell whether something of its memory is not there yet."""
    words = ("grep", "-q", "^VmFlags.* um", f"/proc/{pid}/smaps")
    return cluster.try_run(node, *words).status == 0


@pytest.mark.parametrize(
    "what",
    [
        "read", "write", "threads", "several", "protect", "fork", "remap", "signals", "calls",
        "start",
    ],
)  # fmt: skip
def test_all_of_it_is_there(trio: Cluster, what: str) -> None:
    with held(trio, what, FEW_MIB if what == "fork" else MIB) as (pid, process):
        trio.run(3, "migrate", "2", pid)
        assert read_all(process) == [f"{what} on node2: 0 wrong"]
        assert process.wait() == 0
    # Or nothing of this was to be seen.
    assert f"pages of process {pid} follow" in trio.ssi("logs", "-c", str(trio.number), "2")


def test_it_ends_before_all_has_come(trio: Cluster) -> None:
    with held(trio, "leave") as (pid, process):
        trio.run(3, "migrate", "2", pid)
        assert process.wait() == 7
    wait_until(lambda: trio.try_run(2, *GO_ON).status == 1, "nothing is brought any more")
    wait_until(lambda: trio.try_run(1, "pgrep", "-x", "ssi-pages").status == 1, "nothing is kept")


def test_it_runs_while_it_comes(trio: Cluster) -> None:
    with held(trio, "wait", MANY_MIB) as (pid, process):
        trio.run(1, "sh", "-c", STOP, pid, "2")
        assert is_missing(trio, 2, pid)
        assert trio.run(3, "where_pid", pid) == "2\n"
        trio.run(2, *GO_ON)
        wait_until(lambda: not is_missing(trio, 2, pid), "all is there")
        trio.run(3, "kill", "-USR1", pid)
        assert read_all(process) == ["wait on node2: 0 wrong"]


def test_on_and_home_at_once(trio: Cluster) -> None:
    with held(trio, "wait") as (pid, process):
        for node in ("2", "3", "2", "1"):
            trio.run(1, "migrate", node, pid)
        trio.run(3, "kill", "-USR1", pid)
        assert read_all(process) == ["wait on node1: 0 wrong"]


def start_alone(cluster: Cluster, mib: int) -> str:
    """Have it wait on node 1, with what it says in a file; return its PID."""
    script = 'setsid python3 -c "$0" wait "$1" >/root/said 2>&1 </dev/null & echo $!'
    pid = cluster.run(1, "sh", "-c", script, PROGRAM.read_text(), str(mib)).strip()
    wait_said(cluster, f"{pid}\n")
    return pid


def wait_said(cluster: Cluster, text: str) -> None:
    """Wait until it has said so."""
    wait_until(lambda: cluster.try_run(1, "cat", "/root/said").out == text, f"it says {text!r}")


def test_it_is_saved_at_once(trio: Cluster) -> None:
    pid = start_alone(trio, 40)
    trio.run(1, "sh", "-c", 'migrate 2 "$0" && checkpoint -k "$0" /root/lazy.saved', pid)
    trio.run(3, "sh", "-c", "setsid restart /root/lazy.saved >/root/refused 2>&1 </dev/null &")
    wait_until(lambda: trio.try_run(1, "where_pid", pid).out == "3\n", "it goes on")
    assert trio.run(1, "cat", "/root/refused") == ""
    trio.run(1, "kill", "-USR1", pid)
    wait_said(trio, f"{pid}\nwait on node3: 0 wrong\n")


def test_whole(trio: Cluster) -> None:
    with held(trio, "wait", MANY_MIB) as (pid, process):
        trio.run(1, "migrate", "-w", "2", pid)
        assert not is_missing(trio, 2, pid)
        trio.run(3, "kill", "-USR1", pid)
        assert read_all(process) == ["wait on node2: 0 wrong"]


# Kills CRIU when it has somebody send, or soon after that.
KILL_SENDER = """
migrate -w 2 "$0" >/root/refused 2>&1 &
export SSI_PROC=local
until [ $(grep -ls "^TracerPid:.*[1-9]" /proc/[0-9]*/status | wc -l) -gt 1 ]; do
    kill -0 $! || break
done
pkill -9 -x criu
wait $!
"""


def test_who_has_it_sent_is_killed(trio: Cluster) -> None:
    for _ in range(3):
        with held(trio, "wait", MANY_MIB) as (pid, process):
            moved = trio.try_run(1, "sh", "-c", KILL_SENDER, pid).status == 0
            if trio.try_run(3, "where_pid", pid).out not in {"1\n", "2\n"}:
                # It was killed in the moment in which what sends was made of it.
                assert process.wait() == 128 + 9
                continue
            trio.run(3, "kill", "-USR1", pid)
            if not moved:
                # It looks as soon as it is on another node.
                assert trio.run(1, "where_pid", pid) == "1\n"
                trio.run(1, "migrate", "2", pid)
            assert read_all(process) == ["wait on node2: 0 wrong"]
    script = 'export SSI_PROC=local; grep -ls "^TracerPid:.*[1-9]" /proc/[0-9]*/status'
    wait_until(lambda: trio.try_run(1, "sh", "-c", script).out == "", "nobody is traced")


def test_daemons_are_killed_while_it_comes(trio: Cluster) -> None:
    pid = start_alone(trio, MANY_MIB)
    trio.run(1, "sh", "-c", STOP, pid, "2")
    for node in (1, 2):
        kill_daemon(trio, node)
    wait_until(lambda: trio.try_run(3, "where_pid", pid).out == "2\n", "others know of it")
    # It may not move on before all is there.
    words = ["ssi", "exec", "-c", str(trio.number), "3", "--", "migrate", "3", pid]
    with trio.ssi.person.start(words, stdin=subprocess.DEVNULL) as moving:
        with pytest.raises(subprocess.TimeoutExpired):
            moving.wait(3)
        assert is_missing(trio, 2, pid)
        trio.run(2, *GO_ON)
        assert moving.wait(60) == 0
    trio.run(1, "kill", "-USR1", pid)
    wait_said(trio, f"{pid}\nwait on node3: 0 wrong\n")


@pytest.mark.parametrize(("node", "script"), [(1, SERVER), (2, BRINGER)], ids=["kept", "brought"])
def test_what_has_its_memory_is_killed(trio: Cluster, node: int, script: str) -> None:
    with held(trio, "read", MANY_MIB) as (pid, process):
        trio.run(1, "sh", "-c", STOP, pid, "2")
        trio.run(node, "sh", "-c", script)
        trio.try_run(2, *GO_ON)
        # It may not go on with zeros: nothing is said of them.
        assert read_all(process) == []
        assert process.wait() == 128 + 9


def test_a_child_has_lost_its_memory(trio: Cluster) -> None:
    with held(trio, "bear", 100) as (pid, process):
        trio.run(3, "migrate", "2", pid)
        assert process.stdout
        child = process.stdout.readline().decode().strip()
        assert is_missing(trio, 2, child)
        trio.run(2, "sh", "-c", BRINGER)
        wait_until(lambda: trio.try_run(1, "where_pid", pid).status == 1, "it has ended")
        trio.run(2, "kill", "-USR1", child)
        wait_until(lambda: trio.try_run(2, "where_pid", child).status == 1, "so has its child")
        assert read_all(process) == []
    wait_until(lambda: trio.try_run(2, *GO_ON).status == 1, "nobody waits for anybody")


def test_its_former_node_leaves_when_all_has_come(trio: Cluster) -> None:
    with held(trio, "wait", MANY_MIB) as (pid, process):
        trio.run(1, "migrate", "-w", "2", pid)
        trio.run(1, "sh", "-c", STOP, pid, "3")
        # Long enough for its processes to be ended, if that were not waited for.
        later = f"(sleep 3; {' '.join(GO_ON)}) >/dev/null 2>&1 </dev/null &"
        trio.run(3, "setsid", "sh", "-c", later)
        trio.run(1, "clusternode_shutdown", "2")
        wait_until(lambda: 2 not in trio.nodes(), "node2 has left")
        trio.run(3, "kill", "-USR1", pid)
        assert read_all(process) == ["wait on node3: 0 wrong"]
    trio.restore(1, 2, 3)


def test_the_node_with_its_memory_is_lost(trio: Cluster) -> None:
    with held(trio, "wait", MANY_MIB) as (pid, process):
        trio.run(1, "migrate", "-w", "2", pid)
        trio.run(1, "sh", "-c", STOP, pid, "3")
        trio.run(3, "kill", "-USR1", pid)
        trio.crash(2)
        trio.run(3, *GO_ON)
        assert read_all(process) == []
        assert process.wait() == 128 + 9
    trio.restore(1, 2, 3)
