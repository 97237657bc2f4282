"""Where System V IPC objects are, as all members know it."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.ipc.device import Segment
from ssi.node.ipc.keeper import Kind
from ssi.node.ipc.snapshots import Snapshot, Snapshots
from ssi.node.proc.sysvipc import merge
from ssi.node.state.ipc import Home, Ipc, key_name, range_of
from ssi.node.state.view import View

ONE, TWO, AGAIN = Home(1, "a"), Home(2, "b"), Home(1, "c")
KEY = key_name(Kind.QUEUE, -1)


def view_of(*homes: Home) -> View:
    """Return a view in which these live."""
    view = View()
    for home in homes:
        words = {"node": home.node, "boot": home.boot, "time": 1.0, "cause": "a test"}
        view = view.apply({"do": "coming", **words})
        view = view.apply({"do": "state", "state": "UP", **words})
    return view


def do(ipc: Ipc, view: View, operation: str, home: Home, **fields: object) -> Ipc:
    """Apply an operation, as it is after a way through a message."""
    message: Message = {"do": operation, **home.dump(), **fields}
    return Ipc.load(ipc.apply(message, view).dump())


@pytest.fixture
def both() -> tuple[Ipc, View]:
    """Two nodes with a range each, and a key on the first."""
    view = view_of(ONE, TWO)
    ipc = do(Ipc(), view, "live", ONE, range=9)
    ipc = do(ipc, view, "live", TWO, range=20)
    return do(ipc, view, "claim", ONE, key=KEY), view


def test_identifiers_say_where_objects_are(both: tuple[Ipc, View]) -> None:
    ipc, _ = both
    assert range_of(3 << 24 | 9 << 14 | 77) == 9
    assert ipc.find(Kind.QUEUE, 3 << 24 | 9 << 14 | 77) == ONE
    assert ipc.find(Kind.QUEUE, 20 << 14) == TWO
    assert ipc.find(Kind.QUEUE, 21 << 14) is None


def test_one_of_two_has_a_key(both: tuple[Ipc, View]) -> None:
    ipc, view = both
    assert do(ipc, view, "claim", TWO, key=KEY) == ipc
    assert do(ipc, view, "release", TWO, key=KEY) == ipc
    assert do(ipc, view, "release", ONE, key=KEY).keys == {}


def test_a_range_is_one_lifes(both: tuple[Ipc, View]) -> None:
    ipc, view = both
    assert do(ipc, view, "live", TWO, range=9) == ipc
    assert do(ipc, view, "live", TWO, range=21) == ipc


def test_what_a_dead_node_had_is_taken_once(both: tuple[Ipc, View]) -> None:
    ipc, view = both
    other = key_name(Kind.SEMAPHORES, 5)
    ipc = do(ipc, view, "claim", ONE, key=other)
    words = {"dead": ONE.dump(), "keys": [KEY], "objects": ["1-147456"]}
    assert do(ipc, view, "take", TWO, **words) == ipc, "it lives"
    view = view_of(TWO, AGAIN)
    assert ipc.list_dead(view) == [ONE]
    assert do(ipc, view, "take", TWO, **words) == ipc, "it has not begun"
    ipc = do(ipc, view, "begin", TWO, dead=ONE.dump())
    assert do(ipc, view, "begin", AGAIN, dead=ONE.dump()) == ipc, "another has"
    assert do(ipc, view, "take", AGAIN, **words) == ipc
    alone = view_of(AGAIN)
    assert do(ipc, alone, "begin", AGAIN, dead=ONE.dump()).takers == {ONE.boot: AGAIN}
    taken = do(ipc, view, "take", TWO, **words)
    assert taken.keys == {KEY: TWO}
    assert taken.find(Kind.QUEUE, 147456) == TWO
    assert taken.find(Kind.QUEUE, 147457) is None
    assert taken.list_dead(view) == []
    assert taken.takers == {}
    assert do(taken, view, "take", AGAIN, **words) == taken
    assert do(taken, view, "remove", TWO, object="1-147456").moved == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"do": "claim", "key": "3-00000001"}, {"do": "claim", "key": "1-1"},
        {"do": "live", "range": 0}, {"do": "live", "range": 1024},
        {"do": "remove", "object": "1-x"}, {"do": "else"},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(both: tuple[Ipc, View], fields: Message) -> None:
    ipc, view = both
    with pytest.raises(ProtocolError):
        ipc.apply({**ONE.dump(), **fields}, view)


def pack(version: int, identifier: int = 7, count: int = 1, undos: int = 1) -> bytes:
    """Return the snapshot of a set of one semaphore with one undo."""
    head = struct.pack("=QIii9I", version, 0, identifier, 5, *[0] * 5, count, 0, undos, 0)
    return head + struct.pack("=iiIIi", 1, 0, 99, 100, 1)


def test_the_latest_snapshot_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "ipc")
    for version in (2, 3, 1):
        snapshots.keep("a", pack(version))
    snapshots.keep("b", pack(1, identifier=8))
    [found] = Snapshots(tmp_path / "ipc").list_of("a")
    assert (found.version, found.id, found.key, found.kind) == (3, 7, 5, Kind.SEMAPHORES)
    assert found.list_undos() == [(99, 100)]
    snapshots.keep("b", pack(4))
    assert snapshots.list_of("a") == []
    snapshots.forget(Kind.SEMAPHORES, 7)
    assert [one.id for one in snapshots.list_of("b")] == [8]


def test_snapshots_that_are_none_are_refused() -> None:
    with pytest.raises(ProtocolError):
        Snapshot.load(b"")
    with pytest.raises(ProtocolError):
        Snapshot.load(pack(1)[:-4]).list_undos()
    assert Snapshot.load(pack(1, count=2**32 - 1)).is_void
    assert dataclasses.replace(Snapshot.load(pack(1)), kind=Kind.QUEUE).list_undos() == []


HEAD = (
    "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid"
)
ROW = "{:10} {:10} {:5} {:21} {:5} {:5} {:6} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}"


def test_a_segment_of_several_nodes_is_one_row() -> None:
    one = ROW.format(5, 77, 600, 4096, 9, 9, 2, 0, 0, 0, 0, 10, 11, 5, 4096, 0)
    two = ROW.format(5, 77, 600, 4096, 0, 33, 1, 0, 0, 0, 0, 12, 0, 7, 4096, 0)
    other = ROW.format(0, 78, 600, 4096, 33, 33, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0)
    merged = merge("sysvipc/shm", [f"{HEAD}\n{two}\n{other}\n", f"{HEAD}\n{one}\n"])
    both = ROW.format(5, 77, 600, 4096, 9, 33, 3, 0, 0, 0, 0, 12, 11, 5, 4096, 0)
    assert merged == f"{HEAD}\n{both}\n{other}\n"
    assert merge("sysvipc/msg", [f"{HEAD}\n{two}\n", f"{HEAD}\n{one}\n"]).count("\n") == 3


def test_segments_travel() -> None:
    one = Segment(77, -5, 0o1600, 1, 2, 3, 4, 1, 9, 33, 4096, 2, 123456, 5, 6, 7)
    assert Segment.load(one.dump()) == one
    assert one.is_removed
    assert one.used_at == 6
    for wrong in ({"id": -1}, {"size": "4096"}, {"nattch": -1}):
        with pytest.raises(ProtocolError):
            Segment.load(one.dump() | wrong)
