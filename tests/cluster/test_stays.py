"""A process that cannot be restored where something stands for it stays where it was."""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, set_fault, started, wait_until
from support.families import PROGRAM, Parent, check_empty, move
from support.pairs import HEAD, Pair

PAIRS = TOP / "tests/programs/pairs.py"

SPOIL = """\
rm -f /run/ssi/public/fault.reached
(until [ -e /run/ssi/public/fault.reached ]; do sleep 0.05; done
rm /run/ssi/arrivals/*/$0; echo >/run/ssi/public/fault.reached) </dev/null >/dev/null 2>&1 &
"""

IMAGES = ["pstree.img", "pagemap-*.img"]
"""What CRIU reads first (it breaks over that), and what only the process that it makes does."""

HEAVY = "ballast = b'x' * (24 << 20)\n"
"""Its memory follows."""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture
def parent(trio: Cluster, request: pytest.FixtureRequest) -> Iterator[Parent]:
    """A parent on node 1; in the end nothing is left of it or its children."""
    parent = Parent(trio, getattr(request, "param", "") + PROGRAM)
    yield parent
    trio.try_run(3, "pkill", "-KILL", "-f", "Has children, and tells")
    parent.end()
    check_empty(trio)


def spoil(cluster: Cluster, node: int, images: str) -> None:
    """Have such images missing there in the next move, as if they were unreadable."""
    words = ("exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", SPOIL)
    cluster.ssi(*words, images)
    set_fault(cluster, node, "arrival-begun wait")


def check_stays(cluster: Cluster, pid: str, node: int, images: str = "pagemap-*.img") -> None:
    """Have a move to a node fail, and the process stay."""
    before = cluster.run(3, "where_pid", pid)
    spoil(cluster, node, images)
    failed = cluster.try_run(3, "migrate", str(node), pid)
    assert failed.status == 1, failed
    assert "it cannot come home" in failed.err
    assert cluster.run(3, "where_pid", pid) == before


def is_stopped(cluster: Cluster, node: int, pid: str) -> bool:
    """Tell whether the kernel of a node has it stopped."""
    return "\nState:\tT" in cluster.run(node, "cat", f"/run/ssi/proc/{pid}/status")


@pytest.mark.parametrize("missing", IMAGES)
@pytest.mark.parametrize("parent", ["", HEAVY], ids=["small", "heavy"], indirect=True)
def test_its_ghost_is_there_again(trio: Cluster, parent: Parent, missing: str) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    for _ in range(2):
        check_stays(trio, parent.pid, 1, missing)
        assert parent.ask("poll") == ["0", "0"]
        assert parent.where == "node2"
    trio.run(1, "kill", child)
    assert parent.wait(child) == signal.SIGTERM
    # What the ghost gets, and what it is asked for.
    trio.run(1, "kill", "-CHLD", parent.pid)
    move(trio, parent.pid, 3, 1)
    assert parent.ask("poll") == ["none"]
    assert parent.where == "node1"


FILE = "kept = open('/root/vanishes', 'w')\n"


@pytest.mark.parametrize("parent", [FILE], ids=["file"], indirect=True)
def test_a_file_that_vanishes(trio: Cluster, parent: Parent) -> None:
    move(trio, parent.pid, 2)
    check_stays(trio, parent.pid, 1, "../../../../sysroot/root/vanishes")
    assert parent.ask("poll") == ["none"]
    assert parent.where == "node2"


def test_its_placeholder_is_there_again(trio: Cluster, parent: Parent) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    move(trio, child, 3)
    for images in IMAGES:
        check_stays(trio, child, 2, images)
    assert parent.ask("poll") == ["0", "0"]
    move(trio, child, 2, 1)
    assert parent.ask("poll") == ["0", "0"]
    trio.run(1, "kill", child)
    assert parent.wait(child) == signal.SIGTERM


def test_what_was_left_for_its_child_is_there_again(trio: Cluster, parent: Parent) -> None:
    move(trio, parent.pid, 2)
    child = parent.fork()
    move(trio, parent.pid, 3)
    for images in IMAGES:
        check_stays(trio, parent.pid, 2, images)
    assert parent.ask("poll") == ["0", "0"]
    trio.run(1, "kill", child)
    assert parent.wait(child) == signal.SIGTERM
    move(trio, parent.pid, 2, 1)
    assert parent.ask("poll") == ["none"]


def test_others_have_its_descriptors(trio: Cluster, parent: Parent) -> None:
    move(trio, parent.pid, 2)
    child = parent.ask("fork-loud")[0]
    move(trio, parent.pid, 3)
    for node in (1, 2):
        for images in IMAGES:
            check_stays(trio, parent.pid, node, images)
            trio.run(3, "kill", "-USR1", child)
            assert parent.read() == ["child", "node2"]
            assert parent.ask("poll") == ["0", "0"]
    move(trio, parent.pid, 1)
    trio.run(3, "kill", "-USR1", child)
    assert parent.read() == ["child", "node2"]
    trio.run(3, "kill", child)
    assert parent.wait(child) == signal.SIGTERM


def test_a_stopped_one_is_still_stopped(trio: Cluster, parent: Parent) -> None:
    move(trio, parent.pid, 2)
    trio.run(2, "kill", "-STOP", parent.pid)
    wait_until(functools.partial(is_stopped, trio, 1, parent.pid), "its ghost has stopped")
    check_stays(trio, parent.pid, 1)
    for node in (1, 2):
        wait_until(functools.partial(is_stopped, trio, node, parent.pid), f"it is so on node{node}")
    trio.run(1, "kill", "-CONT", parent.pid)
    assert parent.ask("poll") == ["none"]


USER = """\
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
os.setgroups([33, 34]); os.setgid(65534); os.setuid(65534)
"""

WHOSE = "cd /run/ssi/proc/$0 && grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs):' status && cat limits"


@pytest.mark.parametrize("parent", ["", USER], ids=["root", "nobody"], indirect=True)
def test_it_is_whose_it_was(trio: Cluster, parent: Parent) -> None:
    move(trio, parent.pid, 2)
    ghost = trio.run(1, "sh", "-c", WHOSE, parent.pid)
    check_stays(trio, parent.pid, 1)
    assert trio.run(1, "sh", "-c", WHOSE, parent.pid) == ghost
    move(trio, parent.pid, 1)
    assert parent.ask("poll") == ["none"]


PAIR = """
if child := fork():
    move(2, child)
    print(child, flush=True)
    sys.stdin.readline()
    assert attempt(socket.send_fds, mine, [b"x"], [0]) == "EPERM"
    mine.sendall(b"x" * 70000)
    move(1, child)
    mine.close()
    print(end(child))
else:
    count = 0
    while data := other.recv(1000):
        count += len(data)
    os._exit(count // 10000)
"""


@pytest.mark.parametrize("missing", IMAGES)
def test_a_socket_is_one(trio: Cluster, missing: str) -> None:
    words = ["ssi", "exec", "-c", str(trio.number), "1", "--", "python3", "-c", HEAD + PAIR]
    words += ["STREAM"]
    process = trio.ssi.person.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    check_stays(trio, process.stdout.readline().decode().strip(), 1, missing)
    said, _ = process.communicate(b"go\n", timeout=60)
    assert said == b"7\n"


def test_criu_is_killed(trio: Cluster, parent: Parent) -> None:
    child = parent.fork()
    move(trio, parent.pid, 2)
    move(trio, child, 3)
    for pid, node, source in ((child, 2, 3), (parent.pid, 1, 2)):
        set_fault(trio, node, "arrival-restoring criu")
        assert trio.try_run(3, "migrate", str(node), pid).status == 1
        assert trio.run(3, "where_pid", pid) == f"{source}\n"
        assert parent.ask("poll") == ["0", "0"]


@pytest.mark.parametrize("node", [1, 2])
def test_a_daemon_is_killed_then(trio: Cluster, node: int) -> None:
    trio.run(1, "sh", "-c", "cat >/root/pairs.py", given=PAIRS.read_bytes())
    pair = Pair(trio, "pairs.py")
    assert pair.move("child", 2)
    check_stays(trio, pair.pids["child"], 1)
    kill_daemon(trio, node)
    pair.wait_moved("child", 1, by=3)
    came = pair.stop(3)
    for name in pair.pids:
        assert came[name, "sent"] == came[name, "arrived"]
