"""The local socket: who asks gets his answer, and whatever he sends does no harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.common import frames
from ssi.common.errors import NodeLost, ProtocolError
from ssi.common.frames import Given, Reply
from ssi.node import local
from ssi.node.local import Inbox, LocalServer, Output, Request, Signal, open_listener
from ssi.node.peer import read_peer
from support.local import Serving, read_answer, read_frame, serving


async def tell(request: Request, output: Output) -> int:
    """Write what the request is."""
    await output.write(f"{request.argv} {request.environment} {request.cwd} {request.umask:o}\n")
    await output.error(f"{request.pid} {request.uid} {request.gid} {request.groups}\n")
    return 3


async def echo(request: Request, output: Output) -> int:
    """Write what is given, until its end or a signal."""
    while given := await request.receive():
        if isinstance(given, Signal):
            return 128 + given.number
        await output.write(given)
    return 0


async def fail(_request: Request, _output: Output) -> int:
    """Fail as expected."""
    raise NodeLost("node2 was lost", hint="look for it")


async def stumble(_request: Request, _output: Output) -> int:
    """Fail as nobody expects."""
    raise ValueError("a bug")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "public", tell=tell, echo=echo, fail=fail, stumble=stumble) as found:
        yield found


def test_an_applet_learns_what_is_asked_and_by_whom(running: Serving) -> None:
    with running.connect() as line:
        line.sendall(frames.encode_call(["/usr/bin/tell", "a b"], ["X=y"], "/tmp", 0o27))
        status, out, error = read_answer(line)
    assert status == 3
    assert out == "('/usr/bin/tell', 'a b') {'X': 'y'} /tmp 27\n"
    groups = tuple(os.getgroups())
    assert error == f"{os.getpid()} {os.getuid()} {os.getgid()} {groups}\n"


def test_a_peer_with_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.node.peer._FEW", 0)
    left, right = socket.socketpair()
    with left, right:
        assert read_peer(left).groups == tuple(os.getgroups())


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [("fail", 69, "fail: node2 was lost\nfail: hint: look for it\n"),
     ("nothing", 127, "nothing: the node daemon knows no such command\n"),
     ("", 127, ": the node daemon knows no such command\n")],
)  # fmt: skip
def test_failures(running: Serving, name: str, status: int, error: str) -> None:
    assert running.ask(name) == (status, "", error)


def test_a_bug_is_logged_and_ends_only_its_request(
    running: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    assert running.ask("stumble")[0] == 70
    assert "a bug" in caplog.text
    assert running.ask("tell")[0] == 3


def test_input_goes_through_as_credit_allows(running: Serving) -> None:
    data = os.urandom(300_000)
    credit, sent, found = frames.WINDOW, 0, b""
    with running.connect() as line:
        line.sendall(frames.encode_call(["echo"]))
        while len(found) < len(data):
            part = data[sent : sent + min(credit, 50_000)]
            if part:
                line.sendall(frames.encode_frame(Given.STDIN, part))
                sent, credit = sent + len(part), credit - len(part)
            kind, got = read_frame(line)
            if kind == Reply.CREDIT:
                credit += frames.parse_number(got)
            elif kind == Reply.STDOUT:
                found += got
        line.sendall(frames.encode_frame(Given.END_OF_STDIN))
        assert read_answer(line)[0] == 0
    assert found == data


def test_a_signal_arrives(running: Serving) -> None:
    with running.connect() as line:
        line.sendall(frames.encode_call(["echo"]) + frames.encode_number(Given.SIGNAL, 2))
        assert read_answer(line)[0] == 130


def test_a_signal_overtakes_input_and_is_pending_once() -> None:
    inbox = Inbox()
    inbox.put(Given.STDIN, b"data")
    for _ in range(3):
        inbox.put(Given.SIGNAL, frames.LENGTH.pack(15))
    inbox.put(Given.END_OF_STDIN, b"")

    async def receive() -> list[bytes | Signal]:
        return [await inbox.receive() for _ in range(3)]

    assert asyncio.run(receive()) == [Signal(15), b"data", b""]


def test_signals_and_input_can_be_taken_apart() -> None:
    async def take() -> list[bytes | Signal]:
        credit: list[int] = []
        inbox = Inbox(credit.append)
        signals = asyncio.create_task(inbox.receive_signal())
        inbox.put(Given.STDIN, b"data")
        await asyncio.sleep(0)
        assert not signals.done()
        given = await inbox.receive_input()
        assert credit == [4]
        inbox.put(Given.SIGNAL, frames.LENGTH.pack(2))
        return [given, await signals]

    assert asyncio.run(take()) == [b"data", Signal(2)]


@pytest.mark.parametrize(
    ("kind", "data"),
    [(0, b""), (1, b""), (2, b"x"), (3, b"x"), (4, b""), (4, bytes(4)), (4, b"\xff\xff\0\0"),
     (9, b"")],
)  # fmt: skip
def test_frames_that_are_refused(running: Serving, kind: int, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Inbox().put(kind, data)
    with running.connect() as line:
        line.sendall(frames.encode_call(["echo"]) + frames.HEAD.pack(kind, len(data)) + data)
        with pytest.raises(EOFError):
            read_answer(line)
    assert running.ask("tell")[0] == 3


def test_more_input_than_credit_is_refused() -> None:
    inbox = Inbox()
    inbox.put(Given.STDIN, b"x" * frames.WINDOW)
    with pytest.raises(ProtocolError, match="credit"):
        inbox.put(Given.STDIN, b"x")
    ended = Inbox()
    ended.put(Given.END_OF_STDIN, b"")
    with pytest.raises(ProtocolError):
        ended.put(Given.STDIN, b"x")


def test_who_does_not_read_is_waited_for(tmp_path: Path) -> None:
    written = 0

    async def pour(_request: Request, output: Output) -> int:
        nonlocal written
        while written < 8_000_000:
            await output.write(b"x" * 100_000)
            written += 100_000
        return 0

    with serving(tmp_path, pour=pour) as running, running.connect() as line:
        line.sendall(frames.encode_call(["pour"]))
        assert read_frame(line)[0] == Reply.ACCEPTED
        assert running.ask("clusternode_num")[1] == "1\n"
        assert written < 2_000_000
        assert len(read_answer(line)[1]) == 8_000_000


def test_the_task_of_who_has_gone_is_cancelled(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def wait(_request: Request, _output: Output) -> int:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()
        return 0

    with serving(tmp_path, wait=wait) as running:
        with running.connect() as line:
            line.sendall(frames.encode_call(["wait"]))
            assert read_frame(line)[0] == Reply.ACCEPTED
        running.wait(asyncio.wait_for(ended.wait(), 10))


GOOD = frames.encode_call(["tell"])


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", GOOD[:-1], b"\xff\xff\xff\xff", frames.LENGTH.pack(20) + b"x" * 20,
     b"GET / HTTP/1.1\r\n\r\n", frames.LENGTH.pack(frames.MAX_REQUEST + 1)],
)  # fmt: skip
def test_what_is_no_request_is_closed(running: Serving, data: bytes) -> None:
    with running.connect() as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert line.recv(100) == b""
    assert running.ask("tell")[0] == 3


@given(data=st.binary(max_size=300), whole=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_do_no_harm(running: Serving, data: bytes, whole: bool) -> None:  # noqa: FBT001
    with running.connect() as line:
        line.sendall((GOOD if whole else b"") + data)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while line.recv(65536):
                pass
    assert running.ask("clusternode_num") == (0, "1\n", "")


def test_who_sends_no_request_is_closed(running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "REQUEST_S", 0.05)
    with running.connect() as line:
        line.sendall(GOOD[:-1])
        assert line.recv(100) == b""


def test_one_user_has_a_share(running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ROOT_SHARE", 2)
    monkeypatch.setattr(local, "USER_SHARE", 2)
    with running.connect() as first, running.connect() as second:
        for line in (first, second):
            line.sendall(frames.encode_call(["echo"]))
            assert read_frame(line)[0] == Reply.ACCEPTED
        with running.connect() as third:
            with contextlib.suppress(ConnectionError):
                third.sendall(GOOD)
            assert read_answer(third)[0] == 75
        first.sendall(frames.encode_frame(Given.END_OF_STDIN))
        assert read_answer(first)[0] == 0
        deadline = time.monotonic() + 10
        while running.ask("tell")[0] == 75:
            assert time.monotonic() < deadline


def test_all_users_together_leave_something_for_root() -> None:
    shares = local._Shares()
    with contextlib.ExitStack() as stack:
        for uid in range(1, 1000):
            for _ in range(10):
                stack.enter_context(shares(uid))
        assert shares._open.total() == local.USERS_SHARE
        assert stack.enter_context(shares(0))
    assert not shares._open


def test_nobody_fills_the_log(running: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            with running.connect() as line:
                line.sendall(b"\xff" * 4)
                with contextlib.suppress(ConnectionError):
                    assert line.recv(1) == b""
    assert len([record for record in caplog.records if record.name == local.__name__]) == 1


def test_a_restarted_daemon_takes_the_same_place(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    with serving(folder, tell=tell) as running:
        inode = folder.stat().st_ino
        assert running.ask("tell")[0] == 3
    with serving(folder, tell=tell) as running:
        assert running.ask("tell")[0] == 3
        assert folder.stat().st_ino == inode
        assert [path.name for path in folder.iterdir()] == [frames.SOCKET_NAME]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / frames.SOCKET_NAME).stat().st_mode & 0o777 == 0o666


def test_a_listener_that_cannot_be_is_closed(tmp_path: Path) -> None:
    (tmp_path / frames.SOCKET_NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        open_listener(tmp_path)


def test_the_server_ends_with_requests_under_way(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(serving(tmp_path, echo=echo))
        line = stack.enter_context(running.connect())
        line.sendall(frames.encode_call(["echo"]))
        assert read_frame(line)[0] == Reply.ACCEPTED
        stack.pop_all().close()


def test_names_are_those_of_the_last_who_serves(tmp_path: Path) -> None:
    server = LocalServer(tmp_path)
    server.serve("a", tell)
    server.serve("a", echo)
    assert server._applets == {"a": echo}
