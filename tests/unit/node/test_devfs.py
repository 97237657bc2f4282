"""What is shown of a node's /dev, and the numbers that the kernel knows it by."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.devfs import streams
from ssi.node.devfs.keeper import MAX_GROUPS, pack_opening
from ssi.node.devfs.own import list_folder, look_at
from ssi.node.devfs.places import (
    HOME,
    Look,
    Places,
    check_path,
    encode_device,
    home_folder,
    terminal_node,
)  # fmt: skip
from ssi.node.process.caller import Caller
from ssi.node.process.device import CONTROLS, DEVICE_CONTROLS


@pytest.mark.parametrize("path", ["", "null", "pts/3", "a b/..c"])
def test_paths(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("path", ["/null", "../etc/shadow", "pts/", "a//b", ".", "a/../b", "a\0b"])
def test_no_paths(path: str) -> None:
    with pytest.raises(ProtocolError):
        check_path(path)


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    places = Places(tmp_path / "names")
    found = {places.number_of(node, path) for node in (1, 2) for path in ("", "null", "pts/ü\n")}
    assert len(found) == 6
    assert 1 not in found
    again = Places(tmp_path / "names")
    for number in found:
        assert again.number_of(*again.find(number)) == number
        assert again.find(number) == places.find(number)
    with pytest.raises(FileNotFoundError):
        again.find(1)
    with pytest.raises(FileNotFoundError):
        again.find(100)


def test_a_terminals_number_tells_its_node() -> None:
    found = [terminal_node(name) for name in ("0", "4095", "4096", "520191")]
    assert found == [1, 1, 2, 127]
    assert [terminal_node(name) for name in ("", "ptmx", "-1", "9" * 30)] == [0] * 4


def test_the_folder_of_a_home() -> None:
    match = HOME.fullmatch(home_folder(127).removeprefix("/devfs/"))
    assert match
    assert match[1] == "127"


def test_device_numbers() -> None:
    assert encode_device(os.makedev(1, 3)) == 0x103
    assert encode_device(os.makedev(253, 0x12345)) == 0x1230FD45


def test_what_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "dev"
    (root / "pts").mkdir(parents=True)
    (root / "shm").mkdir()
    (root / "shm/file").touch()
    (root / "file").touch()
    (root / "link").symlink_to("/proc/self/fd")
    assert [look.name for look in list_folder(root, "")] == ["link", "pts", "shm"]
    assert list_folder(root, "shm") == []
    link = look_at(root, "link", "link")
    assert link
    assert link.target == "/proc/self/fd"
    assert stat.S_ISLNK(link.mode)
    assert Look.load(link.dump()) == link
    null = look_at(Path("/dev"), "null", "null")
    assert null
    assert null.rdev == os.makedev(1, 3)
    with pytest.raises(ProtocolError):
        Look.load({**link.dump(), "name": "a/b"})
    with pytest.raises(ProtocolError):
        Look.load({**link.dump(), "mode": 0o644})


def test_who_opens() -> None:
    caller = Caller(5, (1, 2, 3), (4, 5, 6), tuple(range(MAX_GROUPS + 5)))
    data = pack_opening(caller, "null")
    assert data.endswith(b"null")
    assert len(data) == 12 + 4 * MAX_GROUPS + 4


def test_ioctls() -> None:
    assert CONTROLS.items() <= DEVICE_CONTROLS.items()
    # LOOP_SET_FD, LOOP_CONFIGURE, TIOCSCTTY, TIOCCONS
    assert not {0x4C00, 0x4C0A, 0x540E, 0x541D} & DEVICE_CONTROLS.keys()


def test_streams_of_other_nodes() -> None:
    entry = streams.look_up(".stream127-ffffffffffff-10600-0")
    assert entry
    place = entry.attributes.node
    assert stat.S_ISFIFO(entry.attributes.mode)
    assert streams.is_stream(place)
    assert streams.find_stream(place) == (127, streams.MAX_STREAM)
    terminal = streams.look_up(".stream1-1-20600-8801")
    assert terminal
    assert terminal.attributes.rdev == encode_device(os.makedev(136, 1))
    assert not streams.is_stream(2)
    streams.check_opener(os.getpid())


@pytest.mark.parametrize(
    "name",
    [
        ".stream1-1-10666-0", ".stream1-1-60600-0", ".stream0-1-10600-0", ".stream256-1-10600-0",
        ".stream1-1000000000000-10600-0", ".stream1-1-10600", ".streams", "node1",
    ],
)  # fmt: skip
def test_no_streams(name: str) -> None:
    assert streams.look_up(name) is None
