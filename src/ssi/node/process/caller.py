"""Who makes a system call: what the kernel would go by."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.smallfiles import read_text

MAX_UID = 2**32 - 1
MAX_PID = 2**22
MAX_GROUPS = 65536
MAX_ADDRESS = 2**62


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Real, effective and saved IDs, and the process that the receiver of a signal is told."""

    pid: int
    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    groups: tuple[int, ...]

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "pid": self.pid, "uids": list(self.uids), "gids": list(self.gids),
            "groups": list(self.groups),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Caller:
        """Read it from a message, or raise ProtocolError."""
        uids = wire.get_ints(message, "uids", 0, MAX_UID)
        gids = wire.get_ints(message, "gids", 0, MAX_UID)
        if len(uids) != 3 or len(gids) != 3:
            raise ProtocolError("a caller has three user and three group IDs")
        groups = wire.get_ints(message, "groups", 0, MAX_UID)
        return cls(
            wire.get_int(message, "pid", 1, MAX_PID), (uids[0], uids[1], uids[2]),
            (gids[0], gids[1], gids[2]), tuple(groups[:MAX_GROUPS]),
        )  # fmt: skip


def read_caller(thread: int) -> Caller:
    """Return who `thread` of this node is; raises ProcessLookupError when it is gone."""
    try:
        lines = read_text(f"/proc/{thread}/status").splitlines()
    except OSError as error:
        raise ProcessLookupError(thread) from error
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    uids, gids = ([int(word) for word in fields[key][:3]] for key in ("Uid", "Gid"))
    return Caller(
        int(fields["Tgid"][0]), (uids[0], uids[1], uids[2]), (gids[0], gids[1], gids[2]),
        tuple(int(word) for word in fields["Groups"]),
    )  # fmt: skip


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Return `size` bytes at `address` of a thread; raises OSError (EFAULT) where none are."""
    with _memory(thread, address, os.O_RDONLY) as fd:
        data = os.pread(fd, size, address)
    if len(data) < size:
        raise OSError(errno.EFAULT, "nothing is there")
    return data


def write_memory(thread: int, address: int, data: bytes) -> None:
    """Write `data` at `address` of a thread; raises OSError (EFAULT) where nothing is there."""
    with _memory(thread, address, os.O_RDWR) as fd:
        if os.pwrite(fd, data, address) < len(data):
            raise OSError(errno.EFAULT, "nothing is there")


@contextlib.contextmanager
def _memory(thread: int, address: int, flags: int) -> Iterator[int]:
    """Yield a descriptor of a thread's memory, in which `address` may be an offset."""
    if address > MAX_ADDRESS:
        raise OSError(errno.EFAULT, "no address")
    fd = os.open(f"/proc/{thread}/mem", flags | os.O_CLOEXEC)
    try:
        yield fd
    except OSError as error:
        # The file itself says EIO.
        raise OSError(errno.EFAULT, "nothing is there") from error
    finally:
        os.close(fd)
