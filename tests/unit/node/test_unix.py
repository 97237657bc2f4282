"""What the daemons tell each other of Unix sockets, and the kernel tells them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.peer import Peer
from ssi.node.unix import names
from ssi.node.unix.names import NAMELESS, SocketName
from ssi.node.unix.service import dump_peer, read_peer

inodes = st.integers(1, 2**64 - 1)
paths = st.binary(min_size=1, max_size=107).filter(lambda path: b"\0" not in path)
numbers = st.integers(0, 2**31)


def sent(message: Message) -> Message:
    """Return it as it arrives."""
    told: Message = json.loads(wire.encode(message))
    return told


@given(inodes, paths)
def test_a_name_is_the_same_for_all(inode: int, path: bytes) -> None:
    name = SocketName(inode, path)
    assert SocketName.load(sent(name.dump())) == name
    assert len(name.pack()) == names.SIZE
    assert SocketName.unpack(name.pack()) == name


def test_no_name_either() -> None:
    assert SocketName.load(sent(NAMELESS.dump())) == NAMELESS
    assert NAMELESS.pack() == bytes(names.SIZE)
    assert SocketName.unpack(bytes(names.SIZE)) == NAMELESS


@pytest.mark.parametrize(
    "name",
    [
        SocketName(7, b""), SocketName(0, b"/x"), SocketName(7, b"x" * 108),
        SocketName(7, b"a\0b"), SocketName(2**64, b"/x"), SocketName(-1, b"/x"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_name_is_refused(name: SocketName) -> None:
    with pytest.raises(ProtocolError):
        SocketName.load(sent(name.dump()))


@given(numbers, numbers, numbers, st.lists(numbers, max_size=32))
def test_who_it_is_arrives(pid: int, uid: int, gid: int, groups: list[int]) -> None:
    peer = Peer(pid % 2**22, uid, gid, tuple(groups))
    assert read_peer(sent(dump_peer(peer))) == peer
