"""FIFOs on the root connect processes on all nodes as a FIFO does on one machine."""

from __future__ import annotations

import errno
import itertools
import os
import select
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.clusters import Cluster, Ssi, started
from support.fifos import Actor, Refused, acting, connect
from support.terminal import PASSWORD, attached

NODES = (1, 2, 3)
PAIRS = [(1, 1), (1, 2), (2, 1)]
"""Where the reader is, and the writer: on one node it is the kernel's own affair."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture
def actors(trio: Cluster) -> Iterator[dict[int, Actor]]:
    """A process on each node; 0 is another one on node 1."""
    with acting(trio, 1, *NODES) as found:
        yield dict(zip((0, *NODES), found, strict=True))


@pytest.fixture
def fifo(trio: Cluster) -> Iterator[str]:
    """A new FIFO."""
    path = f"/root/fifo{next(_numbers)}"
    trio.run(3, "mkfifo", path)
    yield path
    trio.run(3, "rm", "-f", path)


@pytest.fixture(params=PAIRS, ids=lambda pair: f"from{pair[1]}to{pair[0]}")
def pair(request: pytest.FixtureRequest, actors: dict[int, Actor]) -> tuple[Actor, Actor]:
    """Reader and writer."""
    reader, writer = request.param
    return actors[reader], actors[0 if reader == writer else writer]


def refuses(number: int, actor: Actor, *words: object) -> bool:
    """Tell whether a call fails with this error."""
    with pytest.raises(Refused) as caught:
        actor.do(*words)  # type: ignore[arg-type]
    return caught.value.number == number


def test_the_demo_of_2002(trio: Cluster) -> None:
    with attached(trio, 1) as one, attached(trio, 2) as two:
        one.log_in()
        two.log_in()
        one.run("mkfifo /fifo")
        one.type("echo something >/fifo\r")
        assert two.run("cat /fifo") == "something\n"
        one.expect(r"root@node1:~# ")
    trio.run(3, "rm", "/fifo")


def test_open_waits_for_the_other_side(fifo: str, pair: tuple[Actor, Actor]) -> None:
    opens = {pair[0]: pair[0].read, pair[1]: pair[1].write}
    for first, second in (pair, pair[::-1]):
        waiting = opens[first](fifo)
        waiting.wait_blocked()
        other = opens[second](fifo)
        first.do("close", waiting.result())
        second.do("close", other.result())


def test_open_without_waiting(fifo: str, pair: tuple[Actor, Actor]) -> None:
    reader, writer = pair
    assert refuses(errno.ENXIO, writer, "open", fifo, os.O_WRONLY | os.O_NONBLOCK)
    reading = reader.read(fifo, os.O_NONBLOCK).result()
    assert reader.do("read", reading, 10) == ""
    assert reader.do("poll", reading, select.POLLIN, 0) == 0
    writing = writer.write(fifo, os.O_NONBLOCK).result()
    assert refuses(errno.EAGAIN, reader, "read", reading, 10)
    assert writer.do("write", writing, "words") == 5
    assert reader.do("read", reading, 10) == "words"
    writer.do("close", writing)
    assert reader.do("read", reading, 10) == ""
    reader.do("close", reading)
    assert refuses(errno.ENXIO, writer, "open", fifo, os.O_WRONLY | os.O_NONBLOCK)


def test_an_open_that_waits_is_interrupted(trio: Cluster, fifo: str) -> None:
    script = 'timeout 1 sh -c "cat $0"; echo $?'
    with acting(trio, 1) as [blocked]:
        waiting = blocked.write(fifo)
        waiting.wait_blocked()
        blocked.kill()
    assert trio.run(2, "sh", "-c", script, fifo) == "124\n"
    assert trio.run(1, "sh", "-c", script, fifo) == "124\n"


def test_what_it_looks_like(fifo: str, pair: tuple[Actor, Actor]) -> None:
    reader, writer = pair
    reading, writing = connect(fifo, reader, writer)
    for actor, end in ((reader, reading), (writer, writing)):
        assert stat.S_ISFIFO(actor.do("mode", end))
        assert actor.do("where", end) == fifo
    writer.do("write", writing, "1234567")
    assert reader.do("pending", reading) == 7
    reader.do("close", reading)
    writer.do("close", writing)


def test_end_of_file_comes_with_the_last_writer(fifo: str, actors: dict[int, Actor]) -> None:
    reading, first = connect(fifo, actors[2], actors[1])
    second = actors[3].write(fifo).result()
    third = actors[2].write(fifo).result()
    actors[1].do("write", first, "one")
    actors[1].do("close", first)
    assert actors[2].do("read", reading, 10) == "one"
    last = actors[2].begin("read", reading, 10)
    last.wait_blocked()
    actors[2].do("close", third)
    last.wait_blocked()
    actors[3].do("close", second)
    assert last.result() == ""
    again = actors[3].write(fifo).result()
    actors[3].do("write", again, "more")
    assert actors[2].do("read", reading, 10) == "more"
    actors[3].do("close", again)
    actors[2].do("close", reading)


def test_a_broken_pipe_comes_with_the_last_reader(fifo: str, actors: dict[int, Actor]) -> None:
    first, writing = connect(fifo, actors[1], actors[2])
    second = actors[3].read(fifo).result()
    actors[1].do("close", first)
    assert actors[2].do("write", writing, "still") == 5
    filled = actors[2].do("fill", writing)
    assert filled >= 4096
    blocked = actors[2].begin("write", writing, "x" * 4096)
    blocked.wait_blocked()
    actors[3].do("close", second)
    with pytest.raises(Refused) as caught:
        blocked.result()
    assert caught.value.number == errno.EPIPE
    assert refuses(errno.EPIPE, actors[2], "write", writing, "none")
    actors[2].do("close", writing)


@pytest.mark.parametrize(("reader", "writer"), PAIRS)
def test_sigpipe(trio: Cluster, fifo: str, reader: int, writer: int) -> None:
    script = "(yes >$0; echo $? >$0.status) & "
    trio.run(writer, "sh", "-c", f"({script}) </dev/null >/dev/null 2>&1", fifo)
    assert trio.run(reader, "sh", "-c", "head -c 100000 $0 | wc -c", fifo) == "100000\n"
    look = 'until [ -s "$0.status" ]; do sleep 0.1; done; cat $0.status; rm $0.status'
    assert trio.run(reader, "timeout", "60", "sh", "-c", look, fifo) == "141\n"


def test_poll(fifo: str, pair: tuple[Actor, Actor]) -> None:
    reader, writer = pair
    reading, writing = connect(fifo, reader, writer)
    for how in ("poll", "epoll"):
        assert reader.do(how, reading, select.POLLIN, 0) == 0
        assert writer.do(how, writing, select.POLLOUT, 0) == select.POLLOUT
        waiting = reader.begin(how, reading, select.POLLIN, 60000)
        writer.do("write", writing, "x")
        assert waiting.result() == select.POLLIN
        assert reader.do("read", reading, 10) == "x"
        filled = writer.do("fill", writing)
        assert writer.do(how, writing, select.POLLOUT, 0) == 0
        room = writer.begin(how, writing, select.POLLOUT, 60000)
        assert len(reader.do("read", reading, 65536)) <= filled
        assert room.result() == select.POLLOUT
        while reader.do(how, reading, select.POLLIN, 0):
            reader.do("read", reading, 65536)
    waiting = reader.begin("poll", reading, select.POLLIN, 60000)
    writer.do("close", writing)
    assert waiting.result() & select.POLLHUP
    writing = writer.write(fifo).result()
    broken = writer.begin("poll", writing, 0, 60000)
    reader.do("close", reading)
    assert broken.result() & select.POLLERR
    writer.do("close", writing)


# Each line is as long as may be written at once, and says who wrote it.
WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for number in range(int(sys.argv[3])):
    line = f"{sys.argv[2]} {number} ".encode()
    line = line.ljust(100 + number * 997 % 3900, b".") + b"\\n"
    assert os.write(fd, line) == len(line)
"""

LINES = 60


def test_many_writers_write_whole_lines(trio: Cluster, fifo: str, actors: dict[int, Actor]) -> None:
    names = [f"{node}-{number}" for node in NODES for number in range(2)]
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(trio.run, 2, "cat", fifo)
        # Some would have ended before others begin.
        last = actors[3].write(fifo).result()
        writing = [
            pool.submit(trio.python, int(name[0]), WRITE, fifo, name, str(LINES)) for name in names
        ]
        for writer in writing:
            writer.result()
        actors[3].do("close", last)
        lines = reading.result().splitlines()
    seen: dict[str, list[int]] = {name: [] for name in names}
    for line in lines:
        name, number, dots = line.split(" ")
        assert set(dots) <= {"."}
        assert len(line) >= 99
        seen[name].append(int(number))
    assert seen == {name: list(range(LINES)) for name in names}


def test_readers_come_and_go(fifo: str, actors: dict[int, Actor]) -> None:
    """What one reader leaves in the pipe another finds, once and in order."""
    reading, writing = connect(fifo, actors[2], actors[1])
    got: Counter[str] = Counter()
    for number in range(30):
        actors[1].do("write", writing, f"{number:04}")
    for number in range(30):
        node = (2, 3, 1)[number % 3]
        mine = actors[node].read(fifo).result()
        assert actors[node].do("read", mine, 4) == f"{number:04}"
        actors[node].do("close", mine)
        got[f"{number:04}"] += 1
    waiting = actors[2].begin("read", reading, 10)
    actors[1].do("close", writing)
    assert waiting.result() == ""
    actors[2].do("close", reading)
    assert len(got) == 30


def test_a_reader_that_is_killed_takes_nothing_along(trio: Cluster, fifo: str) -> None:
    with acting(trio, 1, 2, 3) as [writer, leaver, stayer]:
        leaving, writing = connect(fifo, leaver, writer)
        staying = stayer.read(fifo).result()
        blocked = leaver.begin("read", leaving, 10)
        blocked.wait_blocked()
        leaver.kill()
        leaver.close()
        writer.do("write", writing, "for who stays")
        assert stayer.do("read", staying, 100) == "for who stays"
        writer.do("close", writing)
        assert stayer.do("read", staying, 100) == ""


def test_a_full_pipe_holds_the_writer(fifo: str, pair: tuple[Actor, Actor]) -> None:
    reader, writer = pair
    reading, writing = connect(fifo, reader, writer)
    filled = writer.do("fill", writing)
    assert filled == 65536
    assert reader.do("pending", reading) == filled
    blocked = writer.begin("write", writing, "y" * 100000)
    blocked.wait_blocked()
    rest = reader.begin("read_all", reading)
    assert blocked.result() == 100000
    writer.do("close", writing)
    assert rest.result() == "x" * filled + "y" * 100000
    reader.do("close", reading)


@pytest.mark.parametrize("make", ["mkfifo $0", "mknod $0 p", "mkdir -p /root/a/b; mkfifo $0"])
def test_however_it_was_made(trio: Cluster, actors: dict[int, Actor], make: str) -> None:
    path = "/root/a/b/fifo" if "mkdir" in make else "/root/made"
    trio.run(1, "sh", "-c", make, path)
    reading, writing = connect(path, actors[2], actors[3])
    trio.run(1, "mv", path, f"{path}.new")
    actors[3].do("write", writing, "renamed")
    assert actors[2].do("read", reading, 100) == "renamed"
    other = actors[1].write(f"{path}.new").result()
    trio.run(1, "rm", f"{path}.new")
    actors[1].do("write", other, "unlinked")
    assert actors[2].do("read", reading, 100) == "unlinked"
    # A new one of that name is another FIFO.
    trio.run(3, "mkfifo", path)
    assert refuses(errno.ENXIO, actors[3], "open", path, os.O_WRONLY | os.O_NONBLOCK)
    trio.run(2, "rm", path)
    actors[3].do("close", writing)
    actors[1].do("close", other)
    assert actors[2].do("read", reading, 100) == ""
    actors[2].do("close", reading)


def test_one_descriptor_for_both(fifo: str, actors: dict[int, Actor]) -> None:
    both = actors[1].begin("open", fifo, os.O_RDWR).result()
    other = actors[2].begin("open", fifo, os.O_RDWR).result()
    actors[2].do("write", other, "there")
    assert actors[1].do("read", both, 10) == "there"
    actors[1].do("write", both, "back")
    assert actors[2].do("read", other, 10) == "back"
    actors[1].do("close", both)
    actors[2].do("write", other, "alone")
    assert actors[2].do("read", other, 10) == "alone"
    actors[2].do("close", other)


def test_who_may_not_open_it_may_not(trio: Cluster, fifo: str) -> None:
    trio.run(1, "chmod", "600", fifo)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    for node in NODES:
        result = trio.try_run(node, *as_nobody, "sh", "-c", "exec 3<>$0", fifo)
        assert "Permission denied" in result.err
    trio.run(1, "chmod", "666", fifo)
    trio.run(1, "chmod", "711", "/root")
    trio.run(1, "sh", "-c", "(echo to nobody >$0 &) >/dev/null 2>&1 </dev/null", fifo)
    assert trio.run(2, *as_nobody, "cat", fifo) == "to nobody\n"
    trio.run(1, "chmod", "700", "/root")


def test_scripts(trio: Cluster, fifo: str) -> None:
    """Lines read one by one, by a shell each, as scripts do it."""
    trio.run(1, "sh", "-c", "(seq 5 >$0 &) >/dev/null 2>&1 </dev/null", fifo)
    script = 'exec 3<$0; for i in 1 2 3 4 5; do read x <&3; echo "got $x"; done; cat <&3'
    assert trio.run(3, "sh", "-c", script, fifo) == "".join(f"got {n}\n" for n in range(1, 6))
    trio.run(2, "sh", "-c", "(tar -C /usr/share/doc -cf $0 . &) >/dev/null 2>&1 </dev/null", fifo)
    there = trio.run(1, "sh", "-c", "tar -tf - <$0 | sort | md5sum", fifo)
    here = trio.run(2, "sh", "-c", "tar -C /usr/share/doc -cf - . | tar -tf - | sort | md5sum")
    assert there == here
