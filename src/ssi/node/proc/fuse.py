"""The FUSE protocol as far as /proc needs it: linux/fuse.h in Python.

Pure: bytes in, values out, and the other way round. Numbers are of this machine's byte order.
"""

from __future__ import annotations

import dataclasses
import enum
import struct

from ssi.common.errors import ProtocolError


class Op(enum.IntEnum):
    """Requests of the kernel; what is not named here is answered by ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    OPEN = 14
    READ = 15
    WRITE = 16
    MKNOD = 8
    UNLINK = 10
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET})

MINOR = 45
ROOT = 1
BUFFER = 1 << 18
"""Bytes of the largest request, with room to spare: the kernel wants 8 KiB at least."""

# What is negotiated.
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
HAS_RESEND = 1 << 39
WANTED = (
    AUTO_INVAL_DATA | DO_READDIRPLUS | NO_OPEN_SUPPORT | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT
    | HAS_RESEND
)  # fmt: skip

ELSEWHERE = 1 << 31
"""A flag of attributes: the entry of the root is the real procfs's (fuse-elsewhere.patch)."""

UNSIZED = 1 << 30
"""A flag of attributes: every read is asked for, and no size counts (fuse-unsized.patch)."""

FOREIGN = 1 << 29
"""A flag of attributes: a device of another kernel (fuse-foreign.patch)."""

RESENT = 1 << 63
"""Set in the number of a request that is repeated."""

COVERED = 1 << 28
"""A flag of attributes: what is at the same place below the mount (fuse-covered.patch)."""

TERMINAL = 1 << 27
"""A flag of such a one: /dev/tty."""

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RESEND = 7

_HEAD = struct.Struct("=IIQQIIIHH")
_REPLY = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_OUT = struct.Struct("=QII")
_DIRENT = struct.Struct("=QQII")
_READ = struct.Struct("=QQII")
_WRITE = struct.Struct("=QQIIQII")
_WRITTEN = struct.Struct("=II")
_UNIQUE = struct.Struct("=Q")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_OPEN_OUT = struct.Struct("=QIi")
_INVAL_INODE = struct.Struct("=Qqq")
_INVAL_ENTRY = struct.Struct("=QII")
_STORE = struct.Struct("=QQII")

NANO = 10**9

ERESTARTSYS = 512
"""The answer to a request that was interrupted: the kernel makes EINTR of it, or begins anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request: what is wanted of which node, and who asks."""

    unique: int
    op: int
    node: int
    uid: int
    pid: int
    """A thread; 0 if it is not of this PID namespace."""
    body: bytes

    @property
    def name(self) -> str:
        """The name of a LOOKUP."""
        return self.body.rstrip(b"\0").decode(errors="surrogateescape")

    @property
    def reading(self) -> tuple[int, int, int]:
        """Of READ and READDIR: handle, offset and size."""
        handle, offset, size, _ = _READ.unpack_from(self.body)
        return handle, offset, size

    @property
    def written(self) -> bytes:
        """Of WRITE: the data."""
        return self.body[_WRITE.size :]

    @property
    def interrupted(self) -> int:
        """Of INTERRUPT: which request has been interrupted."""
        number: int = _UNIQUE.unpack_from(self.body)[0]
        return number


@dataclasses.dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows of a node. `mtime_ns` also says whether what the kernel has cached is old."""

    node: int
    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    flags: int = 0
    rdev: int = 0
    """As the kernel has it in 32 bits."""
    links: int = 1

    def pack(self) -> bytes:
        """Return it as struct fuse_attr."""
        seconds, rest = divmod(self.mtime_ns, NANO)
        return _ATTR.pack(
            self.node, self.size, 0, seconds, seconds, seconds, rest, rest, rest,
            self.mode, self.links, self.uid, self.gid, self.rdev, 4096, self.flags,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A name's node, and for how many seconds the kernel need not ask about name and attributes."""

    attributes: Attributes
    name_s: float = 0.0
    attributes_s: float = 0.0
    generation: int = 0

    def pack(self) -> bytes:
        """Return it as struct fuse_entry_out."""
        names, attributes = (divmod(int(s * NANO), NANO) for s in (self.name_s, self.attributes_s))
        return (
            _ENTRY.pack(
                self.attributes.node, self.generation, names[0], attributes[0], names[1],
                attributes[1],
            )
            + self.attributes.pack()
        )  # fmt: skip


NO_ENTRY = bytes(_ENTRY.size + _ATTR.size)
"""In a listing: the kernel is to ask about this name when it wants to know."""


def pack_nothing(valid_s: float) -> bytes:
    """Return the answer to a LOOKUP of what will not be there for so long."""
    return Entry(Attributes(0, 0), valid_s).pack()


def parse_request(data: bytes) -> Request:
    """Return the request in `data`, or raise ProtocolError."""
    if len(data) < _HEAD.size:
        raise ProtocolError(f"a FUSE request of {len(data)} bytes")
    length, op, unique, node, uid, _, pid, _, _ = _HEAD.unpack_from(data)
    if length != len(data):
        raise ProtocolError(f"a FUSE request of {len(data)} bytes that says {length}")
    return Request(unique, op, node, uid, pid, data[_HEAD.size :])


def pack_reply(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    """Return the answer to request `unique`."""
    return _REPLY.pack(_REPLY.size + len(body), -error, unique) + body


def pack_init(body: bytes) -> bytes:
    """Return the answer to INIT; raises ProtocolError if the kernel speaks another language."""
    major, minor, readahead, offered = _INIT_IN.unpack_from(body)
    if major != 7:
        raise ProtocolError(f"FUSE {major}.{minor}")
    if offered & INIT_EXT:
        offered |= struct.unpack_from("=I", body, _INIT_IN.size)[0] << 32
    flags = offered & WANTED
    return _INIT_OUT.pack(
        7, min(minor, MINOR), readahead, flags & 0xFFFFFFFF, 16, 12, 1 << 17, 1, 32, 0,
        flags >> 32, 0, 0,
    )  # fmt: skip


def pack_attributes(attributes: Attributes, valid_s: float) -> bytes:
    """Return the answer to GETATTR."""
    seconds, rest = divmod(int(valid_s * NANO), NANO)
    return _ATTR_OUT.pack(seconds, rest, 0) + attributes.pack()


def pack_open(handle: int) -> bytes:
    """Return the answer to OPENDIR."""
    return _OPEN_OUT.pack(handle, 0, 0)


def pack_written(size: int) -> bytes:
    """Return the answer to WRITE."""
    return _WRITTEN.pack(size, 0)


def pack_dirent(name: str, offset: int, kind: int, node: int = 1) -> bytes:
    """Return one name of a listing; `offset` is where the listing goes on behind it.

    `kind` is the file type as in a mode, `node` not 0.
    """
    data = name.encode(errors="surrogateescape")
    whole = _DIRENT.pack(node, offset, len(data), (kind >> 12) & 15) + data
    return whole + bytes(-len(whole) % 8)


def pack_inval(node: int) -> bytes:
    """Return the message that what is cached of `node` is old."""
    return pack_notice(NOTIFY_INVAL_INODE, _INVAL_INODE.pack(node, 0, 0))


def pack_forget(folder: int, name: str) -> bytes:
    """Return the message that what is cached of a name is old."""
    data = name.encode()
    return pack_notice(NOTIFY_INVAL_ENTRY, _INVAL_ENTRY.pack(folder, len(data), 0) + data + b"\0")


def pack_store(node: int, data: bytes) -> bytes:
    """Return the message that `node` begins with `data`."""
    return pack_notice(NOTIFY_STORE, _STORE.pack(node, 0, len(data), 0) + data)


def pack_notice(code: int, body: bytes = b"") -> bytes:
    """Return a message that is no answer."""
    return _REPLY.pack(_REPLY.size + len(body), code, 0) + body
