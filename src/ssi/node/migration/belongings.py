"""The files that a process has open, mapped or runs from, told apart by more than their names.

A process that was saved gets them back by their names, from CRIU, which is root: whoever owns a
folder could have put another file there meanwhile. So they are compared when it is restored and
held. A file's handle (name_to_handle_at) is never another's, also when its inode is used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.migration.criu import CannotMove
from ssi.node.root import SYSROOT
from ssi.node.smallfiles import read_text

_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400
_MOST_BYTES = 128
_FLAGS = re.compile(r"flags:\s*([0-7]+)")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+)")


class _Handle(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * _MOST_BYTES)
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file that has a name, as a process has it."""

    path: str
    identity: str
    rights: str
    """Mode, owner and group."""
    size: int
    changed_ns: int
    writable: bool = False
    """It has been opened for writing."""

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> File:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            wire.get_text(message, "path"), wire.get_text(message, "identity"),
            wire.get_text(message, "rights"),
            wire.get_int(message, "size", 0, 2**63), wire.get_int(message, "changed_ns", 0, 2**63),
            wire.get_flag(message, "writable"),
        )  # fmt: skip


def identify(path: str, *, follow: bool = True) -> str:
    """Return what no other file has; raises OSError. `follow`: of where a link leads."""
    handle, mount = _Handle(size=_MOST_BYTES), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.name_to_handle_at(
        _AT_FDCWD,
        os.fsencode(path),
        ctypes.byref(handle),
        ctypes.byref(mount),
        _AT_SYMLINK_FOLLOW if follow else 0,
    )
    if failed:
        raise OSError(ctypes.get_errno(), "no handle of a file", path)
    return f"{handle.kind}:{bytes(handle.data[: handle.size]).hex()}"


def _read_file(link: str, *, writable: bool = False) -> File | None:
    """Return the file that a link in /proc leads to; None for what is not found by a name."""
    status = Path(link).stat()
    path = os.readlink(link).removeprefix(str(SYSROOT))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return File(path, f"device {status.st_rdev}", "", 0, 0)
    is_named = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    if not (is_named or (stat.S_ISFIFO(status.st_mode) and path.startswith("/"))):
        return None
    if not status.st_nlink:
        return None  # deleted, or never had a name
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    changed = status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0
    return File(path, identify(link), _rights_of(status), size, changed, writable)


def _rights_of(status: os.stat_result) -> str:
    return f"{status.st_mode:o} {status.st_uid} {status.st_gid}"


Mapping_ = tuple[int, int, File | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Belongings:
    """All of one process."""

    program: File
    folder: File
    descriptors: Mapping[int, File | None]
    mappings: Collection[Mapping_]
    """First address, end, and what is mapped there."""

    @classmethod
    def read(cls, pid: int) -> Belongings:
        """Return those of a process that does not run meanwhile; raises OSError."""
        top = f"/proc/{pid}"
        program, folder = _read_file(f"{top}/exe"), _read_file(f"{top}/cwd")
        if program is None or folder is None:
            what = "program" if program is None else "working directory"
            raise CannotMove(f"its {what} has been deleted", number=errno.EBUSY)
        return cls(program, folder, dict(_read_descriptors(top)), list(_read_mappings(top)))

    def dump(self) -> Message:
        """Return it as a message; each file once."""
        files: dict[File, int] = {}

        def number(file: File | None) -> int:
            return -1 if file is None else files.setdefault(file, len(files))

        found: Message = {
            "program": number(self.program), "folder": number(self.folder),
            "descriptors": [[fd, number(file)] for fd, file in self.descriptors.items()],
            "mappings": [[begin, end, number(file)] for begin, end, file in self.mappings],
        }  # fmt: skip
        return {**found, "files": [file.dump() for file in files]}

    @classmethod
    def load(cls, message: Message) -> Belongings:
        """Read it from a message, or raise ProtocolError."""
        files = [File.load(one) for one in wire.get_objects(message, "files")]

        def file(number: object) -> File | None:
            if not isinstance(number, int) or not -1 <= number < len(files):
                raise ProtocolError(f"file {number!r:.60}")
            return None if number < 0 else files[number]

        program, folder = file(message.get("program")), file(message.get("folder"))
        if program is None or folder is None:
            raise ProtocolError("no program, or no folder")
        try:
            descriptors = {int(fd): file(one) for fd, one in message["descriptors"]}
            mappings = [(int(a), int(b), file(one)) for a, b, one in message["mappings"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("no descriptors, or no mappings") from error
        return cls(program, folder, descriptors, mappings)

    def list_named(self) -> Iterator[File]:
        """Give each file that is to be found by its name again."""
        mapped = (file for _, _, file in self.mappings)
        for file in dict.fromkeys((self.program, self.folder, *self.descriptors.values(), *mapped)):
            if file and not file.identity.startswith("device"):
                yield file

    def check_restored(self, now: Belongings, others: Collection[int]) -> None:
        """Raise CannotMove unless what was restored has the files of what was saved.

        `others` are descriptors that are to lead elsewhere now.
        """
        _check_same(self.program, now.program)
        _check_same(self.folder, now.folder)
        for fd, file in now.descriptors.items():
            if fd not in others:
                _check_same(self.descriptors.get(fd), file)
        for begin, _, file in now.mappings:
            was = (one for first, end, one in self.mappings if first <= begin < end)
            _check_same(next(was, None), file)


def _check_same(was: File | None, now: File | None) -> None:
    if was is None or now is None:
        if either := was or now:
            raise CannotMove(f"{either.path} is another file by now")
    elif (was.identity, was.rights) != (now.identity, now.rights):
        raise CannotMove(f"{was.path} is another file by now")


def _read_descriptors(top: str) -> Iterator[tuple[int, File | None]]:
    for fd in sorted(int(name) for name in os.listdir(f"{top}/fd")):
        flags = int(_FLAGS.findall(read_text(f"{top}/fdinfo/{fd}"))[0], 8)
        writable = flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH
        yield fd, _read_file(f"{top}/fd/{fd}", writable=writable)


def _read_mappings(top: str) -> Iterator[Mapping_]:
    for name in os.listdir(f"{top}/map_files"):
        found = _MAPPING.fullmatch(name)
        if found:
            file = _read_file(f"{top}/map_files/{name}")
            yield int(found[1], 16), int(found[2], 16), file


def find_sizes(belongings: Belongings) -> dict[str, int]:
    """Return how long each file is that may have become longer since; raises CannotMove.

    What was open for writing may have grown; all else must be what it was.
    """
    sizes: dict[str, int] = {}
    for file in belongings.list_named():
        there = f"{SYSROOT}{file.path}"
        with contextlib.suppress(OSError):
            status = Path(there).lstat()
            if identify(there, follow=False) != file.identity:
                raise CannotMove(f"{file.path} is another file by now")
            if _rights_of(status) != file.rights:
                raise CannotMove(f"{file.path} has another owner or mode by now")
            if file.writable and status.st_size >= file.size:
                sizes[file.path] = status.st_size
            elif stat.S_ISREG(status.st_mode):
                _check_unchanged(file, status)
            continue
        raise CannotMove(f"{file.path} is not there any more")
    return sizes


def _check_unchanged(file: File, status: os.stat_result) -> None:
    if status.st_size < file.size:
        raise CannotMove(f"{file.path} has become shorter")
    if (status.st_size, status.st_mtime_ns) != (file.size, file.changed_ns):
        raise CannotMove(f"{file.path} has been changed since")
