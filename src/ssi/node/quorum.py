"""corosync's view of the cluster, through its C libraries libquorum and libvotequorum."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable

from ssi.common.errors import SsiError

CS_OK = 1
CS_ERR_TRY_AGAIN = 6
CS_TRACK_CURRENT_AND_CHANGES = 1 | 2
CS_DISPATCH_ALL = 2

# quorum.h: void (handle, quorate, ring_seq, entries, list of node numbers)
_NOTIFY = ctypes.CFUNCTYPE(
    None,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_uint32),
)


class _Callbacks(ctypes.Structure):
    _fields_ = (("notify", _NOTIFY),)


class CorosyncError(SsiError):
    """A call of a corosync library failed; `status` is its cs_error_t."""

    code = "corosync"

    def __init__(self, call: str, status: int) -> None:
        super().__init__(f"{call}: corosync error {status}", hint="see corosync.log on the node")
        self.status = status


def check(call: str, status: int) -> None:
    """Raise CorosyncError unless `status` of `call` is CS_OK."""
    if status != CS_OK:
        raise CorosyncError(call, status)


@dataclasses.dataclass(frozen=True, slots=True)
class RingView:
    """The members corosync sees: not yet a view of the cluster, which wants confirmed deaths."""

    ring: int
    quorate: bool
    members: tuple[int, ...]


class Quorum:
    """A connection to corosync that calls `on_view` at each change of the membership."""

    def __init__(self, on_view: Callable[[RingView], None]) -> None:
        """Connect, or raise CorosyncError: while corosync starts, try again."""
        self._library = ctypes.CDLL("libquorum.so.5")
        self._handle = ctypes.c_uint64()
        self._notify = _NOTIFY(self._note)  # kept, or the C library would call freed memory
        self._on_view = on_view
        kind = ctypes.c_uint32()
        callbacks = _Callbacks(self._notify)
        status = self._library.quorum_initialize(
            ctypes.byref(self._handle), ctypes.byref(callbacks), ctypes.byref(kind)
        )
        check("quorum_initialize", status)

    def _note(self, _handle: int, quorate: int, ring: int, count: int, members: object) -> None:
        numbers = tuple(sorted(members[i] for i in range(count)))  # type: ignore[index]
        self._on_view(RingView(ring=ring, quorate=bool(quorate), members=numbers))

    def track(self) -> None:
        """Ask for the present view and every later one."""
        check(
            "quorum_trackstart",
            self._library.quorum_trackstart(self._handle, CS_TRACK_CURRENT_AND_CHANGES),
        )

    def fileno(self) -> int:
        """Return the descriptor that is readable when `dispatch` has something to do."""
        fd = ctypes.c_int()
        check("quorum_fd_get", self._library.quorum_fd_get(self._handle, ctypes.byref(fd)))
        return fd.value

    def dispatch(self) -> None:
        """Call `on_view` for what has come; raise CorosyncError when corosync is gone."""
        status = self._library.quorum_dispatch(self._handle, CS_DISPATCH_ALL)
        if status != CS_ERR_TRY_AGAIN:
            check("quorum_dispatch", status)


class Votes:
    """Changes votes and expected votes in the running votequorum."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libvotequorum.so.8")
        self._handle = ctypes.c_uint64()
        status = self._library.votequorum_initialize(ctypes.byref(self._handle), None)
        check("votequorum_initialize", status)

    def set_votes(self, node: int, votes: int) -> None:
        """Give `node` so many votes."""
        status = self._library.votequorum_setvotes(self._handle, node, votes)
        check(f"votequorum_setvotes {votes} for node {node}", status)

    def set_expected(self, votes: int) -> None:
        """Expect so many votes in the whole cluster; half of them and one more are a quorum."""
        status = self._library.votequorum_setexpected(self._handle, votes)
        check(f"votequorum_setexpected {votes}", status)
