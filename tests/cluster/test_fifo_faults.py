"""FIFOs while nodes and daemons that take part die: the rest goes on as when processes end."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import random
import select
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Actor, Refused, acting, connect

_numbers = itertools.count(1)
SEED = 6


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture
def trio(own: Cluster) -> Iterator[Cluster]:
    """They, all up."""
    own.restore(1, 2, 3)
    yield own
    own.restore(1, 2, 3)


@pytest.fixture
def fifo(trio: Cluster) -> str:
    """A new FIFO."""
    path = f"/root/faulty{next(_numbers)}"
    trio.run(1, "mkfifo", path)
    return path


def is_broken(actor: Actor, writing: int) -> bool:
    """Tell whether nobody reads."""
    with pytest.raises(Refused) as caught:
        actor.do("write", writing, "to nobody")
    return caught.value.number == errno.EPIPE


def home_at(actor: Actor, path: str) -> int:
    """Have the pipe on the node of `actor`; return a descriptor of both sides, which keeps it."""
    return int(actor.do("open", path, os.O_RDWR))


@pytest.mark.parametrize("home", ["reader", "writer"])
def test_the_writers_node_dies(trio: Cluster, fifo: str, home: str) -> None:
    with acting(trio, 1, 3) as [reader, writer]:
        first = reader.read(fifo) if home == "reader" else writer.write(fifo)
        first.wait_blocked()
        second = writer.write(fifo) if home == "reader" else reader.read(fifo)
        reading = (first if home == "reader" else second).result()
        writing = (second if home == "reader" else first).result()
        writer.do("write", writing, "before")
        assert reader.do("read", reading, 100) == "before"
        waiting = reader.begin("read", reading, 100)
        waiting.wait_blocked()
        polling = reader.begin("poll", reading, select.POLLIN, 600000)
        trio.crash(3)
        assert waiting.result() == ""
        assert polling.result() & select.POLLHUP
        # And from others it is read as ever.
        with acting(trio, 2) as [other]:
            again = other.write(fifo).result()
            other.do("write", again, "after")
            assert reader.do("read", reading, 100) == "after"


@pytest.mark.parametrize("home", ["reader", "writer"])
def test_the_readers_node_dies(trio: Cluster, fifo: str, home: str) -> None:
    with acting(trio, 1, 3) as [writer, reader]:
        first = reader.read(fifo) if home == "reader" else writer.write(fifo)
        first.wait_blocked()
        second = writer.write(fifo) if home == "reader" else reader.read(fifo)
        (first if home == "reader" else second).result()
        writing = (second if home == "reader" else first).result()
        writer.do("fill", writing)
        blocked = writer.begin("write", writing, "x" * 4096)
        blocked.wait_blocked()
        trio.crash(3)
        with pytest.raises(Refused) as caught:
            blocked.result()
        assert caught.value.number == errno.EPIPE
        assert is_broken(writer, writing)


def test_a_third_node_has_the_pipe_and_dies(trio: Cluster, fifo: str) -> None:
    with acting(trio, 1, 2, 3) as [reader, writer, home]:
        home_at(home, fifo)
        reading, writing = connect(fifo, reader, writer)
        writer.do("write", writing, "before")
        assert reader.do("read", reading, 100) == "before"
        waiting = reader.begin("read", reading, 100)
        waiting.wait_blocked()
        trio.crash(3)
        writer.do("write", writing, "after")
        assert waiting.result() == "after"
        for number in range(20):
            writer.do("write", writing, f"{number:03}")
            assert reader.do("read", reading, 100) == f"{number:03}"
        waiting = reader.begin("read", reading, 100)
        waiting.wait_blocked()
        writer.do("close", writing)
        assert waiting.result() == ""


def test_an_open_waits_on_when_the_pipe_dies(trio: Cluster, fifo: str) -> None:
    with acting(trio, 1, 2, 3) as [one, two, home]:
        home.read(fifo).wait_blocked()
        waiting = one.read(fifo)
        waiting.wait_blocked()
        trio.crash(3)
        waiting.wait_blocked()
        writing = two.write(fifo).result()
        reading = waiting.result()
        two.do("write", writing, "hello")
        assert one.do("read", reading, 100) == "hello"


def test_a_reader_dies_with_its_node(trio: Cluster, fifo: str) -> None:
    """It waits for data, and takes none along."""
    with acting(trio, 1, 2, 3) as [writer, stayer, leaver]:
        leaving, writing = connect(fifo, leaver, writer)
        staying = stayer.read(fifo).result()
        leaver.begin("read", leaving, 100).wait_blocked()
        trio.crash(3)
        wait_until(lambda: trio.sees_all(1, 2), "node 3 is gone")
        for number in range(20):
            writer.do("write", writing, f"{number:03}")
            assert stayer.do("read", staying, 100) == f"{number:03}"
        writer.do("close", writing)
        assert stayer.do("read", staying, 100) == ""


@pytest.mark.parametrize("victims", [(1,), (2,), (1, 2)], ids=str)
def test_daemons_are_killed_in_every_phase(
    trio: Cluster, fifo: str, victims: tuple[int, ...]
) -> None:
    """The pipe is on node 1; what node 2 does waits for the next daemons, and is done once."""

    def kill() -> None:
        for node in victims:
            kill_daemon(trio, node)

    with acting(trio, 1, 2, via=3) as [home, other]:
        opening = home.read(fifo)
        opening.wait_blocked()
        blocked = other.read(fifo)
        blocked.wait_blocked()
        kill()
        writing = home.write(fifo).result()
        first, second = opening.result(), blocked.result()
        home.do("close", first)
        waiting = other.begin("read", second, 100)
        waiting.wait_blocked()
        kill()
        home.do("write", writing, "read")
        assert waiting.result() == "read"
        polling = other.begin("poll", second, select.POLLIN, 600000)
        polling.wait_blocked()
        kill()
        home.do("write", writing, "polled")
        assert polling.result() == select.POLLIN
        kill()
        assert other.do("read", second, 100) == "polled"
        there = other.write(fifo).result()
        home.do("close", writing)
        reader = home.read(fifo).result()
        other.do("close", second)
        filled = other.do("fill", there)
        full = other.begin("write", there, "y" * 8192)
        full.wait_blocked()
        kill()
        rest = home.begin("read_all", reader)
        assert full.result() == 8192
        closing = other.begin("close", there)
        kill()
        assert closing.result() is None
        assert rest.result() == "x" * filled + "y" * 8192
        home.do("close", reader)
    # Nothing is left behind that would keep the pipe on node 1.
    wait_until(lambda: not ends_of(trio, 1), "no ends are left")


def ends_of(cluster: Cluster, node: int) -> str:
    """Return the FIFOs that the keeper of `node` has open."""
    script = 'ls -l /proc/$(pidof fifokeeper)/fd | grep "/root/f" || true'
    words = ["exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script]
    return cluster.ssi(*words)


KILLS = 6

# Until it has been enough, and says how much it was.
STREAM = """
import os, sys
fd, number = os.open(sys.argv[1], os.O_WRONLY), 0
while not os.path.exists(sys.argv[1] + ".enough"):
    os.write(fd, f"{number:07}\\n".encode() * (1 + number % 100))
    number += 1
with open(sys.argv[1] + ".count", "w") as file:
    file.write(str(number))
"""


def answers(cluster: Cluster, node: int) -> bool:
    """Tell whether the daemon of `node` answers."""
    return cluster.try_run(node, "cluster").out == "1-3\n"


def test_a_stream_while_daemons_are_killed(trio: Cluster, fifo: str) -> None:
    """Every byte comes once and in order, whoever is killed."""
    chance = random.Random(SEED)
    # No daemon's children: those go with it.
    script = '(setsid python3 -c "$0" $1) >/dev/null 2>&1 </dev/null &'
    trio.run(2, "sh", "-c", script, STREAM, fifo)
    script = "(setsid sh -c 'cat $0 >$0.got; touch $0.done' $0) >/dev/null 2>&1 </dev/null &"
    trio.run(3, "sh", "-c", script, fifo)

    for _ in range(KILLS):
        so_far = int(trio.run(1, "sh", "-c", "wc -c <$0.got || echo 0", fifo).split()[-1])
        more = functools.partial(trio.run, 1, "find", f"{fifo}.got", "-size", f"+{so_far}c")
        wait_until(more, "it goes on")
        kill_daemon(trio, chance.choice((2, 3)))
        for node in (2, 3):
            wait_until(functools.partial(answers, trio, node), f"node {node} answers")
    trio.run(1, "touch", f"{fifo}.enough")
    wait_until(lambda: not trio.try_run(1, "test", "-e", f"{fifo}.done").status, "it has ended")
    count = int(trio.run(1, "cat", f"{fifo}.count"))
    lines = trio.run(1, "cat", f"{fifo}.got").splitlines()
    wanted = [f"{n:07}" for n in range(count) for _ in range(1 + n % 100)]
    assert len(lines) == len(wanted)
    assert lines == wanted
