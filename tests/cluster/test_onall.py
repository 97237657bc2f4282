"""`onall`: a command on all nodes, as the one who asks for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until
from support.terminal import PASSWORD, Terminal, attached

USER = "mole"
INTERRUPTED = 130
FAILED = 255
GO = "/var/tmp/go"
LOCAL = ("env", "SSI_PROC=local")
WAIT = f"echo here; while [ ! -e {GO} ]; do sleep 0.1; done; echo there"


@pytest.fixture(scope="module")
def cluster(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with a normal user."""
    with started(ssi, 3) as cluster:
        cluster.run(1, "useradd", "--create-home", "--groups", "audio,video", USER)
        cluster.run(2, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture
def trio(cluster: Cluster) -> Iterator[Cluster]:
    """The three nodes up; a test may crash some."""
    cluster.restore(1, 2, 3)
    cluster.run(1, "rm", "-f", GO)
    yield cluster
    cluster.restore(1, 2, 3)
    wait_until(lambda: not sleepers(cluster), "no command is left")


@pytest.fixture
def shell(trio: Cluster) -> Iterator[Terminal]:
    """A terminal with a root shell on node 1."""
    trio.crash(1)
    trio.add(1)
    with attached(trio, 1) as terminal:
        terminal.log_in()
        yield terminal


def sleepers(cluster: Cluster) -> list[int]:
    """Return the nodes on which a command still sleeps."""
    return [
        n for n in (1, 2, 3) if cluster.try_run(n, *LOCAL, "pgrep", "-f", "slee[p]").status == 0
    ]


def as_user(script: str) -> list[str]:
    """Return the words by which the user runs `script`."""
    return ["runuser", "-u", USER, "--", "sh", "-c", script]


def start(cluster: Cluster, *words: str) -> subprocess.Popen[bytes]:
    """Start `words` on node 1; what it writes is a pipe."""
    line = ["ssi", "exec", "-c", str(cluster.number), "1", "--", *words]
    return cluster.ssi.person.start(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_here(process: subprocess.Popen[bytes], *nodes: int) -> None:
    """Wait until the command says that it runs on `nodes`."""
    assert process.stdout
    said = {process.stdout.readline() for _ in nodes}
    assert said == {b"node%d: here\n" % node for node in nodes}


def finish(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Return what it still writes until it ends."""
    assert process.stdout
    assert process.stderr
    # Not communicate(): that misses what readline() has read ahead.
    said = process.stdout.read(), process.stderr.read()
    process.wait(timeout=30)
    return said


def test_what_is_alike_is_shown_once(trio: Cluster) -> None:
    assert trio.run(1, "onall", "echo", "a  b") == "node1-3:\na  b\n"
    assert trio.run(2, "onall", "cat", "/proc/sys/kernel/hostname") == (
        "node1:\nnode1\nnode2:\nnode2\nnode3:\nnode3\n"
    )
    assert trio.run(3, "onall", "-n", "1,3", "echo $((6 * 7))") == "node1,3:\n42\n"
    assert trio.run(1, "onall", "true") == ""


def test_the_status_is_the_largest_and_errors_come_with_their_node(trio: Cluster) -> None:
    result = trio.try_run(1, "onall", "hostname >&2; exit $(hostname | tr -d a-z)")
    assert result.status == 3
    assert result.out == ""
    lines = result.err.splitlines()
    assert sorted(lines[:3]) == [f"node{n}: node{n}" for n in (1, 2, 3)]
    assert lines[3:] == [f"onall: node{n}: exit status {n}" for n in (1, 2, 3)]
    missing = trio.try_run(1, "onall", "-n", "2", "no-such-program")
    assert missing.status == 127
    assert missing.err.startswith("node2: no-such-program: No such file")
    assert trio.try_run(1, "onall").status == 2
    away = trio.try_run(1, "onall", "-n", "1,9", "echo", "here")
    assert (away.status, away.out) == (FAILED, "node1:\nhere\n")
    assert "onall: node9 is not up" in away.err


def test_json_has_a_row_for_each_node(trio: Cluster) -> None:
    result = trio.try_run(1, "onall", "--json", "hostname; echo e >&2; [ $(hostname) != node2 ]")
    assert json.loads(result.out) == [
        {
            "node": node, "status": int(node == 2), "error": None,
            "stdout": f"node{node}\n", "stderr": "e\n", "truncated": False,
        }
        for node in (1, 2, 3)
    ]  # fmt: skip
    assert result.status == 1


def test_it_runs_as_the_caller(trio: Cluster) -> None:
    script = 'id -un; id -Gn; pwd; umask; echo "$MINE"'
    said = trio.run(1, *as_user(f"cd /var/tmp; umask 027; MINE='x  y' onall '{script}'"))
    assert said == f"node1-3:\n{USER}\n{USER} audio video\n/var/tmp\n0027\nx  y\n"
    assert trio.run(1, "onall", "id -u; id -g") == "node1-3:\n0\n0\n"


def test_what_the_caller_gives_has_his_rights_only(trio: Cluster) -> None:
    # His PATH and his preloaded library count for his command alone, and no folder opens to him.
    trio.run(1, *as_user("mkdir -p ~/bin; printf '#!/bin/sh\\nid -u\\n' >~/bin/python3"))
    trio.run(
        1, *as_user("cd; cp bin/python3 bin/nsenter; cp bin/python3 bin/id-of; chmod +x bin/*")
    )
    uid = trio.run(1, "id", "-u", USER)
    said = trio.run(1, *as_user("cd; PATH=$HOME/bin:$PATH onall id-of"))
    assert said == f"node1-3:\n{uid}"
    preloaded = trio.try_run(1, *as_user("cd; LD_PRELOAD=/nowhere/x.so onall -n 2 true"))
    assert preloaded.err.count("node2: ERROR: ld.so") == 1
    trio.run(1, "install", "-d", "-m", "700", "/root/closed/open")
    # As of a shell that has entered the folder with other rights.
    inside = trio.try_run(
        1, "sh", "-c", f"cd /root/closed/open && exec runuser -u {USER} -- onall -n 2 pwd"
    )
    assert inside.status == 126
    assert "Permission denied" in inside.err


def test_standard_input_goes_to_every_node(trio: Cluster) -> None:
    data = b"".join(b"line %d\n" % n for n in range(30_000))
    said = trio.run(1, "onall", "--", "wc", "-c", given=data)
    assert said == f"node1-3:\n{len(data)}\n"
    # One that reads nothing is no reason to wait for ever.
    assert trio.run(1, "onall", "[ $(hostname) = node2 ] || wc -c", given=data) == (
        f"node1,3:\n{len(data)}\n"
    )


def test_much_output_is_neither_lost_nor_kept(trio: Cluster) -> None:
    result = trio.try_run(1, "onall", "-n", "2,3", "seq 300000")
    assert "node2 writes too much to fold" in result.err
    for node in (2, 3):
        lines = [line for line in result.out.splitlines() if line.startswith(f"node{node}: ")]
        assert lines == [f"node{node}: {n}" for n in range(1, 300_001)]


def test_a_reader_that_waits_stops_the_command_alone(trio: Cluster) -> None:
    slow = start(trio, "onall", "--live", "seq 300000; echo done >&2")
    assert slow.stdout
    assert slow.stdout.readline().endswith(b": 1\n")
    assert trio.run(1, "onall", "echo", "through") == "node1-3:\nthrough\n"
    out, error = finish(slow)
    assert out.count(b"\n") == 3 * 300_000 - 1
    assert error.count(b": done\n") == 3


def test_interrupting_reaches_all_nodes(shell: Terminal, trio: Cluster) -> None:
    shell.type("onall --live 'echo he''re; exec sleep 1000'\r")
    for _ in range(3):
        shell.expect(r"node\d: here\r\n")
    shell.type("\x03")
    shell.expect(f"onall: node1-3: exit status {INTERRUPTED}\r\n")
    shell.expect(r"root@node1:[^ ]*# ")
    assert shell.run("echo $?") == f"{INTERRUPTED}\n"
    assert not sleepers(trio)


def test_a_command_may_have_its_own_way_with_signals(trio: Cluster) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo here; while :; do sleep 0.1; done"
    process = start(trio, "onall", "--live", script)
    wait_here(process, 1, 2, 3)
    trio.run(1, "pkill", "-TERM", "-x", "onall")
    out, error = finish(process)
    assert sorted(out.splitlines()) == [b"node%d: caught" % node for node in (1, 2, 3)]
    assert error.endswith(b"onall: node1-3: exit status 7\n")
    assert process.returncode == 7


def test_a_node_that_dies_is_reported_and_the_others_go_on(trio: Cluster) -> None:
    process = start(trio, "onall", "--live", WAIT)
    wait_here(process, 1, 2, 3)
    trio.crash(3)
    assert process.poll() is None
    wait_until(lambda: trio.run(1, "cluster") == "1-2\n", "its death is confirmed")
    trio.run(1, "touch", GO)
    out, error = finish(process)
    assert sorted(out.splitlines()) == [b"node1: there", b"node2: there"]
    assert error == b"onall: node3 was lost\n"
    assert process.returncode == FAILED
    assert trio.run(2, "onall", "echo", "x") == "node1-2:\nx\n"


def test_who_is_killed_takes_his_commands_along(trio: Cluster) -> None:
    # One of them does not mind SIGHUP.
    script = "[ $(hostname) != node2 ] || trap '' HUP; echo here; while :; do sleep 0.1; done"
    process = start(trio, "onall", "--live", script)
    wait_here(process, 1, 2, 3)
    trio.run(1, "pkill", "-KILL", "-x", "onall")
    process.wait(timeout=30)
    wait_until(lambda: not sleepers(trio), "all have ended", within_s=15)


def test_the_caller_s_node_dies_and_takes_his_commands_along(trio: Cluster) -> None:
    process = start(trio, "onall", "--live", "-n", "2,3", "echo here; exec sleep 1000")
    wait_here(process, 2, 3)
    trio.crash(1)
    wait_until(
        lambda: all(trio.try_run(n, *LOCAL, "pgrep", "-x", "sleep").status == 1 for n in (2, 3)),
        "all have ended",
    )
