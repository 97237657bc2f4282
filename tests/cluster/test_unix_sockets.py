"""Unix sockets on the root connect processes on all nodes as one does on one machine."""

from __future__ import annotations

import errno
import functools
import itertools
import select
import socket
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Actor, Doing, Refused, acting

PAIRS = [(1, 1), (1, 2), (2, 1)]
"""Where the server is, and the client: on one node it is the kernel's own affair."""

_numbers = itertools.count(1)


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


@pytest.fixture
def path() -> str:
    """Where a socket may be."""
    return f"/root/socket{next(_numbers)}"


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[1]}to{pair[0]}")
def pair(request: pytest.FixtureRequest, own: Cluster) -> Iterator[tuple[Actor, Actor]]:
    """Server and client."""
    with acting(own, *request.param) as (server, client):
        yield server, client


@pytest.fixture(params=PAIRS[1:], ids=lambda pair: f"{pair[1]}to{pair[0]}")
def apart(request: pytest.FixtureRequest, own: Cluster) -> Iterator[tuple[Actor, Actor]]:
    """They, on two nodes."""
    with acting(own, *request.param) as (server, client):
        yield server, client


def refuses(number: int, actor: Actor, *words: object) -> bool:
    """Tell whether a call fails with this error."""
    with pytest.raises(Refused) as caught:
        actor.do(*words)  # type: ignore[arg-type]
    return caught.value.number == number


def join(server: Actor, client: Actor, path: str, kind: str = "stream") -> tuple[int, int]:
    """Return the descriptors of both ends of a connection."""
    listening = server.do("bind", path, kind)
    there = client.do("connect", path, kind)
    here = server.do("accept", listening)
    server.do("close", listening)
    return here, there


def test_as_on_one_machine(pair: tuple[Actor, Actor]) -> None:
    for check in (
        check_bytes_both_ways, check_who_closes_is_heard, check_nobody_reads, check_a_slow_reader,
        check_messages, check_descriptors, check_datagrams,
    ):  # fmt: skip
        check(*pair, f"/root/socket{next(_numbers)}")


def check_bytes_both_ways(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path)
    assert client.do("names", there) == ["", path]
    assert server.do("names", here) == [path, ""]
    for actor in (server, client):
        words = actor.cluster.run(actor.node, "cat", f"/proc/{actor.pid}/cantmove")
        assert f"a Unix socket connected by the name {path}" in words
    client.do("write", there, "question")
    assert server.do("read", here, 100) == "question"
    server.do("write", here, "answer")
    assert client.do("read", there, 100) == "answer"
    assert client.do("poll", there, select.POLLIN, 0) == 0
    # Half closed: the other half goes on.
    client.do("shutdown", there, socket.SHUT_WR)
    assert server.do("read_all", here) == ""
    server.do("write", here, "late")
    assert client.do("read", there, 100) == "late"
    server.do("close", here)
    assert client.do("read", there, 100) == ""
    assert client.do("poll", there, select.POLLIN, 60000) & select.POLLHUP
    assert refuses(errno.EPIPE, client, "write", there, "to nobody")
    client.do("close", there)


def check_who_closes_is_heard(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path)
    client.do("write", there, "the last words")
    client.do("close", there)
    assert server.do("read_all", here) == "the last words"
    wait_until(lambda: is_broken(server, here), "the server hears it")
    server.do("close", here)


def is_broken(actor: Actor, fd: int) -> bool:
    """Tell whether nobody takes what is written."""
    try:
        actor.do("write", fd, "x")
    except Refused as error:
        return error.number in {errno.EPIPE, errno.ECONNRESET}
    return False


def check_nobody_reads(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path)
    server.do("shutdown", here, socket.SHUT_RD)
    wait_until(lambda: is_broken(client, there), "the client hears it")
    server.do("write", here, "but it is written to")
    assert client.do("read", there, 100) == "but it is written to"
    server.do("close", here)
    client.do("close", there)


def check_a_slow_reader(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path)
    filled = 0
    while more := client.do("fill", there):
        filled += more
    waiting = client.begin("write", there, "y" * 200000)
    reading = server.begin("read_all", here)
    assert waiting.result() == 200000
    client.do("close", there)
    assert reading.result() == "x" * filled + "y" * 200000
    server.do("close", here)


def check_messages(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path, "packet")
    for text in ("one", "", "three", "x" * 100000):
        client.do("write", there, text)
    assert [server.do("read", here, 200000) for _ in range(4)] == ["one", "", "three", "x" * 100000]
    server.do("write", here, "back")
    assert client.do("read", there, 100) == "back"
    client.do("close", there)
    assert server.do("read", here, 100) == ""
    server.do("close", here)


@pytest.mark.parametrize("nodes", PAIRS, ids=str)
def test_credentials(own: Cluster, path: str, nodes: tuple[int, int]) -> None:
    own.run(3, "chmod", "755", "/root")
    with acting(own, *nodes) as [server, client]:
        listening = server.do("bind", path)
        server.do("become", 1, 2, [3])
        root = client.do("connect", path)
        accepted = server.do("accept", listening)
        assert server.do("credentials", accepted) == [client.pid, 0, 0]
        # Who has called listen() was root yet.
        assert client.do("credentials", root) == [server.pid, 0, 0]
        client.do("become", 1000, 1001, [1002, 1003])
        # Only who may write to it may connect.
        own.run(3, "chmod", "700", path)
        assert refuses(errno.EACCES, client, "connect", path)
        own.run(3, "sh", "-c", "chown :1003 $0; chmod 720 $0", path)
        there = client.do("connect", path)
        here = server.do("accept", listening)
        assert server.do("credentials", here) == [client.pid, 1000, 1001]
        assert server.do("groups", here) == [1002, 1003]
        assert client.do("credentials", there) == [server.pid, 0, 0]


def test_who_has_come_by_onnode_is_himself(own: Cluster, path: str) -> None:
    """His PID is in use where the server is: his ghost has it."""
    script = (
        'import os, socket; one = socket.socket(socket.AF_UNIX); one.connect("'
        + path
        + '"); print(os.getpid(), one.recv(100).decode())'
    )
    with acting(own, 1) as [server]:
        listening = server.do("bind", path)
        client = own.start_python(
            1, "import os, sys; os.execvp('onnode', ['onnode', '2', 'python3', '-c', sys.argv[1]])",
            script,
        )  # fmt: skip
        here = server.do("accept", listening)
        pid, *_ = server.do("credentials", here)
        server.do("write", here, "welcome")
        out, _ = client.communicate()
        assert out.decode() == f"{pid} welcome\n"


def test_errors(apart: tuple[Actor, Actor], path: str) -> None:
    server, client = apart
    assert refuses(errno.ENOENT, client, "connect", path)
    bound = server.do("bind", path, "stream", None)
    assert refuses(errno.ECONNREFUSED, client, "connect", path)  # nobody listens
    assert refuses(errno.EADDRINUSE, client, "bind", path)
    assert refuses(errno.EPROTOTYPE, client, "connect", path, "packet")
    server.do("close", bound)
    assert refuses(errno.ECONNREFUSED, client, "connect", path)  # nobody has it
    server.do("unlink", path)
    first = server.do("bind", path)
    server.do("rename", path, f"{path}.old")
    second = client.do("bind", path)  # anew, on another node
    there = server.do("connect", path)
    here = client.do("accept", second)
    client.do("write", here, "the new one")
    assert server.do("read", there, 100) == "the new one"
    old = client.do("connect", f"{path}.old")
    accepted = server.do("accept", first)
    server.do("write", accepted, "the old one")
    assert client.do("read", old, 100) == "the old one"
    for actor, fds in ((server, (first, there, accepted)), (client, (second, here, old))):
        for fd in fds:
            actor.do("close", fd)


def test_a_full_backlog(own: Cluster, apart: tuple[Actor, Actor], path: str) -> None:
    server, client = apart
    listening = server.do("bind", path, "stream", 0)
    fds = [client.do("connect", path)]
    assert refuses(errno.EAGAIN, client, "connect", path, "stream", True)
    # One waits, and is interrupted.
    script = f'import socket; socket.socket(socket.AF_UNIX).connect("{path}")'
    words = ("timeout", "-s", "INT", "1", "python3", "-c", script)
    assert "KeyboardInterrupt" in own.try_run(client.node, *words).err
    waiting = client.begin("connect", path)
    waiting.wait_blocked()
    first = server.do("accept", listening)
    fds.append(waiting.result())
    # He who was interrupted is not there.
    second = server.do("accept", listening)
    client.do("write", fds[1], "second")
    assert server.do("read", second, 100) == "second"
    assert server.do("poll", listening, select.POLLIN, 0) == 0
    for fd in fds:
        client.do("close", fd)
    for fd in (listening, first, second):
        server.do("close", fd)


def check_descriptors(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path)
    for actor, fd in ((server, here), (client, there)):
        if server.node == client.node:
            actor.do("send_fd", fd, 0)
        else:
            assert refuses(errno.EPERM, actor, "send_fd", fd, 0)
            actor.do("write", fd, "x")
    assert server.do("read", here, 1) == "x"
    assert client.do("read", there, 1) == "x"
    server.do("close", here)
    client.do("close", there)


def check_datagrams(server: Actor, client: Actor, path: str) -> None:
    assert refuses(errno.ENOENT, client, "send_to", path, "nothing")
    here = server.do("bind", path, "dgram")
    for number in range(8):
        client.do("send_to", path, f"message {number}")
    assert [server.do("read", here, 100) for _ in range(8)] == [f"message {n}" for n in range(8)]
    there = client.do("connect", path, "dgram")
    client.do("write", there, "connected")
    assert server.do("read", here, 100) == "connected"
    assert refuses(errno.EPROTOTYPE, client, "connect", path)
    server.do("close", here)
    wait_until(functools.partial(is_deaf, client, there), "the client hears it")
    assert refuses(errno.ECONNREFUSED, client, "send_to", path, "nobody")
    client.do("close", there)


def is_deaf(client: Actor, there: int) -> bool:
    """Tell whether nobody is there for a datagram."""
    try:
        client.do("write", there, "x")
    except Refused as error:
        return error.number == errno.ECONNREFUSED
    return False


# -- while nodes and daemons are killed ----------------------------------------------------------


def test_the_servers_node_dies(trio: Cluster, path: str) -> None:
    """What it said is read to the end; who waits for it hears that there is nobody."""
    with acting(trio, 1, 3) as [client, server]:
        listening = server.do("bind", path, "stream", 0)
        there = client.do("connect", path)
        here = server.do("accept", listening)
        packets = server.do("bind", f"{path}.packets", "packet")
        other = client.do("connect", f"{path}.packets", "packet")
        grams = server.do("bind", f"{path}.grams", "dgram")
        gram = client.do("connect", f"{path}.grams", "dgram")
        client.do("write", gram, "x")
        assert server.do("read", grams, 100) == "x"
        server.do("accept", packets)
        server.do("write", here, "the last words")
        client.do("poll", there, select.POLLIN, 60000)
        client.do("connect", path)
        waiting = client.begin("connect", path)
        waiting.wait_blocked()
        reading = client.begin("read", other, 100)
        reading.wait_blocked()
        trio.crash(3)
        assert client.do("read_all", there) == "the last words"
        assert reading.result() == ""
        assert fails(waiting) == errno.ECONNREFUSED
        wait_until(functools.partial(is_deaf, client, gram), "the client hears it")
        assert refuses(errno.EPIPE, client, "write", there, "x")
        assert refuses(errno.ECONNREFUSED, client, "connect", path)
        # Its file can be bound anew at once.
        client.do("unlink", path)
        client.do("bind", path)


def fails(doing: Doing) -> int:
    """Return the error by which it ends."""
    with pytest.raises(Refused) as caught:
        doing.result()
    return caught.value.number


def test_the_clients_node_dies(trio: Cluster, path: str) -> None:
    with acting(trio, 1, 3) as [server, client]:
        listening = server.do("bind", path, "stream", 0)
        there = client.do("connect", path)
        here = server.do("accept", listening)
        client.do("connect", path)
        client.begin("connect", path).wait_blocked()
        client.do("write", there, "the last words")
        server.do("poll", here, select.POLLIN, 60000)
        reading = server.begin("read_all", here)
        trio.crash(3)
        assert reading.result() == "the last words"
        wait_until(lambda: is_broken(server, here), "the server hears it")
        # Of those that had not been accepted one was connected; the other one is not left behind.
        accepted = server.do("accept", listening)
        assert server.do("read_all", accepted) == ""
        wait_until(lambda: not children(trio, 1), "nobody waits for the dead")
        mine = server.do("connect", path)
        assert server.do("accept", listening) > 0
        server.do("close", mine)


def children(cluster: Cluster, node: int) -> str:
    """Return the processes that wait in the keeper's stead."""
    script = "pgrep -P $(pidof unixkeeper) || true"
    words = ["exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script]
    return cluster.ssi(*words)


@pytest.mark.parametrize("victims", [(2,), (1, 2)], ids=str)
def test_daemons_are_killed(trio: Cluster, path: str, victims: tuple[int, ...]) -> None:
    """What is connected goes on; who waits waits on."""

    def kill() -> None:
        for node in victims:
            kill_daemon(trio, node)

    with acting(trio, 1, 2, via=3) as [server, client]:
        listening = server.do("bind", path, "stream", 0)
        there = client.do("connect", path)
        here = server.do("accept", listening)
        reading = server.begin("read", here, 100)
        reading.wait_blocked()
        kill()
        client.do("write", there, "question")
        assert reading.result() == "question"
        server.do("write", here, "answer")
        assert client.do("read", there, 100) == "answer"
        # At once, when there is no daemon yet.
        second = client.begin("connect", path)
        accepted = server.do("accept", listening)
        client.do("write", second.result(), "second")
        assert server.do("read", accepted, 100) == "second"
        client.do("connect", path)
        waiting = client.begin("connect", path)
        waiting.wait_blocked()
        kill()
        server.do("accept", listening)
        there = waiting.result()
        client.do("write", there, "third")
        client.do("close", there)
        texts: list[str] = []
        while not texts or texts[-1] != "third":
            texts.append(server.do("read_all", server.do("accept", listening)))
        # Those that a killed daemon had connected ended at once.
        assert set(texts[:-1]) <= {""}
