"""The cluster's Ethernet switch: native/switch.c as a process, and the talk with it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import enum
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from ssi.common.errors import ProtocolError, SsiError
from ssi.host import native
from ssi.host.net.faults import Faults

SOCKET_BUFFER_BYTES = 2 << 20
"""Of each end of a node's wire. The kernel takes less (net.core.wmem_max) without complaint."""

ANSWER_DEADLINE_S = 10
"""The switch answers in microseconds; a machine that swaps, later. Beyond this it hangs."""

# Layout and numbers as in native/switch.c: struct request, struct report, struct counters.
_REQUEST = struct.Struct("=8I")
_REPORT = struct.Struct("=4I10Q")
_ATTACH, _DETACH, _STATS, _CLEAR, _GROUP, _LINK, _COMMIT = range(1, 8)
_DONE, _CLOSED, _COUNTED = range(1, 4)


class SwitchLost(SsiError):
    """The switch process ended or does not answer: the cluster has no network any more."""

    code = "switch-lost"


class PortKind(enum.IntEnum):
    """What is behind a port of the switch."""

    NODE = 0
    UPLINK = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """A port of the switch."""

    kind: PortKind
    node: int


@dataclasses.dataclass(frozen=True, slots=True)
class PortStats:
    """What went through a port since it was plugged in; `in` is what its owner sent.

    `malformed` has no valid length, `spoofed` another sender's address, `unknown` nobody to go to;
    `faulted` was lost on purpose, `full` for want of room at the receiver, `held` waited for it.
    """

    frames_in: int
    bytes_in: int
    frames_out: int
    bytes_out: int
    malformed: int
    spoofed: int
    unknown: int
    faulted: int
    full: int
    held: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Report:
    kind: int
    port: Port
    error: int
    stats: PortStats

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        if len(message) != _REPORT.size:
            raise ProtocolError(f"the switch sent {len(message)} bytes, not {_REPORT.size}")
        kind, port, node, error, *counters = _REPORT.unpack(message)
        # The answer to a request about no port repeats its fields, which then mean nothing.
        return cls(kind, Port(PortKind(port & 1), node), error, PortStats(*counters))


class Switch:
    """A running switch. Make one with `Switch.running()`."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._answers: deque[asyncio.Future[_Report]] = deque()
        self._closed: asyncio.Queue[Port | SwitchLost] = asyncio.Queue()
        self._lost: SwitchLost | None = None
        self._ports: set[Port] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """Start a switch, and end it on leaving; it ends by itself when this process does."""
        path = await asyncio.to_thread(native.program, "switch")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    path,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    # Ctrl-C at the terminal is for the supervisor, which ends the nodes first.
                    start_new_session=True,
                )
            switch = cls(process, ours)
            try:
                switch._listen()
                yield switch
            finally:
                await switch._end()

    @property
    def pid(self) -> int:
        """The switch's process ID."""
        return self._process.pid

    async def attach(self, node: int) -> socket.socket:
        """Give `node` a port and return its wire: an inheritable socket for vec0:transport=fd.

        The caller closes its copy as soon as the node has it, or the node's death goes unseen.
        """
        wire, port = _wire()
        with port:
            try:
                await self._ask(_ATTACH, Port(PortKind.NODE, node), fd=port.fileno())
            except BaseException:
                wire.close()
                raise
        return wire

    async def attach_uplink(self, node: int, stream: socket.socket) -> None:
        """Plug `stream` (passt's framing) in as the way out of `node` and close it here."""
        with stream:
            await self._ask(_ATTACH, Port(PortKind.UPLINK, node), fd=stream.fileno())

    async def detach(self, node: int) -> None:
        """Take away the port of `node` and its uplink; nothing happens if there is none."""
        await self._ask(_DETACH, Port(PortKind.NODE, node))
        await self._ask(_DETACH, Port(PortKind.UPLINK, node))

    async def detach_uplink(self, node: int) -> None:
        """Take away the way out of `node`."""
        await self._ask(_DETACH, Port(PortKind.UPLINK, node))

    async def apply(self, faults: Faults) -> None:
        """Put `faults` into effect, all at once, instead of those before."""
        nowhere = Port(PortKind.NODE, 0)
        await self._ask(_CLEAR, nowhere)
        for number, group in enumerate(faults.groups, start=1):
            for node in group:
                await self._ask(_GROUP, Port(PortKind.NODE, node), number)
        # ALL is (0, 0) and so comes first: the switch overwrites every pair with it.
        for (sender, receiver), fault in sorted(faults.links.items()):
            values = receiver, fault.drop_ppm, fault.delay_us, fault.jitter_us
            await self._ask(_LINK, Port(PortKind.NODE, sender), *values)
        await self._ask(_COMMIT, nowhere)

    async def stats(self) -> dict[Port, PortStats]:
        """Return what each port has carried."""
        ports = sorted(self._ports, key=lambda port: (port.kind, port.node))
        return {port: (await self._ask(_STATS, port)).stats for port in ports}

    async def wait_closed(self) -> Port:
        """Wait until the far end of a port has closed and return that port, each one once.

        Raises SwitchLost when the switch itself ends.
        """
        event = await self._closed.get()
        if isinstance(event, SwitchLost):
            self._closed.put_nowait(event)
            raise event
        return event

    def _listen(self) -> None:
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._read)

    async def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._lose("ended")
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        # Not wait(): it leaves the pipe of stderr open.
        await self._process.communicate()

    async def _ask(self, kind: int, port: Port, *values: int, fd: int | None = None) -> _Report:
        if self._lost:
            raise self._lost
        fields = [kind, port.kind, port.node, *values]
        request = _REQUEST.pack(*fields, *[0] * (8 - len(fields)))
        rights = [] if fd is None else [_rights(fd)]
        try:
            self._control.sendmsg([request], rights)
        except OSError as error:
            raise self._lose(error.strerror or "gone") from error
        answer: asyncio.Future[_Report] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                report = await answer
        except TimeoutError as error:
            raise self._lose(f"no answer in {ANSWER_DEADLINE_S} s") from error
        self._note(kind, port, report.error)
        return report

    def _forget_closing(self, port: Port) -> None:
        """Nobody is told of the end of a port whose node has another one by now, or wants none."""
        events = [self._closed.get_nowait() for _ in range(self._closed.qsize())]
        for event in events:
            if event != port:
                self._closed.put_nowait(event)

    def _note(self, kind: int, port: Port, error: int) -> None:
        """Raise what the switch refused, or remember which ports there are."""
        if error == errno.EEXIST:
            raise SsiError(f"node{port.node} has a port on the switch already")
        if error:
            raise SsiError(f"the switch refused node{port.node}: {os.strerror(error)}")
        if kind in (_ATTACH, _DETACH):
            self._forget_closing(port)
            self._ports.discard(port)
        if kind == _ATTACH:
            self._ports.add(port)

    def _read(self) -> None:
        """Take one message from the switch; an empty one is its end."""
        try:
            message = self._control.recv(_REPORT.size + 1)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose("ended unexpectedly")
            return
        try:
            report = _Report.from_bytes(message)
        except ProtocolError as error:
            self._lose(str(error))
            return
        if report.kind == _CLOSED:
            self._ports.discard(report.port)
            self._closed.put_nowait(report.port)
        elif self._answers:
            answer = self._answers.popleft()
            # Done before its answer: whoever asked was cancelled.
            if not answer.done():
                answer.set_result(report)

    def _lose(self, why: str) -> SwitchLost:
        """Give up on the switch: all who wait are told."""
        if not self._lost:
            asyncio.get_running_loop().remove_reader(self._control)
            self._lost = SwitchLost(f"the network switch (process {self.pid}): {why}")
            self._closed.put_nowait(self._lost)
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(self._lost)
        self._answers.clear()
        return self._lost


def _rights(fd: int) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd])


def _wire() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a node's wire; only the buffer for sending counts with Unix sockets."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ends
