"""What a process is allowed and where it runs: limits, scheduling, processors.

A call on a process of another node is made there, by its daemon, with the caller's bytes; what the
kernel would refuse the caller is refused before.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import resource
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.caller import MAX_PID, Caller, read_caller, read_memory
from ssi.node.process.foreign import Foreign
from ssi.node.process.listener import GO_ON, HeldCall, Verdict

LIMITS = 16
"""RLIM_NLIMITS, which Python does not tell."""

MAX_MASK = 1024
"""Bytes of a set of processors that are looked at: eight times as many processors."""

_PRIORITY = struct.Struct("=i")
_LIMIT = struct.Struct("=QQ")

_REALTIME = {os.SCHED_FIFO, os.SCHED_RR}
_FAIR = {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE}


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A system call: a PID, then a value, bytes given and bytes taken, as far as it has them."""

    number: int
    """On x86-64."""
    value: bool = False
    given: bool = False
    taken: bool = False
    size: int = 0
    """Of the bytes; 0: the value says it."""

    def size_for(self, value: int) -> int:
        """Return how many bytes a call with `value` gives or takes."""
        return self.size or min(value, MAX_MASK)


LAYOUTS: Mapping[str, Layout] = {
    "sched_setparam": Layout(142, given=True, size=_PRIORITY.size),
    "sched_getparam": Layout(143, taken=True, size=_PRIORITY.size),
    "sched_setscheduler": Layout(144, value=True, given=True, size=_PRIORITY.size),
    "sched_getscheduler": Layout(145),
    "sched_setaffinity": Layout(203, value=True, given=True),
    "sched_getaffinity": Layout(204, value=True, taken=True),
    "prlimit64": Layout(302, value=True, given=True, taken=True, size=_LIMIT.size),
}

_NAMES = {layout.number: name for name, layout in LAYOUTS.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """A call of somebody's on a process of this node."""

    name: str
    pid: int
    value: int
    given: bytes
    """Empty: the caller gave no address."""
    takes: bool
    caller: Caller

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "call": self.name, "pid": self.pid, "value": self.value,
            "given": wire.put_bytes(self.given), "takes": self.takes, "caller": self.caller.dump(),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Attempt:
        """Read it from a message, or raise ProtocolError."""
        name = wire.get_word(message, "call", list(LAYOUTS))
        value = wire.get_int(message, "value", 0, 2**32 - 1)
        given = wire.get_bytes(message, "given")
        if len(given) not in {0, LAYOUTS[name].size_for(value)}:
            raise ProtocolError(f"{name} with {len(given)} bytes")
        return cls(
            name, wire.get_int(message, "pid", 1, MAX_PID), value, given,
            wire.get_flag(message, "takes"), Caller.load(wire.get_object(message, "caller")),
        )  # fmt: skip


class Attributes:
    """Takes such calls here, and makes them for other nodes."""

    def __init__(self, foreign: Foreign, ics: Ics) -> None:
        self._foreign = foreign
        for layout in LAYOUTS.values():
            foreign.judges[layout.number] = self._judge
        ics.serve("attribute", foreign.pass_on(self._answer))

    async def _judge(self, call: HeldCall) -> Verdict:
        pid = call.int_at(0)
        # The kernel says what it says of negative ones.
        if pid < 0 or self._foreign.is_here(call, pid):
            return GO_ON
        name = _NAMES[call.number]
        layout = LAYOUTS[name]
        places = iter(call.arguments[1:])
        value = next(places) % 2**32 if layout.value else 0
        source = next(places) if layout.given else 0
        target = next(places) if layout.taken else 0
        given = read_memory(call.thread, source, layout.size_for(value)) if source else b""
        attempt = Attempt(name, pid, value, given, bool(target), read_caller(call.thread))
        answer = await self._foreign.ask_where(pid, "attribute", attempt.dump())
        error = wire.get_int(answer, "error", 0, 4095)
        if error:
            return Verdict(error=error)
        taken = wire.get_bytes(answer, "taken")[: layout.size_for(value)]
        return Verdict(
            wire.get_int(answer, "result", 0, 2**31), written=(target, taken) if target else None
        )

    async def _answer(self, call: Call) -> Message:
        attempt = Attempt.load(call.body)
        try:
            check(attempt)
            result, taken = _make(attempt)
        except ProcessLookupError:
            return {"result": 0, "error": errno.ESRCH, "taken": ""}
        except OSError as error:
            return {"result": 0, "error": error.errno or errno.EIO, "taken": ""}
        return {"result": result, "error": 0, "taken": wire.put_bytes(taken)}


def _make(attempt: Attempt) -> tuple[int, bytes]:
    """Make the call; return its result, and the bytes it wrote. Raises OSError."""
    layout = LAYOUTS[attempt.name]
    size = layout.size_for(attempt.value)
    taken = ctypes.create_string_buffer(size) if attempt.takes and size else None
    arguments: list[object] = [ctypes.c_long(attempt.pid)]
    if layout.value:
        # A set of processors may be longer than what of it is looked at.
        arguments.append(ctypes.c_long(attempt.value if layout.size else size))
    if layout.given:
        arguments.append(attempt.given or None)
    if layout.taken:
        arguments.append(taken)
    ctypes.set_errno(0)
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(layout.number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    written = taken.raw if taken else b""
    return result, written if layout.size else written[:result]


# -- the kernel's rules --------------------------------------------------------------------------


def owns(caller: Caller, target: Caller, capabilities: int) -> bool:
    """Tell whether `caller` may change where and how `target` runs, which has those capabilities.

    Who is not root is taken for somebody without any, and cannot change who has some.
    """
    effective = caller.uids[1]
    return effective == 0 or (effective in target.uids[:2] and not capabilities)


def may_limit(caller: Caller, target: Caller) -> bool:
    """Tell whether `caller` may see and change limits of `target`."""
    same = set(target.uids) == {caller.uids[0]} and set(target.gids) == {caller.gids[0]}
    return same or caller.uids[1] == 0


def raises_hard(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Tell whether `new` limits (soft, hard) raise the hard one; -1 is without end."""
    return old[1] != -1 and (new[1] == -1 or new[1] > old[1])


def may_schedule(was: int, policy: int, *, is_owner: bool) -> bool:
    """Tell whether somebody who is not root may change a process's policy from `was`.

    Realtime is root's, as it is with the kernel where no limit says otherwise. Nor may others take
    back what holds a process down: that it is idle, or loses its policy when it forks.
    """
    if not is_owner or was & os.SCHED_RESET_ON_FORK & ~policy:
        return False
    was, policy = was & ~os.SCHED_RESET_ON_FORK, policy & ~os.SCHED_RESET_ON_FORK
    return policy in _FAIR and (was != os.SCHED_IDLE or policy == os.SCHED_IDLE)


def is_policy(policy: int, priority: int) -> bool:
    """Tell whether the kernel knows such a policy, with that priority."""
    policy &= ~os.SCHED_RESET_ON_FORK
    if policy in _FAIR:
        return priority == 0
    return policy in _REALTIME and 1 <= priority <= 99


def check(attempt: Attempt) -> None:
    """Raise OSError if the kernel would not let the caller; what it lets nobody it says itself."""
    if rule := _RULES.get(attempt.name):
        rule(attempt, read_caller(attempt.pid))


def _read_capabilities(thread: int) -> int:
    """Return those that a thread of this node may use; raises OSError when it is gone."""
    lines = Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def _refuse() -> None:
    raise PermissionError(errno.EPERM, "not allowed")


def _check_affinity(attempt: Attempt, target: Caller) -> None:
    if attempt.given and not owns(attempt.caller, target, _read_capabilities(attempt.pid)):
        _refuse()


def _check_limit(attempt: Attempt, target: Caller) -> None:
    if not may_limit(attempt.caller, target):
        _refuse()
    if not attempt.given or attempt.caller.uids[1] == 0 or attempt.value >= LIMITS:
        return
    soft, hard = (_as_limit(value) for value in _LIMIT.unpack(attempt.given))
    if raises_hard(resource.prlimit(attempt.pid, attempt.value), (soft, hard)):
        _refuse()


def _as_limit(value: int) -> int:
    return -1 if value == 2**64 - 1 else value


def _check_policy(attempt: Attempt, target: Caller) -> None:
    was = os.sched_getscheduler(attempt.pid)
    policy = was if attempt.name == "sched_setparam" else attempt.value
    if not attempt.given or not is_policy(policy, _PRIORITY.unpack(attempt.given)[0]):
        return
    is_owner = owns(attempt.caller, target, _read_capabilities(attempt.pid))
    if attempt.caller.uids[1] and not may_schedule(was, policy, is_owner=is_owner):
        _refuse()


_RULES: Mapping[str, Callable[[Attempt, Caller], None]] = {
    "sched_setparam": _check_policy, "sched_setscheduler": _check_policy,
    "sched_setaffinity": _check_affinity, "prlimit64": _check_limit,
}  # fmt: skip
