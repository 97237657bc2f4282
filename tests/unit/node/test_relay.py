"""What goes along with a socket whose other end stays."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.migration import sockets
from ssi.node.relay.saved import RECEIVES, SENDS, Flag, Saved


def test_what_was_not_read_comes_first(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.send(b"unread ")
        room = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        saved = Saved(Flag.OUT_SHUT, 1, 2, incoming=b"behind", outgoing=b"out")
        saved.take(near, 0)
        saved.write(tmp_path / "state")
        assert Saved.read(tmp_path / "state") == Saved(
            Flag.OUT_SHUT, 1, 2, socket.SOCK_STREAM, room, b"unread behind", b"out"
        )
        # If the process stays, it finds all as it was.
        assert near.recv(100) == b"unread "


@pytest.mark.parametrize(
    ("flags", "halves", "then"),
    [
        (0, RECEIVES, Flag.IN_BROKEN),
        (Flag.FAR_ENDED, RECEIVES, Flag.FAR_ENDED),
        (0, SENDS, 0),
    ],
)
def test_a_half_that_the_process_has_shut(flags: int, halves: int, then: int) -> None:
    near, far = socket.socketpair()
    with near, far:
        saved = Saved(Flag(flags))
        saved.take(near, halves)
        assert saved.flags == then
        assert saved.is_empty


def test_who_made_a_pair() -> None:
    near, far = socket.socketpair()
    with near, far:
        room = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert Saved.of(near, 0) == Saved(uid=os.geteuid(), gid=os.getegid(), send_room=room)
        assert Saved.of(near, SENDS).flags == Flag.NEAR_ENDED | Flag.OUT_SHUT


@pytest.mark.parametrize("halves", [0, RECEIVES, SENDS, RECEIVES | SENDS])
def test_halves_of_datagrams_are_shut_again(halves: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        saved = Saved.of(near, halves)
        assert not saved.flags & (Flag.NEAR_ENDED | Flag.OUT_SHUT)
        saved.shut(near.fileno())
        assert sockets.ask_unix(os.fstat(near.fileno()).st_ino).halves == halves
        # Messages are the keeper's.
        with contextlib.suppress(BrokenPipeError):
            far.send(b"one")
        saved.take(near, halves)
        assert saved.is_empty


@pytest.mark.parametrize("data", [b"", b"x" * 27, b"\0" * 20 + b"\1\0\0\0" + b"\0" * 4])
def test_refuses(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(ProtocolError):
        Saved.read(tmp_path / "state")
