"""Pipes, FIFOs and terminals that are passed on to other nodes by SCM_RIGHTS."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import select
import signal
import stat
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Actor, Refused, acting

_numbers = itertools.count(1)
MANY = 12
PASSED = 60
KEPT = os.O_ACCMODE | os.O_NONBLOCK


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture
def trio(own: Cluster) -> Cluster:
    """They, all up."""
    own.restore(1, 2, 3)
    return own


def join(server: Actor, client: Actor, kind: str = "stream") -> tuple[int, int]:
    """Return the descriptors of both ends of a connection."""
    path = f"/root/streams{next(_numbers)}"
    listening = server.do("bind", path, kind)
    there = client.do("connect", path, kind)
    here = server.do("accept", listening)
    server.do("close", listening)
    return here, there


def refuses(number: int, actor: Actor, *words: object) -> bool:
    """Tell whether a call fails with this error."""
    with pytest.raises(Refused) as caught:
        actor.do(*words)  # type: ignore[arg-type]
    return caught.value.number == number


def pass_on(giver: Actor, by: int, taker: Actor, to: int, *fds: int) -> list[int]:
    """Give descriptors away; return what they are there."""
    giver.do("give_away", by, "x", fds)
    _, taken, _ = taker.do("receive", to, 100, len(fds))
    assert len(taken) == len(fds)
    return list(taken)


def holders(cluster: Cluster, node: int) -> int:
    """Return how many descriptors a node keeps open for others."""
    script = "ps -o comm | grep -c ssi-device; true"
    words = ["exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script]
    return int(cluster.ssi(*words))


def has_none(cluster: Cluster, node: int) -> bool:
    """Tell whether a node keeps nothing open for others."""
    return holders(cluster, node) == 0


def none_left(cluster: Cluster, *nodes: int) -> None:
    """Wait until no node keeps anything open for others."""
    for node in nodes or (1, 2, 3):
        wait_until(functools.partial(has_none, cluster, node), f"node{node} has no holder")


def test_streams(trio: Cluster) -> None:
    with acting(trio, 1, 2) as [server, client]:
        here, there = join(server, client)
        for check in (check_a_read_end, check_a_full_pipe, check_a_fifo, check_several):
            check(server, here, client, there)
        for back in (check_a_write_end, check_a_terminal, check_several, check_what_is_refused):
            back(client, there, server, here)
        none_left(trio)


def check_a_read_end(giver: Actor, by: int, taker: Actor, to: int) -> None:
    reading, writing = giver.do("pipe")
    giver.do("write", writing, "before")
    flags = giver.do("flags", reading) & KEPT
    [come] = pass_on(giver, by, taker, to, reading)
    assert stat.S_ISFIFO(taker.do("mode", come))
    assert taker.do("flags", come) & KEPT == flags
    assert taker.do("pending", come) == 6
    assert taker.do("read", come, 100) == "before"
    assert taker.do("poll", come, select.POLLIN, 0) == 0
    for wait in ("poll", "epoll"):
        polling = taker.begin(wait, come, select.POLLIN, 60000)
        giver.do("write", writing, "now")
        assert polling.result() == select.POLLIN
        assert taker.do("read", come, 100) == "now"
    waiting = taker.begin("read", come, 100)
    waiting.wait_blocked()
    giver.do("write", writing, "waited for")
    assert waiting.result() == "waited for"
    taker.do("blocking", come, False)
    assert refuses(errno.EAGAIN, taker, "read", come, 100)
    taker.do("blocking", come, True)
    words = taker.cluster.run(taker.node, "cat", f"/proc/{taker.pid}/cantmove")
    assert f"descriptor {come} is the pipe /devfs/.stream{giver.node}-" in words
    # Children have it as well; who is the last one says when it is closed.
    also = taker.do("dup", come)
    taker.do("close", come)
    giver.do("write", writing, "inherited")
    assert taker.do("run", ["head", "-c", "9"], also) == [0, "inherited"]
    giver.do("write", writing, "elsewhere")
    assert taker.do("run", ["onnode", "3", "head", "-c", "9"], also) == [0, "elsewhere"]
    waiting = taker.begin("read", also, 100)
    waiting.wait_blocked()
    giver.do("close", writing)
    assert waiting.result() == ""
    assert taker.do("poll", also, select.POLLIN, 0) == select.POLLHUP
    taker.do("close", also)


def check_a_write_end(giver: Actor, by: int, taker: Actor, to: int) -> None:
    reading, writing = giver.do("pipe")
    [come] = pass_on(giver, by, taker, to, writing)
    text = "0123456789" * 20000
    all_of_it = giver.begin("read_all", reading)
    assert taker.do("write", come, text) == len(text)
    assert taker.do("run", ["sh", "-c", "echo of a child >&0"], come) == [0, ""]
    taker.do("close", come)
    assert all_of_it.result() == f"{text}of a child\n"
    giver.do("close", reading)


def check_a_full_pipe(giver: Actor, by: int, taker: Actor, to: int) -> None:
    reading, writing = giver.do("pipe")
    giver.do("send_fds", by, "x", [writing])
    _, [come], _ = taker.do("receive", to, 100, 8)
    filled = taker.do("fill", come)
    assert filled == 65536
    # That one does not wait is not the giver's affair.
    waiting = giver.begin("write", writing, "y")
    waiting.wait_blocked()
    blocked = taker.begin("write", come, "z" * 5000)
    blocked.wait_blocked()
    assert taker.do("poll", come, select.POLLOUT, 0) == 0
    got = ""
    while len(got) < filled + 5001:
        got += giver.do("read", reading, 100000)
    assert (waiting.result(), blocked.result()) == (1, 5000)
    assert sorted(got) == sorted("x" * filled + "y" + "z" * 5000)
    taker.do("fill", come)
    blocked = taker.begin("write", come, "z" * 5000)
    blocked.wait_blocked()
    giver.do("close", reading)
    assert refuses(errno.EPIPE, giver, "write", writing, "x")
    with pytest.raises(Refused) as caught:
        blocked.result()
    assert caught.value.number == errno.EPIPE
    assert taker.do("run", ["sh", "-c", "echo to nobody >&0"], come)[0] == -signal.SIGPIPE
    taker.do("close", come)
    giver.do("close", writing)


def check_a_fifo(giver: Actor, by: int, taker: Actor, to: int) -> None:
    path = f"/root/passed{next(_numbers)}"
    giver.do("mkfifo", path)
    both = giver.do("open", path, os.O_RDWR)
    reading = giver.do("open", path, os.O_RDONLY)
    writing = giver.do("open", path, os.O_WRONLY)
    giver.do("close", both)
    come, far = pass_on(giver, by, taker, to, reading, writing)
    taker.do("write", far, "round")
    assert taker.do("read", come, 100) == "round"
    waiting = taker.begin("read", come, 100)
    waiting.wait_blocked()
    taker.do("close", far)
    assert waiting.result() == ""
    # The one that another node has is passed on as well.
    again = taker.begin("open", path, os.O_WRONLY)
    writing = again.result()
    [back] = pass_on(taker, to, giver, by, writing)
    giver.do("write", back, "from afar")
    assert taker.do("read", come, 100) == "from afar"
    giver.do("close", back)
    assert taker.do("read_all", come) == ""
    taker.do("close", come)
    giver.do("unlink", path)


def check_a_terminal(giver: Actor, by: int, taker: Actor, to: int) -> None:
    master, slave, _ = giver.do("openpty")
    kept = giver.do("dup", master)
    far_master, far_slave = pass_on(giver, by, taker, to, master, slave)
    assert taker.do("isatty", far_slave)
    assert taker.do("isatty", far_master)
    giver.do("write", kept, "typed\n")
    assert taker.do("read", far_slave, 100) == "typed\n"
    assert read_line(giver, kept) == "typed\r\n"
    waiting = taker.begin("read", far_master, 100)
    waiting.wait_blocked()
    taker.do("write", far_slave, "shown\n")
    assert read_line(taker, far_master, waiting.result()) == "shown\r\n"
    taker.do("write", far_master, "by the master\n")
    assert taker.do("read", far_slave, 100) == "by the master\n"
    giver.do("close", kept)
    taker.do("close", far_master)
    assert taker.do("read", far_slave, 100) == ""
    taker.do("close", far_slave)


def read_line(actor: Actor, fd: int, begun: str = "") -> str:
    """Return what a terminal's master says up to the end of a line; it may come in pieces."""
    while not begun.endswith("\n"):
        begun += actor.do("read", fd, 100)
    return begun


def check_several(giver: Actor, by: int, taker: Actor, to: int) -> None:
    """Files and streams in one message keep their order."""
    file = giver.do("open", "/etc/passwd", os.O_RDONLY)
    pipes = [giver.do("pipe") for _ in range(MANY)]
    given = [fd for reading, _ in pipes for fd in (reading, file)]
    giver.do("send_fds", by, "all", given)
    text, taken, _ = taker.do("receive", to, 100, 2 * MANY)
    assert text == "all"
    assert len(taken) == len(given)
    for number, (reading, writing) in enumerate(pipes):
        giver.do("close", reading)
        giver.do("write", writing, f"pipe {number}")
        giver.do("close", writing)
        assert taker.do("read_all", taken[2 * number]) == f"pipe {number}"
        assert taker.do("read", taken[2 * number + 1], 5) == "root:"
    for fd in taken:
        taker.do("close", fd)
    giver.do("close", file)


def check_what_is_refused(giver: Actor, by: int, _taker: Actor, _to: int) -> None:
    reading, writing = giver.do("pipe")
    others = [by, *(giver.do(what) for what in ("eventfd", "memfd", "epoll_create"))]
    for other in others:
        assert refuses(errno.EPERM, giver, "send_fds", by, "x", [reading, other])
    for fd in (reading, writing, *others[1:]):
        giver.do("close", fd)


def test_on_to_a_third_node_and_back(trio: Cluster) -> None:
    with acting(trio, 1, 2, 3) as [first, second, third]:
        links = [join(second, first), join(third, second), join(first, third)]
        actors = [first, second, third, first]
        reading, writing = first.do("pipe")
        master, slave, _ = first.do("openpty")
        here = [writing, slave]
        for (to, by), giver, taker in zip(links, actors, actors[1:], strict=False):
            here = pass_on(giver, by, taker, to, *here)
        text = "".join(f"{number:9}\n" for number in range(20000))
        all_of_it = first.begin("read_all", reading)
        assert first.do("write", here[0], text) == len(text)
        assert first.do("isatty", here[1])
        first.do("write", here[1], "shown\n")
        assert read_line(first, master) == "shown\r\n"
        first.do("write", master, "typed\n")
        assert first.do("read", here[1], 100) == "typed\n"
        waiting = first.begin("read", here[1], 100)
        waiting.wait_blocked()
        first.do("write", master, "late\n")
        assert waiting.result() == "late\n"
        for fd in here:
            first.do("close", fd)
        assert all_of_it.result() == text
        none_left(trio)


def test_nobody_takes_them(trio: Cluster) -> None:
    with acting(trio, 1, 2) as [server, client]:
        reading, writing = server.do("pipe")
        # The taker closes, or ends; the giver does so before they are taken.
        here, there = join(server, client)
        server.do("send_fds", here, "x", [writing] * 3)
        assert client.do("poll", there, select.POLLIN, 60000) == select.POLLIN
        assert holders(trio, 1) == 3
        client.do("close", there)
        none_left(trio, 1)
        with acting(trio, 2) as [other]:
            here, there = join(server, other)
            server.do("send_fds", here, "x", [writing])
            assert other.do("poll", there, select.POLLIN, 60000) == select.POLLIN
            other.kill()
        none_left(trio, 1)
        waiting = server.begin("read", reading, 100)
        here, there = join(server, client)
        server.do("give_away", here, "x", [writing])
        server.do("close", here)
        waiting.wait_blocked()
        _, [come], _ = client.do("receive", there, 100, 8)
        client.do("write", come, "late")
        assert waiting.result() == "late"
        # Who takes no descriptors loses the connection, and with it what was on its way.
        client.do("close", there)
        here, there = join(server, client)
        client.do("takes_fds", there, 0)
        client.do("close", come)
        reading, writing = server.do("pipe")
        server.do("give_away", here, "x", [writing])
        assert client.do("receive", there, 100, 8) == ["", [], False]
        assert server.do("read", reading, 100) == ""
        none_left(trio)


# -- while nodes and daemons are killed ----------------------------------------------------------


def test_daemons_are_killed(trio: Cluster) -> None:
    """What waits goes on, each byte arrives once; what is on its way arrives, and none stays."""
    with acting(trio, 1, 2, via=3) as [giver, taker]:
        to, by = join(taker, giver)
        pipes = [giver.do("pipe") for _ in range(4)]
        (_, first), (_, second), (back, _), (reading, writing) = pipes
        given = pipes[0][0], pipes[1][0], pipes[2][1]
        come, polled, far = pass_on(giver, by, taker, to, *given)
        text = "".join(f"{number:9}\n" for number in range(20000))
        for node in (1, 2):
            waiting = taker.begin("read", come, 100)
            waiting.wait_blocked()
            polling = taker.begin("epoll", polled, select.POLLIN, 600000)
            taking = taker.begin("drain", to, 0, PASSED)
            passing = giver.begin("pour", by, writing, PASSED)
            written = taker.begin("write", far, text)
            kill_daemon(trio, node)
            giver.do("write", first, f"node{node}")
            giver.do("write", second, "x")
            got = ""
            while len(got) < len(text):
                got += giver.do("read", back, 65536)
            assert got == text
            assert written.result() == len(text)
            assert waiting.result() == f"node{node}"
            assert polling.result() == select.POLLIN
            assert taker.do("read", polled, 100) == "x"
            passing.result()
            assert taking.result() == PASSED
        giver.do("close", writing)
        assert giver.do("read", reading, 100) == ""
        taker.do("close", far)
        assert giver.do("read", back, 100) == ""
    none_left(trio)


def test_a_node_dies(trio: Cluster) -> None:
    """What others have of it is EIO; what it had of others is closed."""
    with acting(trio, 1, 2) as [here, there]:
        to, by = join(here, there)
        reading, writing = here.do("pipe")
        back, forth = here.do("pipe")
        given, _ = pass_on(here, to, there, by, reading, forth)
        there.begin("read", given, 100).wait_blocked()
        far_reading, _ = there.do("pipe")
        _, far_writing = there.do("pipe")
        come, far = pass_on(there, by, here, to, far_reading, far_writing)
        waiting = here.begin("read", come, 100)
        waiting.wait_blocked()
        polling = here.begin("poll", come, select.POLLIN, 600000)
        # On its way, too.
        here.do("send_fds", to, "x", [writing])
        ending = here.begin("read", back, 100)
        ending.wait_blocked()
        trio.crash(2)
        assert ending.result() == ""
        with pytest.raises(Refused) as caught:
            waiting.result()
        assert caught.value.number == errno.EIO
        assert polling.result() & select.POLLERR
        assert refuses(errno.EIO, here, "write", far, "x")
        none_left(trio, 1)
        assert refuses(errno.EPIPE, here, "write", writing, "x")
        here.do("close", come)
        here.do("close", far)
        assert here.do("receive", to, 100, 8) == ["", [], False]
        trio.restore(1, 2, 3)
        with acting(trio, 2) as [again]:
            to, by = join(here, again)
            reading, writing = again.do("pipe")
            [come] = pass_on(again, by, here, to, reading)
            again.do("write", writing, "in its next life")
            assert here.do("read", come, 100) == "in its next life"
    none_left(trio)
