"""/proc/PID/goto and cantmove of any process on any node, libraries and commands that use them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Result, kill_daemon, wait_until

SLEEP = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
ALICE, BOB = 1001, 1002

# Moves itself, by threads too; each line says what came of it and where it is.
SELF = """\
import os, signal, sys, threading, ssi.api
def go(node):
    try:
        ssi.api.migrate(node)
        print("there", os.uname().nodename, flush=True)
    except ssi.api.SsiError as error:
        print(type(error).__name__, error, os.uname().nodename, flush=True)
print(os.getpid(), flush=True)
for node in (2, 2, 3, 1, 3):
    go(node)
thread = threading.Thread(target=go, args=(2,))
thread.start()
thread.join()
# A handler without SA_RESTART, which is called all the time.
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
for node in (3, 1):
    go(node)
signal.setitimer(signal.ITIMER_REAL, 0)
for node in (0, 99):
    go(node)
# A file whose name is in another folder now: that is found when the process is frozen already.
held = open("/root/held", "wb")
os.link(held.name, "/srv/other")
os.unlink(held.name)
go(2)
go(2)
held.close()
os.unlink("/srv/other")
go(2)
listens = __import__("socket").create_server(("", 0))
go(3)
"""

WRITES = """\
import os, sys
uid, path = int(sys.argv[1]), sys.argv[2]
os.setresuid(uid, uid, uid)
try:
    os.write(os.open(path, os.O_WRONLY), sys.argv[3].encode())
    print("written")
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def sleeper(trio: Cluster) -> Iterator[str]:
    """The PID of a process that was started on node 1."""
    pid = trio.run(1, "sh", "-c", SLEEP).strip()
    yield pid
    trio.try_run(1, "kill", "-9", pid)


def goto(cluster: Cluster, at: int, pid: str, target: int | str) -> Result:
    """Have a shell of node `at` write to a process's goto."""
    return cluster.try_run(at, "bash", "-c", f"echo {target} >/proc/{pid}/goto")


def is_at(cluster: Cluster, pid: str, target: int) -> bool:
    """Tell whether all nodes say that it is on `target`, by two ways."""
    for node in (1, 2, 3):
        assert cluster.run(node, "where_pid", pid) == f"{target}\n"

    def says(node: int) -> bool:
        # Where it was may be cached for a second by who is neither its old nor its new node.
        return cluster.run(node, "cat", f"/proc/{pid}/where") == f"{target}\n"

    for node in (1, 2, 3):
        wait_until(lambda: says(node), f"node{node} knows", within_s=5)  # noqa: B023
    return True


def test_written_by_somebody_on_any_node(trio: Cluster, sleeper: str) -> None:
    for at, target in ((1, 2), (1, 3), (3, 3), (2, 2), (2, 3), (1, 2)):
        assert goto(trio, at, sleeper, target) == Result(0, "", "")
        assert is_at(trio, sleeper, target)
    script = f"ls -a /proc | grep ssi; ls -l /proc/{sleeper}/goto /proc/$$/goto"
    lines = trio.run(3, "sh", "-c", script).splitlines()
    assert [line[0] for line in lines] == ["l", "l"]
    assert all(re.search(r" -> /proc/\.ssi/\d+-\d+/goto$", line) for line in lines)
    assert any(f" -> /proc/.ssi/{sleeper}-" in line for line in lines)


def test_what_is_refused(trio: Cluster, sleeper: str) -> None:
    for text, words in (
        ("x", "Invalid argument"), ("0", "Invalid argument"), ("128", "Invalid argument"),
        ("99", "Host is down"),
    ):  # fmt: skip
        for node in (1, 2):
            assert words in goto(trio, node, sleeper, text).err
    assert "Device or resource busy" in goto(trio, 1, "1", 2).err
    gone = str((2 << 15) + 32000)
    assert goto(trio, 1, gone, 2).status == 1
    assert goto(trio, 1, f".ssi/{gone}-1", 2).err.endswith("No such process\n")
    for uid in (ALICE, BOB):
        path = f"/proc/{sleeper}/goto"
        for node in (1, 2):
            said = trio.python(node, WRITES, str(uid), path, "2")
            assert said == "Operation not permitted\n"
    assert is_at(trio, sleeper, 1)


def test_who_owns_it_may(trio: Cluster) -> None:
    start = f"setsid setpriv --reuid {ALICE} --clear-groups {SLEEP.removeprefix('setsid ')}"
    pid = trio.run(1, "sh", "-c", start).strip()
    path = f"/proc/{pid}/goto"
    wait_until(lambda: str(ALICE) in trio.run(1, "ps", "-o", "uid=", "-p", pid), "it is hers")
    assert trio.python(3, WRITES, str(BOB), path, "2") == "Operation not permitted\n"
    assert trio.python(3, WRITES, str(ALICE), path, "2") == "written\n"
    assert is_at(trio, pid, 2)
    trio.run(1, "kill", "-9", pid)


def test_written_by_itself(trio: Cluster) -> None:
    process = trio.start_python(1, SELF)
    out, err = process.communicate(timeout=120)
    assert err == b""
    lines = out.decode().splitlines()
    pid = lines.pop(0)
    assert lines == [
        "there node2", "there node2", "there node3", "there node1", "there node3", "there node2",
        "there node3", "there node1",
        "UsageError 0 is not a node number node1", "CannotMove Host is down node1",
        "CannotMove Input/output error node1", "CannotMove Input/output error node1",
        "there node2",
        *lines[-1:],
    ]  # fmt: skip
    assert lines[-1].startswith("CannotMove descriptor ")
    assert "is a TCP socket that listens on port" in lines[-1]
    # Each was one move, also those that failed, be it for what cannot come: the other node makes
    # ready while that is looked for. A write that begins again begins no other.
    log = trio.ssi("logs", "-c", str(trio.number), "-n", "400")
    moves = [line for line in log.splitlines() if f": process {pid} to node" in line]
    assert len(moves) == 7 + 2 + 1 + 1


def test_a_shell_moves_itself(trio: Cluster) -> None:
    script = (
        "echo 2 >/proc/self/goto; echo $? $(uname -n); echo 3 >/proc/$$/goto; echo $? $(uname -n);"
        "echo 1 >>/proc/$$/goto; echo $? $(uname -n)"
    )
    assert trio.run(1, "bash", "-c", script) == "0 node2\n0 node3\n0 node1\n"


def test_what_keeps_a_process(trio: Cluster, sleeper: str) -> None:
    for node in (1, 2):
        assert trio.run(node, "cat", f"/proc/{sleeper}/cantmove") == ""
        assert trio.run(node, "migrate", "--check", sleeper) == f"{sleeper} can move\n"
    script = (
        "unshare -n python3 -c 'import time; f = open(\"/run/utmp\"); time.sleep(1000)'"
        " >/dev/null 2>&1 </dev/null & echo $!"
    )
    pid = trio.run(2, "sh", "-c", script).strip()
    said = "it is in a network namespace of its own\ndescriptor 3 is this node's own: /run/utmp\n"
    for node in (1, 2):
        path = f"/proc/{pid}/cantmove"
        wait_until(lambda: trio.run(node, "cat", path) == said, f"node{node} says why")  # noqa: B023
    checked = trio.try_run(1, "migrate", "--check", sleeper, pid)
    lines = "".join(f"{pid}: {line}\n" for line in said.splitlines())
    assert checked == Result(1, f"{sleeper} can move\n{lines}", "")
    moved = trio.try_run(1, "migrate", "3", pid)
    assert moved == Result(1, "", f"migrate: {pid}: {'; '.join(said.splitlines())}\n")
    trio.run(1, "kill", "-9", pid)


TRACES = """
import ctypes, os, signal, subprocess
traced = subprocess.Popen(["sleep", "1000"])
me = str(os.getpid())
def check():
    return subprocess.run(["migrate", "--check", me], capture_output=True, text=True).stdout
assert check() == f"{me} can move\\n"
seize, detach = 0x4206, 17
assert ctypes.CDLL(None).ptrace(seize, traced.pid, 0, 0) == 0
print(check() == f"{me}: it traces process {traced.pid}\\n", flush=True)
traced.kill()
"""


def test_who_traces_another_one_stays(trio: Cluster) -> None:
    assert trio.python(2, TRACES) == "True\n"


def test_a_pinned_process_stays(trio: Cluster) -> None:
    script = "onnode -p 2 sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
    pid = trio.run(1, "sh", "-c", script).strip()
    wait_until(lambda: trio.run(1, "where_pid", pid) == "2\n", "it is there")
    assert trio.run(3, "cat", f"/proc/{pid}/cantmove") == "it is pinned (onnode -p)\n"
    assert "Device or resource busy" in goto(trio, 1, pid, 3).err
    trio.run(1, "kill", "-9", pid)


def test_from_the_host(trio: Cluster, sleeper: str) -> None:
    number = str(trio.number)
    assert trio.ssi("migrate", "-c", number, "3", sleeper) == ""
    assert is_at(trio, sleeper, 3)
    failed = trio.ssi.try_("migrate", "-c", number, "99", sleeper)
    assert failed == Result(1, "", f"migrate: {sleeper}: node99 is not up\n")
    assert trio.ssi.try_("migrate", "-c", number, "x", sleeper).status == 2


def test_a_new_daemon_knows_the_files(trio: Cluster, sleeper: str) -> None:
    kill_daemon(trio, 1)
    assert goto(trio, 1, sleeper, 2) == Result(0, "", "")
    kill_daemon(trio, 1)
    assert trio.run(1, "cat", f"/proc/{sleeper}/cantmove") == ""
    assert goto(trio, 1, sleeper, 1) == Result(0, "", "")
    assert is_at(trio, sleeper, 1)
