"""A process that moves keeps its children, wherever these are."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, set_fault, started, wait_until
from support.families import PROGRAM, Parent, check_empty, move
from support.terminal import PASSWORD, Terminal, attached

CONTINUED = 0xFFFF
PROMPT = r"root@node1:[^ ]*# "


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shell(trio: Cluster) -> Iterator[Terminal]:
    """A root shell at the console of node 1."""
    trio.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
    with attached(trio, 1) as terminal:
        terminal.log_in()
        yield terminal


@pytest.fixture
def parent(trio: Cluster) -> Iterator[Parent]:
    """A parent on node 1; in the end nothing is left of it or its children."""
    parent = Parent(trio)
    yield parent
    trio.try_run(3, "pkill", "-KILL", "-f", "Has children, and tells")
    parent.end()
    check_empty(trio)


def is_orphan(cluster: Cluster, node: int, pid: str) -> bool:
    """Tell whether init is the parent of a process."""
    return cluster.run(node, "ps", "-o", "ppid=", "-p", pid).split() == ["1"]


def test_it_hears_of_children_that_stayed(trio: Cluster, parent: Parent) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    assert parent.ask("poll") == ["0", "0"]
    assert parent.where == "node2"
    for number, status in (
        (signal.SIGSTOP, signal.SIGSTOP << 8 | 0x7F), (signal.SIGCONT, CONTINUED),
        (signal.SIGTERM, signal.SIGTERM),
    ):  # fmt: skip
        trio.run(3, "kill", f"-{number}", child)
        assert parent.wait(child) == status
    assert parent.ask("poll") == ["none"]
    wait_until(lambda: trio.try_run(1, "ps", "-p", child).status, "the child is gone for all")


def test_it_has_children_wherever_it_was(trio: Cluster, parent: Parent) -> None:
    children = [parent.fork()]
    for node in (2, 3, 2, 1, 3, 1, 2):
        move(trio, parent.pid, node)
        children.append(parent.fork())
        assert int(children[-1]) >> 15 == node
    for child in children[::2]:
        trio.run(3, "kill", "-KILL", child)
        assert parent.wait(child) == signal.SIGKILL
    move(trio, parent.pid, 3, 1)
    for child in children[1::2]:
        assert trio.run(2, "ps", "-o", "ppid=", "-p", child).split() == [parent.pid]
        parent.ask("kill", child, signal.SIGTERM)
        assert parent.wait(child) == signal.SIGTERM
    assert parent.ask("poll") == ["none"]


def test_one_that_ends_meanwhile_is_heard_of_once(trio: Cluster, parent: Parent) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    trio.run(3, "kill", child)
    move(trio, parent.pid, 3, 1)
    assert parent.wait(child) == signal.SIGTERM
    assert parent.ask("poll") == ["none"]


def test_children_move_as_well(trio: Cluster, parent: Parent) -> None:
    """To where the parent is, and away from there, and before it to where it goes."""
    child, other = parent.fork(), parent.fork()
    move(trio, parent.pid, 2)
    move(trio, child, 2, 1, 3, 2)
    move(trio, other, 3)
    move(trio, parent.pid, 3)
    move(trio, other, 1)
    assert parent.ask("poll") == ["0", "0"]
    for pid in (child, other):
        assert trio.run(2, "ps", "-o", "ppid=", "-p", pid).split() == [parent.pid]
        trio.run(1, "kill", pid)
        assert parent.wait(pid) == signal.SIGTERM
    assert parent.ask("poll") == ["none"]


FAILURES = [
    (2, "arrival-called criu"), (2, "arrival-restoring"),
    (2, "arrival-ready criu"), (2, "arrival-ended criu"),
]  # fmt: skip
"""Where what goes wrong when what stood for a child is given up."""


@pytest.mark.parametrize(
    ("source", "node", "fault"),
    [*((source, *one) for source in (1, 3) for one in FAILURES), (1, 1, "departure-ready criu")],
)
def test_one_that_fails_to_come_to_its_parent_ends(
    trio: Cluster, parent: Parent, source: int, node: int, fault: str
) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    move(trio, child, source)
    set_fault(trio, node, fault)
    trio.try_run(3, "migrate", "2", child)
    # Its parent sees it die, and so it must not live anywhere: check_empty.
    assert parent.wait(child) == signal.SIGKILL
    assert parent.ask("poll") == ["none"]


def test_children_of_one_that_is_killed_are_orphans(trio: Cluster, parent: Parent) -> None:
    children = [parent.fork()]
    for node in (2, 3):
        move(trio, parent.pid, node)
        children.append(parent.fork())
    trio.run(1, "kill", "-KILL", parent.pid)
    for child in children:
        wait_until(functools.partial(is_orphan, trio, 2, child), "init is its parent")


@pytest.mark.parametrize("node", [1, 2])
def test_a_daemon_dies(trio: Cluster, shell: Terminal, node: int) -> None:
    trio.run(1, "sh", "-c", "cat >/root/parent.py", given=PROGRAM.encode())
    shell.type("python3 /root/parent.py\r")
    shell.expect(r"\d+ node1\r\n")
    pid = shell.found.split()[0]
    shell.type("fork\r")
    shell.expect(r"\d+ node1\r\n")
    child = shell.found.split()[0]
    move(trio, pid, 2)
    kill_daemon(trio, node)
    trio.run(3, "kill", child)
    shell.type(f"wait {child}\r")
    shell.expect(f"{signal.SIGTERM:d} 1 node2\r\n")
    move(trio, pid, 1)
    shell.type("poll\r")
    shell.expect("none node1\r\n")
    shell.type("\x04")
    shell.expect(PROMPT)


def test_a_shell_script(trio: Cluster) -> None:
    """bash waits for what it has started before and after a move."""
    script = (
        "echo $$; for i in 1 2 3; do (read -r line <&3; exit $i) & pids+=($!); done; "
        "read -r line; uname -n; /bin/true; "
        "for pid in ${pids[@]}; do wait $pid; echo $?; done; echo $(echo end)"
    )
    words = ["bash", "-c", f"exec 3<>/root/family.fifo; {script}"]
    trio.run(1, "sh", "-c", "rm -f /root/family.fifo; mkfifo /root/family.fifo")
    process = trio.ssi.person.start(
        ["ssi", "exec", "-c", str(trio.number), "1", "--", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdin
    pid = process.stdout.readline().decode().strip()
    move(trio, pid, 2)
    trio.run(1, "sh", "-c", "echo 1 >/root/family.fifo")
    process.stdin.write(b"go\n")
    process.stdin.flush()
    trio.run(1, "sh", "-c", "printf '1\\n1\\n' >/root/family.fifo")
    said, _ = process.communicate(timeout=60)
    assert said.decode().split() == ["node2", "1", "2", "3", "end"]
    assert process.returncode == os.EX_OK


PIPES = """\
echo $$
read -r line
(exec 5>&1; read -r l <&3; echo "child has $l on $(uname -n)" >&5) &
exec 4> >(while read -r l; do echo "piped $l on $(uname -n)"; done; echo "pipe end")
echo one >&4
read -r line
echo two >&4
echo x >&3
wait %1
echo "waited $?"
read -r line
echo three >&4
exec 4>&-
wait
echo "end on $(uname -n)"
"""


def test_pipes_to_children_are_where_the_children_are(trio: Cluster) -> None:
    """And the terminal that a child has from a parent leads home from wherever it was born."""
    script = f"rm -f /root/x.fifo; mkfifo /root/x.fifo; exec 3<>/root/x.fifo; {PIPES}"
    process = trio.ssi.person.start(
        ["ssi", "exec", "-c", str(trio.number), "1", "--", "bash", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdin

    def read(count: int) -> list[str]:
        assert process.stdout
        return [process.stdout.readline().decode().strip() for _ in range(count)]

    (pid,) = read(1)
    said = []
    for node, count in ((2, 1), (3, 3), (1, 3)):
        move(trio, pid, node)
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        said.append(read(count))
    assert process.wait(60) == os.EX_OK
    assert said[0] == ["piped one on node2"]
    assert sorted(said[1]) == ["child has x on node2", "piped two on node2", "waited 0"]
    assert said[2] == ["piped three on node2", "pipe end", "end on node1"]
    check_empty(trio)


def test_a_node_dies(trio: Cluster) -> None:
    """That of a child: its parent hears of it. That of the parent: the children are orphans."""
    parent = Parent(trio)
    move(trio, parent.pid, 2)
    child = parent.fork()
    move(trio, parent.pid, 3)
    stays = parent.fork()
    trio.crash(2)
    assert parent.wait(child) == signal.SIGKILL
    assert parent.ask("poll") == ["0", "0"]
    trio.add(2)
    trio.restore(1, 2, 3)
    move(trio, parent.pid, 1)
    assert trio.run(2, "ps", "-o", "ppid=", "-p", stays).split() == [parent.pid]
    move(trio, parent.pid, 2)
    trio.crash(2)
    wait_until(lambda: is_orphan(trio, 1, stays), "init is its parent")
    trio.run(1, "kill", stays)
    parent.end()
