"""Memory that processes of several nodes share, and semaphores, mutexes and conditions in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

PROGRAM = (TOP / "tests/programs/semaphores.py").read_text()
ROUNDS = "40"

Process = subprocess.Popen[bytes]


def run(cluster: Cluster, node: int, *words: str) -> Process:
    """Start PROGRAM."""
    return cluster.start_python(node, PROGRAM, *words)


def heard(process: Process) -> str:
    """Return the next line that it says."""
    assert process.stdout
    return process.stdout.readline().decode().strip()


@pytest.fixture(autouse=True)
def _nothing_left(trio: Cluster) -> Iterator[None]:
    yield
    trio.run(1, "sh", "-c", "rm -f /dev/shm/*")


def test_one_folder(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "echo words >/dev/shm/one")
    assert trio.run(3, "cat", "/dev/shm/one") == "words\n"
    trio.run(2, "rm", "/dev/shm/one")
    assert trio.try_run(1, "cat", "/dev/shm/one").status == 1


def test_python_shares_memory(trio: Cluster) -> None:
    make = (
        "from multiprocessing import shared_memory, resource_tracker as t;"
        "m = shared_memory.SharedMemory('block', create=True, size=9000); m.buf[8999] = 7;"
        "t.unregister(m._name, 'shared_memory'); m.close()"
    )
    trio.python(1, make)
    read = (
        "from multiprocessing import shared_memory;"
        "m = shared_memory.SharedMemory('block'); print(m.buf[8999]); m.unlink(); m.close()"
    )
    assert trio.python(3, read) == "7\n"


def test_players_on_two_nodes(trio: Cluster) -> None:
    players = [run(trio, node, "play", "ball", who, ROUNDS) for node, who in ((1, "0"), (3, "1"))]
    assert [heard(player).split()[0] for player in players] == ["played"] * 2


def test_no_addition_is_lost(trio: Cluster) -> None:
    trio.run(1, "truncate", "-s", "4096", "/dev/shm/sum")
    counters = [run(trio, node, "count", "sum", "25") for node in (1, 2, 2, 3)]
    assert [heard(counter) for counter in counters] == ["counted"] * 4
    read = "import struct; print(struct.unpack('q', open('/dev/shm/sum', 'rb').read(8))[0])"
    assert trio.python(2, read) == "100\n"


def test_a_condition_wakes_all(trio: Cluster) -> None:
    # Any file of the root will do.
    trio.python(2, PROGRAM, "prepare", "/root/condition")
    listeners = [run(trio, node, "listen", "/root/condition") for node in (1, 1, 2, 3)]
    assert [heard(one) for one in listeners] == ["waits"] * 4
    trio.python(3, PROGRAM, "shout", "/root/condition", "5")
    assert [heard(one) for one in listeners] == ["heard 5"] * 4
    trio.run(1, "rm", "/root/condition")


def test_who_waits_can_be_interrupted(trio: Cluster) -> None:
    waiter = run(trio, 2, "wait", "never")
    assert heard(waiter) == "waits"
    trio.run(1, "pkill", "-INT", "-f", "^python3 -c.* wait never")
    assert heard(waiter) in {"interrupted", "EINTR"}


def test_who_waits_moves(trio: Cluster) -> None:
    waiter = run(trio, 1, "wait", "moved")
    assert heard(waiter) == "waits"
    pid = trio.run(1, "pgrep", "-f", "^python3 -c.* wait moved").split()[0]
    trio.run(1, "migrate", "2", pid)
    trio.python(3, PROGRAM, "post", "moved")
    assert heard(waiter) == "woken"


def test_daemons_are_killed_meanwhile(trio: Cluster) -> None:
    # What is run by way of a daemon hears that it is gone.
    script = 'setsid python3 -c "$@" >/root/played 2>&1 </dev/null &'
    trio.run(
        1,
        "sh",
        "-c",
        script.replace("/played", "/played.0"),
        "sh",
        PROGRAM,
        "play",
        "ball",
        "0",
        "150",
    )
    trio.run(
        2,
        "sh",
        "-c",
        script.replace("/played", "/played.1"),
        "sh",
        PROGRAM,
        "play",
        "ball",
        "1",
        "150",
    )
    for node in (1, 2, 3, 2, 1):
        kill_daemon(trio, node)
    said = ("sh", "-c", "grep -l played /root/played.*")
    wait_until(lambda: len(trio.try_run(3, *said).out.splitlines()) == 2, "both have played")
    trio.run(1, "sh", "-c", "rm /root/played.*")


def test_a_node_dies(trio: Cluster) -> None:
    waiters = [run(trio, node, "wait", "left") for node in (1, 3)]
    assert [heard(waiter) for waiter in waiters] == ["waits"] * 2
    trio.crash(3)
    trio.python(2, PROGRAM, "post", "left")
    assert heard(waiters[0]) == "woken"
    waiters[1].kill()


def test_it_lives_as_long_as_the_cluster(ssi: Ssi) -> None:
    with started(ssi, 2) as cluster:
        cluster.run(2, "sh", "-c", "echo kept >/dev/shm/kept")
        cluster.crash(1)
        cluster.add(1)
        assert cluster.run(1, "cat", "/dev/shm/kept") == "kept\n"
        ssi("stop", str(cluster.number))
        ssi("start", "2", "-c", str(cluster.number), *ssi.images.options)
        wait_until(lambda: cluster.sees_all(1, 2), "both are up")
        assert cluster.run(2, "ls", "/dev/shm") == ""
        wait_until(
            lambda: cluster.run(2, "sh", "-c", "ls -d /cluster/shm.* | wc -l") == "1\n",
            "the old one is removed",
        )
