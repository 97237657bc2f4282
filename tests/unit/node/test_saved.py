"""Files of processes that were saved: only what was signed, and is whole, is believed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.migration import belongings, saved, terminals
from ssi.node.migration.belongings import Belongings, File
from ssi.node.migration.clocks import Clocks
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.images import COMMON_MAGIC, Fields, Image
from ssi.node.migration.restarts import check_rights, lower_limits
from ssi.node.migration.rewrite import FileType, list_files
from ssi.node.migration.saved import BadFile, Saved, Source
from ssi.node.process.caller import Caller

KEY = b"k" * 32
PROGRAM = File("/bin/sleep", "1:aa", "100755 0 0", 5, 7)
DATA = File("/srv/data", "1:bb", "100644 0 0", 5, 7, writable=True)
OWN = Belongings(PROGRAM, PROGRAM, {0: None, 3: DATA}, [(4096, 8192, PROGRAM)])
SAVED = Saved(
    100000, [100000, 100001], ["sleep", "9"], (1000,) * 3, (1000,) * 3, (7,), 3, 10**9, "7.2",
    ["sse"], 10, Clocks(1, 2, 3), [(5, 0)], OWN,
)  # fmt: skip


def write(folder: Path, key: bytes = KEY) -> bytes:
    """Return a file with two images."""
    folder.mkdir(exist_ok=True)
    (folder / "a.img").write_bytes(b"first")
    (folder / "b.img").write_bytes(b"second" * 1000)
    head = saved.render_head(SAVED.with_images(saved.digest_images(folder)), key)
    return head + b"first" + b"second" * 1000


def read(data: bytes, folder: Path, piece: int = 700) -> Saved:
    """Return what a file says, and have its images in a folder."""
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    async def give() -> bytes:
        return pieces.pop(0) if pieces else b""

    async def receive() -> Saved:
        source = Source(give)
        found = await saved.receive_head(source, KEY)
        await saved.receive_images(source, found, folder)
        return found

    folder.mkdir()
    return asyncio.run(receive())


@pytest.mark.parametrize("piece", [1, 700, 10**6])
def test_what_was_written_is_read(tmp_path: Path, piece: int) -> None:
    found = read(write(tmp_path / "from"), tmp_path / "to", piece)
    assert found.dump() == {**SAVED.dump(), "images": found.dump()["images"]} | {
        key: list(getattr(SAVED, key)) for key in ("uids", "gids", "groups")
    }
    assert found.belongings == OWN
    assert (tmp_path / "to/b.img").read_bytes() == b"second" * 1000


SPOILED: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data.replace(b'"pid":100000', b'"pid":100002'), "not written by this cluster"),
    (lambda data: data.replace(b"checkpoint 1", b"checkpoint 2"), "another version"),
    (lambda data: data[:-1] + b"x", "changed since"),
    (lambda data: data[:-1], "its end is missing"),
    (lambda data: data[: data.rindex(b"}\n") + 20], "not whole"),
    (lambda data: data + b"x", "something was added"),
    (lambda _: b"", "no process that was saved"),
    (lambda _: os.urandom(10000), "no process that was saved"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILED)
def test_what_was_not_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    data = spoil(write(tmp_path / "from"))
    with pytest.raises(BadFile, match=reason):
        read(data, tmp_path / "to")


def test_another_clusters_is_refused_before_its_images(tmp_path: Path) -> None:
    data = write(tmp_path / "from", b"x" * 32)
    with pytest.raises(BadFile, match="not written by this cluster"):
        read(data, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize("name", ["../a.img", "a", "/x.img"])
def test_images_stay_in_their_folder(name: str) -> None:
    with pytest.raises(ProtocolError):
        saved.Image.load({"name": name, "size": 1, "digest": ""})


def test_the_key_is_made_once_and_for_root(tmp_path: Path) -> None:
    path = tmp_path / "deep/key"
    key = saved.read_key(path)
    assert len(key) == 32
    assert saved.read_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["key"]
    path.write_bytes(b"short")
    with pytest.raises(BadFile):
        saved.read_key(path)


OTHER = dataclasses.replace(DATA, identity="1:cc")
CHMOD = dataclasses.replace(DATA, rights="100666 0 0")


@pytest.mark.parametrize(
    "now",
    [
        dataclasses.replace(OWN, program=OTHER), dataclasses.replace(OWN, folder=OTHER),
        dataclasses.replace(OWN, descriptors={0: None, 3: OTHER}),
        dataclasses.replace(OWN, descriptors={0: None, 3: CHMOD}),
        dataclasses.replace(OWN, descriptors={0: None, 3: None}),
        dataclasses.replace(OWN, descriptors={0: DATA}),
        dataclasses.replace(OWN, descriptors={0: None, 4: DATA}),
        dataclasses.replace(OWN, mappings=[(4096, 8192, OTHER)]),
        dataclasses.replace(OWN, mappings=[(8192, 12288, PROGRAM)]),
        dataclasses.replace(OWN, mappings=[(4096, 8192, None)]),
    ],
)  # fmt: skip
def test_other_files_are_seen(now: Belongings) -> None:
    with pytest.raises(CannotMove, match="another file"):
        OWN.check_restored(now, ())


def test_the_same_files_and_terminals_are_right() -> None:
    grown = dataclasses.replace(DATA, size=9, changed_ns=9)
    now = dataclasses.replace(
        OWN, descriptors={0: OTHER, 3: grown}, mappings=[(4096, 6000, PROGRAM)]
    )
    OWN.check_restored(now, {0})


def test_which_files_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belongings, "SYSROOT", tmp_path)
    monkeypatch.setattr(belongings, "identify", lambda path, **_: Path(path).read_text()[:1])
    for name in ("log", "read"):
        (tmp_path / name).write_text("xyz")
    status = (tmp_path / "read").stat()
    rights = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
    changed = status.st_mtime_ns
    only_read = File("/read", "x", rights, 3, changed)
    log = File("/log", "x", rights, 2, 0, writable=True)

    def find(program: File, data: File) -> dict[str, int]:
        return belongings.find_sizes(Belongings(program, program, {1: data}, []))

    assert find(only_read, log) == {"/log": 3}
    for wrong, reason in (
        (dataclasses.replace(only_read, changed_ns=changed - 1), "changed since"),
        (dataclasses.replace(only_read, size=2), "changed since"),
        (dataclasses.replace(only_read, identity="y"), "another file"),
        (dataclasses.replace(only_read, rights="100600 0 0"), "owner or mode"),
        (dataclasses.replace(only_read, path="/gone"), "not there"),
    ):
        with pytest.raises(CannotMove, match=reason):
            find(wrong, log)
    with pytest.raises(CannotMove, match="shorter"):
        find(only_read, dataclasses.replace(log, size=4))


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "may"),
    [
        (1000, 1000, (7,), True), (1000, 1000, (7, 8), True), (0, 0, (), True),
        (1001, 1000, (7,), False), (1000, 1000, (), False), (1000, 7, (), False),
    ],
)  # fmt: skip
def test_who_may_be_what_was_saved(
    uid: int, gid: int, groups: tuple[int, ...], *, may: bool
) -> None:
    caller = Caller(1, (uid,) * 3, (gid,) * 3, groups)
    if may:
        check_rights(SAVED, caller)
        return
    with pytest.raises(CannotMove):
        check_rights(SAVED, caller)


def test_limits_are_those_of_who_restarts() -> None:
    with subprocess.Popen(["sleep", "100"]) as first, subprocess.Popen(["sleep", "100"]) as second:
        resource.prlimit(first.pid, resource.RLIMIT_NOFILE, (100, 200))
        resource.prlimit(second.pid, resource.RLIMIT_NOFILE, (150, 1000))
        resource.prlimit(first.pid, resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
        resource.prlimit(second.pid, resource.RLIMIT_CORE, (0, 5))
        os.setpriority(os.PRIO_PROCESS, first.pid, 5)
        lower_limits(second.pid, first.pid)
        assert resource.prlimit(second.pid, resource.RLIMIT_NOFILE) == (150, 200)
        assert resource.prlimit(second.pid, resource.RLIMIT_CORE) == (0, 5)
        assert os.getpriority(os.PRIO_PROCESS, second.pid) == 5
        first.kill()
        second.kill()


def message(**values: int | Fields) -> Fields:
    """Return a message; `_3=7` is field 3."""
    fields = Fields()
    for name, value in values.items():
        fields.set(int(name[1:]), value.dump() if isinstance(value, Fields) else value)
    return fields


def put(path: Path, *entries: Fields) -> None:
    path.write_bytes(COMMON_MAGIC.to_bytes(4, "little") + bytes(4))
    image = Image(path)
    image.entries.extend(entries)
    image.save()


def test_each_standard_descriptor_gets_its_own_entry(tmp_path: Path) -> None:
    tty = message(_1=FileType.TTY, _2=3, _19=message(_1=3, _4=message(_1=1)))
    plain = message(_1=FileType.REGULAR, _2=4, _3=message(_1=4))
    put(tmp_path / "files.img", tty, plain)
    numbers = {0: 3, 1: 3, 2: 3, 5: 3, 6: 4}
    put(
        tmp_path / "fdinfo-2.img",
        *(
            message(_1=entry, _2=0, _3=FileType.REGULAR if entry == 4 else FileType.TTY, _4=fd)
            for fd, entry in numbers.items()
        ),
    )  # fmt: skip
    assert terminals.free(tmp_path, [0, 1, 2, 5]) == [(3, 0), (5, 1), (6, 2)]
    external = FileType.EXTERNAL
    assert list_files(tmp_path) == {
        0: (3, external), 1: (5, external), 2: (6, external), 5: (3, external),
        6: (4, FileType.REGULAR),
    }  # fmt: skip
    details = [Fields(one.text(15)).number(1) for one in Image(tmp_path / "files.img").entries]
    assert details == [3, 0, 5, 6]
