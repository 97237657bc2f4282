"""corosync's closed process groups through libcpg: messages that all members get in one order."""

from __future__ import annotations

import ctypes
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

from ssi.node.quorum import CS_DISPATCH_ALL, CS_ERR_TRY_AGAIN, check

CPG_TYPE_AGREED = 2
CPG_REASON_NODEDOWN = 3
CPG_REASON_NODEUP = 4
MAX_NAME = 128
MAX_MESSAGE = 900_000
"""Bytes. corosync takes about 1 MB in one message."""


class _Name(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint32), ("value", ctypes.c_char * MAX_NAME))


class _Address(ctypes.Structure):
    _fields_ = (("node", ctypes.c_uint32), ("pid", ctypes.c_uint32), ("reason", ctypes.c_uint32))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


# cpg.h: handle, group, node, pid, message, its length
_DELIVER = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(_Name), ctypes.c_uint32, ctypes.c_uint32,
    ctypes.c_void_p, ctypes.c_size_t,
)  # fmt: skip
# cpg.h: handle, group, then members, those who left and those who joined, each with its count
_LIST = (ctypes.POINTER(_Address), ctypes.c_size_t)
_CHANGE = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(_Name), *_LIST, *_LIST, *_LIST
)  # fmt: skip


class _Callbacks(ctypes.Structure):
    _fields_ = (("deliver", _DELIVER), ("change", _CHANGE))


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change of the group. Node numbers: a node has one process in it.

    `lost` are those who left with their node, `merged` those whose node came with them: what they
    did before they have done without us.
    """

    members: frozenset[int]
    left: frozenset[int]
    joined: frozenset[int]
    lost: frozenset[int]
    merged: frozenset[int]


def _read_change(lists: tuple[Any, ...]) -> Change:
    members, left, joined = (
        [(entries[i].node, entries[i].reason) for i in range(count)]
        for entries, count in zip(lists[::2], lists[1::2], strict=True)
    )
    return Change(
        members=frozenset(node for node, _ in members),
        left=frozenset(node for node, _ in left),
        joined=frozenset(node for node, _ in joined),
        lost=frozenset(node for node, reason in left if reason == CPG_REASON_NODEDOWN),
        merged=frozenset(node for node, reason in joined if reason == CPG_REASON_NODEUP),
    )


class Group:
    """Membership in one process group."""

    def __init__(
        self, name: str, on_message: Callable[[int, bytes], None],
        on_change: Callable[[Change], None],
    ) -> None:  # fmt: skip
        """Connect to corosync, or raise CorosyncError: while it starts, try again."""
        self._library = ctypes.CDLL("libcpg.so.4")
        self._handle = ctypes.c_uint64()
        self._on_message = on_message
        self._on_change = on_change
        self._come: deque[Change | tuple[int, bytes]] = deque()
        # Kept, or the C library would call freed memory.
        self._callbacks = _Callbacks(_DELIVER(self._deliver), _CHANGE(self._change))
        status = self._library.cpg_initialize(
            ctypes.byref(self._handle), ctypes.byref(self._callbacks)
        )
        check("cpg_initialize", status)
        fd = ctypes.c_int()
        check("cpg_fd_get", self._library.cpg_fd_get(self._handle, ctypes.byref(fd)))
        self._fd = fd.value
        self._name = _Name(len(name), name.encode())

    def join(self) -> None:
        """Join; `on_change` tells when it has come about. Raises CorosyncError."""
        check("cpg_join", self._library.cpg_join(self._handle, ctypes.byref(self._name)))

    # An exception in a callback would end in the C library: these only note what has come.

    def _deliver(
        self, _: int, __: object, node: int, ___: int, message: int | None, length: int
    ) -> None:
        self._come.append((node, ctypes.string_at(message or 0, length)))

    def _change(self, _: int, __: object, *lists: Any) -> None:  # noqa: ANN401 - ctypes pointers
        self._come.append(_read_change(lists))

    def send(self, message: bytes) -> bool:
        """Send `message` to all members, us included. False: corosync is busy, try again.

        Raises CorosyncError.
        """
        vector = _Iovec(message, len(message))
        status = self._library.cpg_mcast_joined(
            self._handle, CPG_TYPE_AGREED, ctypes.byref(vector), 1
        )
        if status == CS_ERR_TRY_AGAIN:
            return False
        check("cpg_mcast_joined", status)
        return True

    def fileno(self) -> int:
        """Return the descriptor that is readable when `dispatch` has something to do."""
        return self._fd

    def dispatch(self) -> None:
        """Hand out what has come; raise CorosyncError when corosync is gone."""
        status = self._library.cpg_dispatch(self._handle, CS_DISPATCH_ALL)
        if status != CS_ERR_TRY_AGAIN:
            check("cpg_dispatch", status)
        while self._come:
            what = self._come.popleft()
            if isinstance(what, Change):
                self._on_change(what)
            else:
                self._on_message(*what)
