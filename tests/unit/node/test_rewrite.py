"""Images are made fit for another node."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

from ssi.node.migration import rewrite
from ssi.node.migration.images import COMMON_MAGIC, Fields, Image
from ssi.node.migration.rewrite import FileType

READ, MMAP = 0, 9
NO_CALL = 2**64 - 1


def message(**values: int | bytes | Fields) -> Fields:
    """Return a message; `_3=7` is field 3."""
    fields = Fields()
    for name, value in values.items():
        fields.set(int(name[1:]), value.dump() if isinstance(value, Fields) else value)
    return fields


def write(path: Path, *entries: Fields) -> None:
    path.write_bytes(struct.pack("=II", COMMON_MAGIC, 1))
    found = Image(path)
    found.entries.extend(entries)
    found.save()


def read(path: Path) -> list[bytes]:
    return [entry.dump() for entry in Image(path).entries]


def core(ax: int, call: int) -> Fields:
    registers = message(_11=ax, _16=call, _17=0x1002)
    return message(
        _1=1, _2=message(_2=registers), _3=message(_1=1, _11=2, _12=0), _5=message(_1=7, _11=2)
    )


def test_files_are_found_by_descriptor(tmp_path: Path) -> None:
    write(
        tmp_path / "fdinfo-2.img",
        message(_1=5, _2=0, _3=FileType.TTY, _4=0), message(_1=5, _2=0, _3=FileType.TTY, _4=1),
        message(_1=6, _2=0, _3=FileType.REGULAR, _4=7),
    )  # fmt: skip
    assert rewrite.list_files(tmp_path) == {
        0: (5, FileType.TTY), 1: (5, FileType.TTY), 7: (6, FileType.REGULAR),
    }  # fmt: skip


def test_files_that_stay_are_the_plugins(tmp_path: Path) -> None:
    owner = message(_1=77)
    regular = message(_1=FileType.REGULAR, _2=1, _3=message(_1=1, _5=owner))
    pipe = message(_1=FileType.PIPE, _2=2, _18=message(_1=2, _2=99, _4=owner))
    tty = message(_1=FileType.TTY, _2=3, _19=message(_1=3, _4=owner))
    ours = message(_1=FileType.EXTERNAL, _2=4, _15=message(_1=4, _5=owner))
    write(tmp_path / "files.img", regular, pipe, tty, ours)
    write(
        tmp_path / "fdinfo-2.img",
        message(_1=1, _2=0, _3=FileType.REGULAR, _4=9), message(_1=2, _2=0, _3=FileType.PIPE, _4=1),
        message(_1=3, _2=0, _3=FileType.TTY, _4=0),
    )  # fmt: skip
    write(tmp_path / "tty-info.img")
    rewrite.make_external(tmp_path, {2, 3, 4})
    files = {entry.number(2): entry for entry in Image(tmp_path / "files.img").entries}
    assert files[1].dump() == regular.dump()
    assert files[4].dump() == ours.dump()
    for number, details in (2, 18), (3, 19):
        assert files[number].number(1) == FileType.EXTERNAL
        assert not files[number].has(details)
        assert files[number].text(15) == message(_1=number, _5=owner).dump()
    kinds = {fd: kind for fd, (_, kind) in rewrite.list_files(tmp_path).items()}
    assert kinds == {9: FileType.REGULAR, 1: FileType.EXTERNAL, 0: FileType.EXTERNAL}
    assert not (tmp_path / "tty-info.img").exists()


def test_half_a_pair_is_the_plugins_and_the_other_half_nobodys(tmp_path: Path) -> None:
    owner = message(_1=0, _2=0, _3=0, _4=0, _5=0)
    half = message(_1=FileType.UNIX, _2=2, _16=message(_1=2, _2=77, _6=4, _8=78, _9=owner))
    whole = message(_1=FileType.UNIX, _2=3, _16=message(_1=3, _2=80, _6=0, _8=81, _9=owner))
    of_another = message(_1=FileType.UNIX, _2=9, _16=message(_1=9, _2=78, _6=1, _8=0, _9=owner))
    write(tmp_path / "files.img", half, whole, of_another)
    write(tmp_path / "fdinfo-2.img", message(_1=2, _2=0, _3=FileType.UNIX, _4=5))
    rewrite.make_external(tmp_path, {2})
    files = {entry.number(2): entry for entry in Image(tmp_path / "files.img").entries}
    assert set(files) == {2, 3}
    assert files[3].dump() == whole.dump()
    assert files[2].number(1) == FileType.EXTERNAL
    assert files[2].text(15) == message(_1=2, _5=owner).dump()
    assert rewrite.list_files(tmp_path) == {5: (2, FileType.EXTERNAL)}


def test_the_filter_stays_behind(tmp_path: Path) -> None:
    write(tmp_path / "seccomp.img")
    write(tmp_path / "files.img")
    write(tmp_path / "core-1.img", core(0, READ))
    rewrite.free_from_node(tmp_path)
    assert not (tmp_path / "seccomp.img").exists()
    (entry,) = Image(tmp_path / "core-1.img").entries
    assert entry.text(3) == message(_1=1).dump()
    assert entry.text(5) == message(_1=7).dump()


def test_what_only_the_freeze_has_interrupted_begins_again(tmp_path: Path) -> None:
    interrupted = 2**64 - errno.EINTR
    write(tmp_path / "files.img")
    for number, (ax, call) in enumerate([(interrupted, READ), (interrupted, MMAP), (5, READ)]):
        write(tmp_path / f"core-{number}.img", core(ax, call))
    rewrite.free_from_node(tmp_path)
    found = []
    for number in range(3):
        (entry,) = Image(tmp_path / f"core-{number}.img").entries
        registers = Fields(Fields(entry.text(2)).text(2))
        found.append(tuple(registers.number(field) for field in (11, 16, 17)))
    assert found == [(READ, NO_CALL, 0x1000), (interrupted, MMAP, 0x1002), (5, READ, 0x1002)]


def test_a_leader_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "pstree.img", message(_1=40, _2=0, _3=38, _4=37, _5=40))
    rewrite.lead_session(tmp_path)
    assert read(tmp_path / "pstree.img") == [message(_1=40, _2=0, _3=40, _4=40, _5=40).dump()]
