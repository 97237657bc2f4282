"""Pages and images come over a connection as they were sent; what is wrong is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.common.errors import ProtocolError
from ssi.common.wire import put_bytes
from ssi.node.ics.places import Places
from ssi.node.migration import landing, pages, transfer
from ssi.node.migration.images import Image
from ssi.node.migration.landing import Landing
from support.ics import UNRESERVED, address

DEADLINE_S = 20.0
PAGE = 4096
OPEN, ADD, CLOSE, FORCE_CLOSE = 4, 6, 0x1023, 0x1024
PRESENT, LAZY = 4, 2
OF_PROCESS, OF_SHARED = 1, 2


@pytest.fixture(name="pair")
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    theirs.settimeout(DEADLINE_S)
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def doing(work: Callable[[], object]) -> Iterator[None]:
    """Do something by another thread meanwhile."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)


def head(
    command: int, *, flags: int = 0, count: int = 0, at: int = 0, kind: int = 0, of: int = 0
) -> bytes:
    return struct.pack("=IIQQ", flags << 16 | command, count, at, of << 8 | kind)


# -- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [0, 3, 8, 500])
def test_pages_become_images(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch,
    expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(pages, "PIECE", 2 * PAGE + 5)
    monkeypatch.setattr(pages, "STEP", 3 * PAGE)
    ours, theirs = pair
    first, second, shared = os.urandom(PAGE), os.urandom(5 * PAGE), os.urandom(2 * PAGE)

    def send() -> None:
        theirs.sendall(head(OPEN, kind=OF_PROCESS, of=77))
        assert theirs.recv(1) == b"\0"
        theirs.sendall(head(ADD, flags=PRESENT, count=1, at=0x1000) + first)
        theirs.sendall(head(ADD, flags=LAZY, count=9, at=0x5000))
        theirs.sendall(head(ADD, flags=PRESENT, count=5, at=0x9000) + second)
        theirs.sendall(head(OPEN, kind=OF_SHARED, of=5))
        assert theirs.recv(1) == b"\0"
        theirs.sendall(head(ADD, flags=PRESENT, count=2, at=0) + shared)
        theirs.sendall(head(FORCE_CLOSE))
        assert theirs.recv(4) == bytes(4)

    with doing(send):
        assert pages.receive(ours, tmp_path, expected).pages == 8
    assert (tmp_path / "pages-1.img").read_bytes() == first + second
    assert (tmp_path / "pages-2.img").read_bytes() == shared
    start, *entries = Image(tmp_path / "pagemap-77.img").entries
    assert start.number(1) == 1
    found = [tuple(entry.number(field) for field in (1, 2, 4)) for entry in entries]
    assert found == [(0x1000, 1, PRESENT), (0x5000, 9, LAZY), (0x9000, 5, PRESENT)]
    start, *entries = Image(tmp_path / "pagemap-shmem-5.img").entries
    assert (start.number(1), len(entries)) == (2, 1)


def test_pages_of_large_mappings_come_behind(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    small = {at: os.urandom(PAGE) for at in (0x1000, 0x7000, 0x30000)}
    large = {at: os.urandom(3 * PAGE) for at in (0x4000, 0x20000)}
    shared = os.urandom(PAGE)

    def send() -> None:
        theirs.sendall(head(OPEN, kind=OF_PROCESS, of=77))
        assert theirs.recv(1) == b"\0"
        for at, data in small.items():
            theirs.sendall(head(ADD, flags=PRESENT, count=1, at=at) + data)
        theirs.sendall(head(OPEN, kind=OF_SHARED, of=5))
        assert theirs.recv(1) == b"\0"
        theirs.sendall(head(ADD, flags=PRESENT, count=1) + shared + head(CLOSE))
        assert theirs.recv(4) == bytes(4)
        for at, data in large.items():
            theirs.sendall(head(ADD, flags=PRESENT, count=3, at=at) + data)
        theirs.sendall(head(FORCE_CLOSE))

    with doing(send):
        assert pages.receive(ours, tmp_path, 6, apart=True).pages == 7
    together = sorted({**small, **large}.items())
    assert (tmp_path / "pages-1.img").read_bytes() == b"".join(data for _, data in together)
    assert (tmp_path / "pages-2.img").read_bytes() == shared
    entries = Image(tmp_path / "pagemap-77.img").entries[1:]
    assert [entry.number(1) for entry in entries] == [at for at, _ in together]


def test_pages_that_come_behind_have_an_end(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.sendall(head(OPEN, kind=OF_PROCESS, of=77) + head(CLOSE))
    theirs.sendall(head(ADD, flags=PRESENT, count=2, at=0x1000) + bytes(PAGE))
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError):
        pages.receive(ours, tmp_path, apart=True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"short", head(7), head(99), head(ADD, count=1), head(OPEN, kind=3),
        head(OPEN, kind=1),
        head(OPEN, kind=1) + head(ADD, flags=PRESENT, count=2) + bytes(PAGE),
        head(OPEN, kind=1) + head(OPEN, kind=7), bytes(range(64)),
    ],
)  # fmt: skip
def test_what_are_no_pages_is_refused(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError):
        pages.receive(ours, tmp_path)


# -- images --------------------------------------------------------------------------------------


NAMES = st.from_regex(r"[a-z0-9-]{1,40}\.img", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=5000), max_size=6), st.sampled_from((0, 3000)))
def test_images_come_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes], small: int
) -> None:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name, data in images.items():
        (source / name).write_bytes(data)
    (source / "log").write_bytes(b"stays")
    with (
        patch.object(transfer, "SMALL", small), connected() as (ours, theirs),
        doing(lambda: transfer.send_images(theirs, source)),
    ):  # fmt: skip
        transfer.receive_images(ours, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == images


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, theirs:
        ours.settimeout(DEADLINE_S)
        yield ours, theirs


def pack(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("=HQ", len(name), len(data) if size is None else size) + name + data


END = pack(b"", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", END[:-1], pack(b"a.img", b"abc"), pack(b"a.img", b"abc", 4),
        pack(b"../a.img", b"x") + END, pack(b"a/b.img", b"x") + END, pack(b"log", b"x") + END,
        pack(b"x" * 200 + b".img", b"x") + END, pack(b"", b"", 7)[:5],
    ],
)  # fmt: skip
def test_what_are_no_images_is_refused(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError):
        transfer.receive_images(ours, tmp_path)
    assert not (tmp_path.parent / "a.img").exists()


# -- the connection ------------------------------------------------------------------------------


PLACES = Places(address, 0, UNRESERVED)


def play(coroutine: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await coroutine

    asyncio.run(run())


def test_only_who_has_the_token_lands() -> None:
    async def run() -> None:
        place = Landing(2, 1, PLACES)
        described = place.describe()
        token = put_bytes(bytes(landing.TOKEN))
        wrong = [
            await landing.connect(1, 2, {**described, "token": token}, PLACES),
            await landing.connect(3, 2, described, PLACES),
        ]
        right = await landing.connect(1, 2, described, PLACES)
        come = await place.accept()
        place.close()
        assert come.getpeername() == right.getsockname()
        for one in wrong:
            one.settimeout(DEADLINE_S)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
        for one in (come, right, *wrong):
            one.close()

    play(run())


def test_work_that_blocks_is_cut_off(tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            work = asyncio.create_task(transfer.alone(ours, transfer.receive_all, tmp_path))
            await asyncio.sleep(0.1)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert theirs.recv(1) == b""

    play(run())
