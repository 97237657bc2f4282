"""The clusterwide /proc: the wire to the kernel, places, rows, sums, and what a node tells."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssi.common.errors import ProtocolError
from ssi.common.wire import Message, decode, encode
from ssi.node.ics.answering import Call
from ssi.node.ics.parts import Nowhere, Receiver, Sender
from ssi.node.proc import fuse, own
from ssi.node.proc.files import read_file
from ssi.node.proc.own import Own
from ssi.node.proc.places import (
    NAMES,
    NAMESPACES,
    SYSTEM,
    TABLE,
    Place,
    local_node,
    place_of,
    system_node,
    system_of,
)
from ssi.node.proc.rows import Memory, Row, mask_stat, split_stat
from ssi.node.proc.system import merge_loadavg, merge_meminfo, merge_stat

STAT = (
    "98310 (a ) (b) S 98309 98310 98310 1025 98310 4194560 183 0 30 0 7 5 0 0 20 0 1 0 269 "
    f"5316608 711 {' '.join(map(str, range(25, 53)))}\n"
)
STATUS = """\
Name:\ta ) (b
Uid:\t1001\t1001\t1001\t1001
Gid:\t1001\t1001\t1001\t1001
VmSize:\t    5192 kB
VmRSS:\t    2844 kB
RssFile:\t    2600 kB
RssShmem:\t      12 kB
VmData:\t     256 kB
VmStk:\t     132 kB
VmExe:\t      64 kB
"""
ROW = Row(98310, STAT, STATUS, Memory(b"a\0b\0", b"X=\xff\0", 1001, 1001))


# -- the wire ------------------------------------------------------------------------------------


def pack_request(op: int, body: bytes, *, unique: int = 7, node: int = 1) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), op, unique, node, 1001, 1001, 99, 0, 0) + body


def test_a_request_is_parsed() -> None:
    request = fuse.parse_request(pack_request(fuse.Op.LOOKUP, b"98310\0", node=5))
    assert (request.op, request.node, request.uid, request.pid) == (fuse.Op.LOOKUP, 5, 1001, 99)
    assert request.name == "98310"
    body = struct.pack("=QQII", 1, 2, 3, 0) + bytes(16)
    assert fuse.parse_request(pack_request(fuse.Op.READ, body)).reading == (1, 2, 3)


@pytest.mark.parametrize("data", [b"", bytes(39), pack_request(1, b"x\0")[:-1], bytes(64)])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        fuse.parse_request(data)


def test_sizes_are_the_kernels() -> None:
    attributes = fuse.Attributes(9, FOLDER_MODE, 10, 1, 2, 3_000_000_004, fuse.ELSEWHERE)
    assert len(attributes.pack()) == 88
    assert len(fuse.Entry(attributes).pack()) == 128 == len(fuse.NO_ENTRY)
    assert len(fuse.pack_attributes(attributes, 1.5)) == 104
    assert fuse.pack_attributes(attributes, 1.5)[:12] == struct.pack("=QI", 1, 500_000_000)
    assert len(fuse.pack_init(struct.pack("=IIIII", 7, 45, 0, 1 << 30, 128) + bytes(44))) == 64
    assert len(fuse.pack_dirent("12345678", 1, stat.S_IFDIR)) == 32
    assert len(fuse.pack_dirent("123456789", 1, stat.S_IFDIR)) == 40
    assert fuse.pack_dirent("1", 1, stat.S_IFDIR)[20] == 4  # DT_DIR
    assert fuse.pack_reply(7, b"abc", 2) == struct.pack("=IiQ", 19, -2, 7) + b"abc"


FOLDER_MODE = stat.S_IFDIR | 0o555


def test_only_what_the_kernel_offers_is_taken() -> None:
    offered = fuse.INIT_EXT | fuse.DO_READDIRPLUS
    answer = fuse.pack_init(struct.pack("=IIIII", 7, 45, 0, offered, 0) + bytes(44))
    assert struct.unpack_from("=I", answer, 12)[0] == offered
    with pytest.raises(ProtocolError):
        fuse.pack_init(struct.pack("=IIIII", 6, 0, 0, 0, 0))


# -- places --------------------------------------------------------------------------------------


def test_a_place_is_its_number() -> None:
    places = [
        *(Place(4194303, name) for name in ["", *NAMES]),
        *(Place(32768, "fd", number) for number in (0, 1 << 20)),
        *(Place(32768, "ns", number) for number in range(len(NAMESPACES))),
        *(Place(32768, "task", 4194303, name) for name in ["", *NAMES]),
    ]
    numbers = [place.node for place in places]
    assert [place_of(number) for number in numbers] == places
    others = [fuse.ROOT, *map(system_node, SYSTEM), *map(local_node, ("1", "self", "99999"))]
    assert len({*numbers, *others}) == len(numbers) + len(others)
    assert all(place_of(number) is None for number in others)
    assert [system_of(number) for number in others[:2]] == [None, SYSTEM[0]]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (Place(40000), "nothing"), (Place(40000, "fd"), "-1"), (Place(40000, "fd"), "01"),
        (Place(40000, "fd"), "²"), (Place(40000, "ns"), "0"), (Place(40000, "stat"), "stat"),
        (Place(40000, "fd", 3), "stat"), (Place(40000, "task", 5, "stat"), "stat"),
        (Place(40000, "task"), ".."),
    ],
)  # fmt: skip
def test_what_is_nowhere(folder: Place, name: str) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        folder.child(name)
    assert raised.value.errno == 2


def test_paths() -> None:
    task = Place(40000).child("task").child("40001")
    assert task.child("status").path == "task/40001/status"
    assert Place(40000).child("ns").child("mnt").path == "ns/mnt"
    assert Place(40000).child("fd").child("3").path == "fd/3"


# -- rows ----------------------------------------------------------------------------------------


def test_a_row_goes_over_the_wire() -> None:
    assert Row.load(decode(encode(ROW.dump()))) == ROW
    odd = Row(98310, STAT.replace("a )", "\xff\n"), STATUS, Memory())
    assert Row.load(decode(encode(odd.dump()))) == odd


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 0}, {"pid": "1"}, {"stat": ""}, {"stat": "1 (x) S 1"}, {"stat": STAT + "\u0100"},
        {"status": None}, {"cmdline": "?"}, {"uid": -1}, {"gid": 2**32},
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused(wrong: Mapping[str, object]) -> None:
    with pytest.raises(ProtocolError):
        Row.load({**ROW.dump(), **wrong})


def test_files_are_made_of_a_row() -> None:
    assert ROW.render("comm", 3, 0) == b"a ) (b\n"
    assert ROW.render("where", 3, 0) == b"3\n"
    assert ROW.render("statm", 3, 0) == b"1298 711 653 16 0 97 0\n"
    assert ROW.render("environ", 3, 0) == b"X=\xff\0"
    assert {name: type(ROW.render(name, 3, 0)) for name in TABLE} == dict.fromkeys(TABLE, bytes)


def test_start_times_are_the_readers() -> None:
    for shift, start in ((100, "369"), (-100, "169"), (-1000, "0")):
        text = ROW.render("stat", 3, shift).decode()
        assert split_stat(text)[1][19] == start
        assert text.split()[20:] == STAT.replace(" 269 ", f" {start} ").split()[20:]


def test_addresses_are_nobodys_business() -> None:
    fields = split_stat(mask_stat(STAT))[1]
    assert [fields[number - 3] for number in (26, 28, 30, 45, 51)] == ["0"] * 5
    assert fields[:4] == ["S", "98309", "98310", "98310"]
    assert fields[4] == "1025"
    assert split_stat(mask_stat(STAT, 34816))[1][4] == "34816"


def test_statm_is_as_the_kernel_has_it() -> None:
    row = Row(1, STAT, Path("/proc/self/status").read_text(), Memory())
    real = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    made = [int(word) for word in row.render("statm", 1, 0).split()]
    assert all(abs(a - b) < 300 for a, b in zip(made, real, strict=True)), (made, real)


# -- sums ----------------------------------------------------------------------------------------


def test_loads_are_added() -> None:
    texts = ["0.50 0.25 0.10 1/50 99\n", "1.00 1.00 1.00 2/60 40000\n"]
    assert merge_loadavg(texts, texts[1]) == "1.50 1.25 1.10 3/110 40000\n"


def test_processors_are_numbered_on() -> None:
    first = "cpu  1 2 3\ncpu0 1 2 3\nintr 5 0\nctxt 7\nbtime 100\nprocesses 4\n"
    second = (
        "cpu  10 20 30 1\ncpu0 4 10 10\ncpu1 6 10 20\nintr 6 0\nctxt 3\nbtime 200\nprocesses 5\n"
    )
    assert merge_stat([first, second], second) == (
        "cpu  11 22 33 1\ncpu0 1 2 3\ncpu1 4 10 10\ncpu2 6 10 20\n"
        "intr 6 0\nctxt 10\nbtime 200\nprocesses 9\n"
    )


def test_memory_is_added() -> None:
    text = "MemTotal:         100 kB\nHugePages_Total:       1\nHugepagesize:       2048 kB\n"
    other = "MemTotal:          50 kB\nSomething:  3 kB\n"
    assert merge_meminfo([text, other], text).splitlines() == [
        "MemTotal:            150 kB", "HugePages_Total:        1", "Hugepagesize:       2048 kB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("merge", "text"),
    [(merge_loadavg, "much"), (merge_stat, "cpu  x"), (merge_meminfo, "MemTotal: some kB")],
)
def test_nonsense_is_not_added(merge: Callable[[Sequence[str], str], str], text: str) -> None:
    with pytest.raises(ProtocolError):
        merge([text], text)


# -- what a node tells ---------------------------------------------------------------------------


class Told(Sender):
    """Parts of an answer."""

    def __init__(self) -> None:
        super().__init__(1, Nowhere())
        self.rows: list[Row] = []

    async def send(self, body: Mapping[str, object]) -> None:
        """Take a part."""
        rows = body["rows"]
        assert isinstance(rows, list)
        self.rows += map(Row.load, rows)


async def ask(asked: Own, life: str = "", since: int = 0) -> tuple[dict[int, Row], Message]:
    told = Told()
    call = Call(2, "processes", {"life": life, "since": since}, told, Receiver(1, Nowhere()))
    answer = await asked.answer(call)
    rows = [*told.rows, *map(Row.load, answer["rows"])]
    return {row.pid: row for row in rows}, answer


def test_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "RANGE", 2)
    monkeypatch.setattr(own, "FRESH_S", 0.0)

    async def look(child: subprocess.Popen[bytes]) -> None:
        asked = Own(SimpleNamespace(hidden=set(), arriving=set(), terminals={}))
        rows, first = await ask(asked)
        assert first["whole"]
        assert rows[child.pid].memory.uid == os.getuid()
        assert {os.getpid(), child.pid} <= rows.keys()
        rows, second = await ask(asked, first["life"], first["number"])
        assert not second["whole"]
        assert child.pid not in second["gone"]
        child.kill()
        child.wait()
        rows, third = await ask(asked, first["life"], second["number"])
        assert child.pid in third["gone"]
        assert child.pid not in rows
        rows, again = await ask(asked, "another daemon's", 1)
        assert again["whole"]
        assert os.getpid() in rows
        asked.close()

    with subprocess.Popen(["sleep", "100"], env={"A": "b"}) as child:
        asyncio.run(look(child))


def test_no_file_is_open_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "RANGE", 2)
    monkeypatch.setattr(own, "QUIET_S", 0.01)

    def is_open() -> bool:
        fds = Path("/proc/self/fd").iterdir()
        return any(os.path.realpath(fd).endswith(f"/{os.getpid()}/stat") for fd in fds)

    async def look() -> None:
        asked = Own(SimpleNamespace(hidden=set(), arriving=set(), terminals={}))
        _, first = await ask(asked)
        assert is_open()
        async with asyncio.timeout(10):
            while is_open():  # noqa: ASYNC110 nothing tells of it
                await asyncio.sleep(0.01)
        rows, _ = await ask(asked, first["life"], 0)
        assert os.getpid() in rows
        asked.close()

    asyncio.run(look())


def test_placeholders_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "RANGE", 2)

    class Two:
        hidden = frozenset({os.getpid()})
        arriving = frozenset[int]()
        terminals: Mapping[int, int] = {os.getppid(): 34816}

    async def look() -> None:
        asked = Own(Two())
        rows, _ = await ask(asked)
        asked.close()
        assert os.getpid() not in rows
        assert split_stat(rows[os.getppid()].stat)[1][4] == "34816"

    asyncio.run(look())


def test_a_file_is_given_by_the_callers_right() -> None:
    pid = os.getpid()
    stranger = os.getuid() + 1
    assert read_file(Place(pid, "limits"), stranger)
    assert str(pid).encode() in read_file(Place(pid, "task"), stranger).split(b"\n")
    for place in (Place(pid, "maps"), Place(pid, "exe"), Place(pid, "fd"), Place(pid, "fd", 0)):
        assert read_file(place, os.getuid())
        with pytest.raises(PermissionError):
            read_file(place, stranger)
