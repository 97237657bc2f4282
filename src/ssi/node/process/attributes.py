"""What a process is allowed and where it runs: limits, scheduling, processors.

A call on a process of another node is made there, by its daemon, with the caller's bytes; what the
kernel would refuse the caller is refused before.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import errno
import os
import resource
import struct
from collections.abc import Callable, Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.caller import MAX_PID, Caller, read_caller, read_memory
from ssi.node.process.foreign import Foreign
from ssi.node.process.listener import GO_ON, HeldCall, Verdict, as_int
from ssi.node.smallfiles import read_text

LIMITS = 16
"""RLIM_NLIMITS, which Python does not tell."""

PAGE = 4096

MAX_BYTES = PAGE + 8
"""Bytes that are looked at of what the caller says the size of: so many that, of attributes, the
kernel refuses them, and of processors has none."""

_PRIORITY = struct.Struct("=i")
_LIMIT = struct.Struct("=QQ")

ATTRIBUTES = struct.Struct("=IIQiIQQQII")
"""sched_attr: size, policy, flags, nice, priority, then what only deadlines and clamps need."""
MIN_ATTRIBUTES = 48

# Its flags.
RESET_ON_FORK, KEEP_POLICY, KEEP_PARAMS = 1, 8, 16
ALL_FLAGS = 127

# What ioprio_set gives: its class is above these bits, its level in the lowest three.
CLASS_SHIFT = 13
CLASS_REALTIME, CLASS_IDLE = 1, 3
WHO_PROCESS = 1

DEADLINE = 6
_REALTIME = {os.SCHED_FIFO, os.SCHED_RR}
_FAIR = {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE}


class Role(enum.Enum):
    """What an argument is."""

    PID = enum.auto()
    VALUE = enum.auto()
    FLAGS = enum.auto()
    """Another number."""
    GIVEN = enum.auto()
    """Where bytes are."""
    TAKEN = enum.auto()
    """Where bytes are to be."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A system call on a process."""

    number: int
    """On x86-64."""
    arguments: tuple[Role | int, ...]
    """Of a number: with another one the call is the kernel's affair."""
    size: int = 0
    """Of the bytes; 0: the value says it."""

    def size_for(self, value: int) -> int:
        """Return how many bytes a call with `value` gives or takes."""
        return self.size or min(value, MAX_BYTES)

    def read(self, call: HeldCall, role: Role) -> int:
        """Return an argument of `call`, 0 if there is none with that role."""
        return call.arguments[self.arguments.index(role)] if role in self.arguments else 0

    def fits(self, call: HeldCall) -> bool:
        """Tell whether the arguments of `call` are those of a call that we make."""
        pairs = zip(self.arguments, call.arguments, strict=False)
        return all(isinstance(what, Role) or as_int(said) == what for what, said in pairs)


LAYOUTS: Mapping[str, Layout] = {
    "sched_setparam": Layout(142, (Role.PID, Role.GIVEN), _PRIORITY.size),
    "sched_getparam": Layout(143, (Role.PID, Role.TAKEN), _PRIORITY.size),
    "sched_setscheduler": Layout(144, (Role.PID, Role.VALUE, Role.GIVEN), _PRIORITY.size),
    "sched_getscheduler": Layout(145, (Role.PID,)),
    "sched_setaffinity": Layout(203, (Role.PID, Role.VALUE, Role.GIVEN)),
    "sched_getaffinity": Layout(204, (Role.PID, Role.VALUE, Role.TAKEN)),
    "ioprio_set": Layout(251, (WHO_PROCESS, Role.PID, Role.VALUE)),
    "ioprio_get": Layout(252, (WHO_PROCESS, Role.PID)),
    "prlimit64": Layout(302, (Role.PID, Role.VALUE, Role.GIVEN, Role.TAKEN), _LIMIT.size),
    "sched_setattr": Layout(314, (Role.PID, Role.GIVEN, 0), ATTRIBUTES.size),
    "sched_getattr": Layout(315, (Role.PID, Role.TAKEN, Role.VALUE, Role.FLAGS)),
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
    flags: int = 0

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "call": self.name, "pid": self.pid, "value": self.value,
            "given": wire.put_bytes(self.given), "takes": self.takes, "caller": self.caller.dump(),
            "flags": self.flags,
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
            wire.get_int(message, "flags", 0, 2**32 - 1),
        )  # fmt: skip


class Attributes:
    """Takes such calls here, and makes them for other nodes."""

    def __init__(self, foreign: Foreign, ics: Ics) -> None:
        self._foreign = foreign
        for layout in LAYOUTS.values():
            foreign.judges[layout.number] = self._judge
        ics.serve("attribute", foreign.pass_on(self._answer))

    async def _judge(self, call: HeldCall) -> Verdict:
        name = _NAMES[call.number]
        layout = LAYOUTS[name]
        pid = as_int(layout.read(call, Role.PID))
        # The kernel says what it says of negative ones.
        if pid < 0 or not layout.fits(call) or self._foreign.is_here(call, pid):
            return GO_ON
        value, flags = (layout.read(call, role) % 2**32 for role in (Role.VALUE, Role.FLAGS))
        source, target = (layout.read(call, role) for role in (Role.GIVEN, Role.TAKEN))
        given: bytes | None = b""
        if source and name == "sched_setattr":
            given = read_attributes(lambda size: read_memory(call.thread, source, size))
        elif source:
            given = read_memory(call.thread, source, layout.size_for(value))
        if given is None:
            return GO_ON
        attempt = Attempt(name, pid, value, given, bool(target), read_caller(call.thread), flags)
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


def read_attributes(read: Callable[[int], bytes]) -> bytes | None:
    """Return the sched_attr whose first bytes `read` gives; None if the kernel refuses its size.

    It says so before it looks for the process, and writes there what size it knows.
    """
    size = int.from_bytes(read(4), "little") or MIN_ATTRIBUTES
    if not MIN_ATTRIBUTES <= size <= PAGE:
        return None
    given = read(size)
    if any(given[ATTRIBUTES.size :]):
        return None
    head = min(size, ATTRIBUTES.size).to_bytes(4, "little")
    return (head + given[4 : ATTRIBUTES.size]).ljust(ATTRIBUTES.size, b"\0")


def _make(attempt: Attempt) -> tuple[int, bytes]:
    """Make the call; return its result, and the bytes it wrote. Raises OSError."""
    layout = LAYOUTS[attempt.name]
    size = layout.size_for(attempt.value)
    taken = ctypes.create_string_buffer(size) if attempt.takes and size else None
    # What its value says the size of may be longer than what of it is looked at.
    is_size = not layout.size and {Role.GIVEN, Role.TAKEN} & set(layout.arguments)
    said: Mapping[Role, object] = {
        Role.PID: ctypes.c_long(attempt.pid), Role.GIVEN: attempt.given or None, Role.TAKEN: taken,
        Role.VALUE: ctypes.c_long(size if is_size else attempt.value),
        Role.FLAGS: ctypes.c_long(attempt.flags),
    }  # fmt: skip
    arguments = [
        said[what] if isinstance(what, Role) else ctypes.c_long(what) for what in layout.arguments
    ]
    ctypes.set_errno(0)
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(layout.number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # A set of processors says how long it is; what else is written is written wholly.
    return result, taken.raw[: result or None] if taken else b""


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


def may_set_attributes(was: int, nice: tuple[int, int], policy: int, *, is_owner: bool) -> bool:
    """Tell whether somebody who is not root may change a process's policy and niceness.

    `nice` is what it was and is to be.
    """
    gains = policy in {os.SCHED_OTHER, os.SCHED_BATCH} and nice[1] < nice[0]
    return may_schedule(was, policy, is_owner=is_owner) and not gains


def is_io_priority(value: int) -> bool:
    """Tell whether the kernel knows such a priority of input and output."""
    kind, level = value >> CLASS_SHIFT & 7, value & 7
    return kind <= CLASS_IDLE and (kind != 0 or not level)


def may_prioritise(caller: Caller, target: Caller, value: int, capabilities: int) -> bool:
    """Tell whether `caller` may give `target` that priority of input and output."""
    if caller.uids[1] == 0:
        return True
    is_own = target.uids[0] in caller.uids[:2] and not capabilities
    return is_own and value >> CLASS_SHIFT & 7 != CLASS_REALTIME


def check(attempt: Attempt) -> None:
    """Raise OSError if the kernel would not let the caller; what it lets nobody it says itself."""
    if rule := _RULES.get(attempt.name):
        rule(attempt, read_caller(attempt.pid))


def _read_capabilities(thread: int) -> int:
    """Return those that a thread of this node may use; raises OSError when it is gone."""
    lines = read_text(f"/proc/{thread}/status").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def _refuse() -> None:
    raise PermissionError(errno.EPERM, "not allowed")


def _refuse_unknown() -> None:
    # Said by us and not left to the kernel, which may know more than we do and is asked by root.
    raise OSError(errno.EINVAL, "no such thing")


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


def _check_attributes(attempt: Attempt, target: Caller) -> None:
    if not attempt.given or attempt.caller.uids[1] == 0:
        return
    pid = attempt.pid
    was, was_nice = os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)
    _, policy, flags, nice, priority, *_ = ATTRIBUTES.unpack(attempt.given)
    if flags & KEEP_PARAMS:
        nice = was_nice
        if was & ~os.SCHED_RESET_ON_FORK in _REALTIME:
            priority = os.sched_getparam(pid).sched_priority
    if flags & KEEP_POLICY:
        policy = was
    elif policy == DEADLINE:
        _refuse()
    elif policy not in _FAIR | _REALTIME:
        _refuse_unknown()
    elif flags & RESET_ON_FORK:
        policy |= os.SCHED_RESET_ON_FORK
    if not is_policy(policy, priority) or flags & ~ALL_FLAGS:
        _refuse_unknown()
    is_owner = owns(attempt.caller, target, _read_capabilities(pid))
    nices = (was_nice, max(-20, min(19, nice)))
    if not may_set_attributes(was, nices, policy, is_owner=is_owner):
        _refuse()


def _check_io_priority(attempt: Attempt, target: Caller) -> None:
    if not is_io_priority(attempt.value):
        _refuse_unknown()
    capabilities = _read_capabilities(attempt.pid)
    if not may_prioritise(attempt.caller, target, attempt.value, capabilities):
        _refuse()


_RULES: Mapping[str, Callable[[Attempt, Caller], None]] = {
    "sched_setparam": _check_policy, "sched_setscheduler": _check_policy,
    "sched_setaffinity": _check_affinity, "prlimit64": _check_limit,
    "sched_setattr": _check_attributes, "ioprio_set": _check_io_priority,
}  # fmt: skip
