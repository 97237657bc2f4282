"""Unix sockets on the root connect processes on all nodes as one does on one machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
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


def can(actor: Actor, *words: object) -> bool:
    """Tell whether a call does not fail."""
    try:
        actor.do(*words)  # type: ignore[arg-type]
    except Refused:
        return False
    return True


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
        check_messages, check_descriptors, check_descriptors_of_messages, check_datagrams,
        check_answers, check_answers_to_who_is_connected, check_the_clients_name,
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


def test_who_may_not_open_it_has_it(own: Cluster, path: str) -> None:
    own.run(3, "chmod", "755", "/root")
    with acting(own, 1, 2) as [server, client]:
        listening = server.do("bind", path)
        client.do("become", 1000, 1001, [])
        there = client.do("connect", path)
        here = server.do("accept", listening)
        file = server.do("open", f"{path}.file", os.O_RDWR | os.O_CREAT, 0o600)
        server.do("write", file, "for you")
        server.do("send_fds", here, "x", [file])
        assert refuses(errno.EACCES, client, "open", f"{path}.file", os.O_RDONLY)
        _, [fd], _ = client.do("receive", there, 100, 8)
        assert client.do("pread", fd, 100, 0) == "for you"
        client.do("write", fd, "back")
        assert server.do("pread", file, 100, 0) == "for youback"


def test_what_cannot_be_passed_on_is_missed_by_all(own: Cluster, path: str) -> None:
    """Its connection ends, and no other one; nor does what opens files if that is killed."""
    with acting(own, 1, 2) as [server, client]:
        file = server.do("open", "/etc/passwd", os.O_RDONLY)
        here, there = join(server, client, path)
        other, far = join(server, client, f"{path}.other")
        client.do("takes_fds", there, 0)
        server.do("write", here, "before")
        server.do("send_fds", here, "x", [file])
        assert client.do("receive", there, 100, 8) == ["before", [], False]
        assert client.do("receive", there, 100, 8) == ["", [], False]
        wait_until(lambda: is_broken(server, here), "the sender hears it")
        kill_opener(own, 2)
        server.do("send_fds", other, "x", [file])
        _, [come], _ = client.do("receive", far, 100, 8)
        assert client.do("read", come, 5) == "root:"


def kill_opener(cluster: Cluster, node: int) -> None:
    """Kill who opens files that have been passed on to a node."""
    words = ["exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c"]
    cluster.ssi(*words, "kill -9 $(pidof unixopener)")


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
    sides = (server, here), (client, there)
    for (giver, by), (taker, to) in (sides, sides[::-1]):
        check_what_arrives(giver, by, taker, to)
        check_where_in_the_stream(giver, by, taker, to)
        check_without_a_name(giver, by, taker, to)
        if server.node != client.node:
            check_what_is_refused(giver, by, taker, to)
        giver.do("unlink", FILE)
    client.do("close", there)
    assert server.do("receive", here, 100, 8) == ["", [], False]
    server.do("close", here)


FILE = "/root/passed"


def check_what_arrives(giver: Actor, by: int, taker: Actor, to: int) -> None:
    file = giver.do("open", FILE, os.O_RDWR | os.O_CREAT)
    giver.do("write", file, "0123456789")
    giver.do("lseek", file, 4, os.SEEK_SET)
    given = [
        file, giver.do("open", FILE, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK),
        giver.do("open", FILE, os.O_PATH), giver.do("open", "/root", os.O_RDONLY | os.O_DIRECTORY),
        giver.do("open", "/dev/zero", os.O_RDONLY),
        giver.do("open", "/dev/shm/passed", os.O_RDWR | os.O_CREAT),
    ]  # fmt: skip
    giver.do("send_fds", by, "all", given)
    text, taken, _ = taker.do("receive", to, 100, 8)
    assert text == "all"
    for old, new in zip(given, taken, strict=True):
        assert taker.do("flags", new) == giver.do("flags", old)
        assert taker.do("status", new)[0] == giver.do("status", old)[0]
        assert taker.do("where", new) == giver.do("where", old)
        if old != given[4]:
            assert taker.do("status", new)[1] == giver.do("status", old)[1]
    assert taker.do("read", taken[0], 3) == "456"
    taker.do("write", taken[1], "more")
    assert giver.do("pread", file, 100, 0) == "0123456789more"
    assert "passed" in taker.do("listdir", taken[3])
    assert taker.do("read", taken[4], 2) == "\0\0"
    for actor, fds in ((giver, given[1:]), (taker, taken)):
        for fd in fds:
            actor.do("close", fd)
    # As many as may go at once; some for which there is no room.
    for most in (253, 1):
        giver.do("send_fds", by, "x", [file] * 253)
        text, taken, is_cut = taker.do("receive", to, 100, most)
        assert (text, is_cut) == ("x", most == 1)
        # The room that there is for one is for two.
        assert len(taken) == most or most == 1
        for fd in taken:
            taker.do("close", fd)
    assert refuses(errno.EINVAL, giver, "send_fds", by, "x", [file] * 254)
    giver.do("close", file)


def check_where_in_the_stream(giver: Actor, by: int, taker: Actor, to: int) -> None:
    """They come with the first byte of their message, and no others with it."""
    file = giver.do("open", FILE, os.O_RDONLY)
    giver.do("write", by, "before")
    giver.do("send_fds", by, "first", [file])
    giver.do("send_fds", by, "second", [file, file])
    giver.do("write", by, "behind")
    assert taker.do("receive", to, 6, 8) == ["before", [], False]
    counts = []
    for size, word in ((100, "first"), (1, "s"), (5, "econd")):
        text, fds, _ = taker.do("receive", to, size, 8)
        assert text == word
        counts.append(len(fds))
        for fd in fds:
            taker.do("close", fd)
    assert counts == [1, 2, 0]
    assert taker.do("receive", to, 100, 8) == ["behind", [], False]
    taking = taker.begin("drain", to, 0, 1200)
    giver.do("pour", by, file, 1200)
    assert taking.result() == 1200
    giver.do("close", file)


def check_without_a_name(giver: Actor, by: int, taker: Actor, to: int) -> None:
    """It lives for as long as somebody has it, and be it nobody but the socket."""
    file = giver.do("open", f"{FILE}.gone", os.O_RDWR | os.O_CREAT)
    giver.do("write", file, "still there")
    giver.do("unlink", f"{FILE}.gone")
    giver.do("give_away", by, "x", [file])
    _, [fd], _ = taker.do("receive", to, 100, 8)
    assert taker.do("status", fd)[2] == 0
    taker.do("write", fd, " and more")
    assert taker.do("pread", fd, 100, 0) == "still there and more"
    taker.do("close", fd)


def check_what_is_refused(giver: Actor, by: int, taker: Actor, to: int) -> None:
    """The sender hears it, and nothing has been sent."""
    file = giver.do("open", FILE, os.O_RDONLY)
    for others in ([by], [file, by], [file, giver.do("open", "/dev/tty", os.O_PATH)]):
        assert refuses(errno.EPERM, giver, "send_fds", by, "x", others)
    giver.do("flock", file, fcntl.LOCK_SH)
    assert refuses(errno.EPERM, giver, "send_fds", by, "x", [file])
    giver.do("flock", file, fcntl.LOCK_UN)
    giver.do("send_fds", by, "y", [file])
    text, [fd], _ = taker.do("receive", to, 100, 8)
    assert text == "y"
    taker.do("close", fd)
    giver.do("close", file)


def check_descriptors_of_messages(server: Actor, client: Actor, path: str) -> None:
    here, there = join(server, client, path, "packet")
    grams = server.do("bind", f"{path}.grams", "dgram")
    file = client.do("open", FILE, os.O_RDWR | os.O_CREAT)
    long = "x" * 50000
    client.do("write", there, "before")
    client.do("send_fds", there, "", [file])
    client.do("send_fds", there, long, [file, file])
    assert server.do("receive", here, 100, 8) == ["before", [], False]
    for word, count in (("", 1), (long, 2)):
        text, fds, _ = server.do("receive", here, 60000, 8)
        assert (text, len(fds)) == (word, count)
    client.do("send_fds_to", f"{path}.grams", "a datagram", [file])
    text, [come], _ = server.do("receive", grams, 100, 8)
    assert text == "a datagram"
    client.do("write", file, "seen")
    assert server.do("pread", come, 100, 0) == "seen"
    client.do("unlink", FILE)
    for actor, fds in ((server, (here, grams)), (client, (there, file))):
        for fd in fds:
            actor.do("close", fd)


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


def check_answers(server: Actor, client: Actor, path: str) -> None:
    """Who receives a datagram knows its sender, and can answer."""
    here = server.do("bind", path, "dgram")
    for name in (f"{path}.one", f"{path}.other", f"{path}.one"):
        there = client.do("bind", name, "dgram")
        for number in range(3):
            client.do("send_from", there, path, f"question {number}")
            assert server.do("receive_from", here, 100) == [f"question {number}", name]
            server.do("send_from", here, name, f"answer {number}")
            assert client.do("receive_from", there, 100) == [f"answer {number}", path]
        client.do("send_to", path, "anonymous")
        assert server.do("receive_from", here, 100) == ["anonymous", ""]
        client.do("unlink", name)
        client.do("close", there)
    server.do("close", here)


def check_answers_to_who_is_connected(server: Actor, client: Actor, path: str) -> None:
    """It takes datagrams from its peer alone."""
    own = f"{path}.own"
    here, stranger = (server.do("bind", name, "dgram") for name in (path, f"{path}.stranger"))
    there = client.do("bound_then_connected", own, path, "dgram")
    client.do("write", there, "question")
    assert server.do("receive_from", here, 100) == ["question", own]
    server.do("send_from", here, own, "answer")
    assert client.do("receive_from", there, 100) == ["answer", path]
    assert refuses(errno.EPERM, server, "send_from", stranger, own, "from nobody")
    client.do("connect_to", there, f"{path}.stranger")
    # Between nodes who may no more hears it later.
    with contextlib.suppress(Refused):
        server.do("send_from", here, own, "from nobody")
    server.do("send_from", stranger, own, "from its peer")
    assert client.do("receive_from", there, 100) == ["from its peer", f"{path}.stranger"]
    client.do("connect_to", there, path)
    wait_until(functools.partial(can, server, "connect_to", here, own), "it may again")
    for actor, fd, other, others in ((server, here, client, there), (client, there, server, here)):
        actor.do("write", fd, "both are connected")
        assert other.do("read", others, 100) == "both are connected"
    for actor, fd in ((server, here), (server, stranger), (client, there)):
        actor.do("close", fd)


def check_the_clients_name(server: Actor, client: Actor, path: str) -> None:
    for kind in ("stream", "packet"):
        listening = server.do("bind", f"{path}.{kind}", kind)
        own = f"{path}.{kind}.own"
        there = client.do("bound_then_connected", own, f"{path}.{kind}", kind)
        here = server.do("accept", listening)
        assert client.do("names", there) == [own, f"{path}.{kind}"]
        assert server.do("names", here) == [f"{path}.{kind}", own]
        for actor, fd in ((server, listening), (server, here), (client, there)):
            actor.do("close", fd)


COUNT_FDS = """\
for process in /proc/[0-9]*; do
    case $(cat $process/comm 2>/dev/null) in unixkeeper) ls $process/fd | wc -l ;; esac
done
"""


def count_fds(cluster: Cluster, node: int) -> int:
    """Return how many descriptors the keeper of a node has."""
    words = ("exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c")
    return max(map(int, cluster.ssi(*words, COUNT_FDS).split()))


def test_what_led_to_and_from_sockets_that_are_closed_ends(
    own: Cluster, apart: tuple[Actor, Actor], path: str
) -> None:
    server, client = apart
    here = server.do("bind", path, "dgram")
    before = {node: count_fds(own, node) for node in (1, 2)}
    for number in range(8):
        name = f"{path}.{number}"
        there = client.do("bind", name, "dgram")
        client.do("send_from", there, path, f"question {number}")
        assert server.do("receive_from", here, 100) == [f"question {number}", name]
        server.do("send_from", here, name, f"answer {number}")
        assert client.do("receive_from", there, 100) == [f"answer {number}", path]
        client.do("send_from", there, path, f"the last words of {number}")
        client.do("close", there)
        client.do("unlink", name)
        assert server.do("read", here, 100) == f"the last words of {number}"
    # One way to the server is left, whose end nobody has asked for yet.
    for node, most in before.items():
        wait_until(lambda: count_fds(own, node) <= most + 3, "they end")  # noqa: B023
    server.do("close", here)


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
        nameless = server.do("open", f"{path}.gone", os.O_RDWR | os.O_CREAT)
        server.do("write", nameless, "without a name")
        server.do("unlink", f"{path}.gone")
        server.do("send_fds", here, "x", [nameless])
        _, [gone], _ = client.do("receive", there, 100, 8)
        file = server.do("open", "/etc/passwd", os.O_RDONLY)
        server.do("send_fds", here, "the last words", [file])
        client.do("poll", there, select.POLLIN, 60000)
        client.do("connect", path)
        waiting = client.begin("connect", path)
        waiting.wait_blocked()
        reading = client.begin("read", other, 100)
        reading.wait_blocked()
        trio.crash(3)
        text, [file], _ = client.do("receive", there, 100, 8)
        assert text == "the last words"
        assert client.do("read_all", file).startswith("root:")
        assert client.do("pread", gone, 100, 0) == "without a name"
        assert client.do("read_all", there) == ""
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
        files, far = join(server, client, f"{path}.files")
        client.begin("pour", far, client.do("open", "/etc/passwd", os.O_RDONLY), 10**6)
        server.do("drain", files, 0, 500)
        grams, own = server.do("bind", f"{path}.grams", "dgram"), f"{path}.own"
        check_answer(server, grams, client, client.do("bind", own, "dgram"), path)
        trio.crash(3)
        assert reading.result() == "the last words"
        wait_until(lambda: is_broken(server, here), "the server hears it")
        # What has arrived has its descriptor.
        assert 500 <= server.do("drain", files, 500, 10**6) < 10**6
        to_nobody = ("send_from", grams, own, "to nobody")
        wait_until(lambda: not can(server, *to_nobody), "nobody hears an answer")
        assert refuses(errno.ECONNREFUSED, server, *to_nobody)
        # Of those that had not been accepted one was connected; the other one is not left behind.
        accepted = server.do("accept", listening)
        assert server.do("read_all", accepted) == ""
        wait_until(lambda: not children(trio, 1), "nobody waits for the dead")
        mine = server.do("connect", path)
        assert server.do("accept", listening) > 0
        server.do("close", mine)


def check_answer(server: Actor, here: int, client: Actor, there: int, path: str) -> None:
    """Have a question answered, by the names of both."""
    client.do("send_from", there, f"{path}.grams", "question")
    assert server.do("receive_from", here, 100) == ["question", f"{path}.own"]
    server.do("send_from", here, f"{path}.own", "answer")
    assert client.do("receive_from", there, 100) == ["answer", f"{path}.grams"]


def children(cluster: Cluster, node: int) -> str:
    """Return the processes that wait in the keeper's stead."""
    script = "pgrep -x -P $(pgrep -o -x unixkeeper) unixkeeper || true"
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
        grams = server.do("bind", f"{path}.grams", "dgram")
        asking = client.do("bind", f"{path}.own", "dgram")
        check_answer(server, grams, client, asking, path)
        kill()
        check_answer(server, grams, client, asking, path)
        client.do("write", there, "question")
        assert reading.result() == "question"
        server.do("write", here, "answer")
        assert client.do("read", there, 100) == "answer"
        server.do("send_fds", here, "x", [server.do("open", "/etc/passwd", os.O_RDONLY)])
        _, [file], _ = client.do("receive", there, 100, 8)
        assert client.do("read", file, 5) == "root:"
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
