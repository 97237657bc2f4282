"""A running command: a transport carries its streams, and signals to its process group."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ssi.common.wire import CHUNK
from ssi.node.launcher import Launcher, Program

OUTPUTS = ("stdout", "stderr")

HANG_UP_S = 5.0
"""From SIGHUP to SIGKILL, when nobody waits for the command any more."""

Sink = Callable[[str, bytes], Awaitable[None]]
"""Takes bytes of the output of that name; waits while the receiver does not use them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """A process that was started: the leader of a group, and how to wait for its end."""

    pid: int
    wait: Callable[[], Awaitable[int]]
    """Returns the status: negative for a signal."""


Start = Callable[[Sequence[int]], Awaitable[Child]]
"""Starts a process that has these as its descriptors from 0 on; raises OSError."""


def start_in_ramdisk(argv: Sequence[str], environment: Mapping[str, str]) -> Start:
    """Return what starts a program of the ramdisk."""

    async def start(fds: Sequence[int]) -> Child:
        stdin, stdout, stderr = fds
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment,
            start_new_session=True,
        )  # fmt: skip
        return Child(process.pid, process.wait)

    return start


PREFIX = "command."
_numbers = itertools.count(time.time_ns())


def start_in_userland(launcher: Launcher, program: Program) -> Start:
    """Return what has the launcher start a program."""

    async def start(fds: Sequence[int]) -> Child:
        key = f"{PREFIX}{next(_numbers)}"
        pid = await launcher.start(key, program, fds)

        async def wait() -> int:
            status = os.waitstatus_to_exitcode(await launcher.wait(key))
            launcher.forget(key)
            return status

        return Child(pid, wait)

    return start


async def forget_orphans(launcher: Launcher) -> None:
    """Forget the commands of the daemon before this one, as they end: nobody waits for them."""
    began = next(_numbers)
    await launcher.wait_connected()
    async with asyncio.TaskGroup() as group:
        for key in launcher.keys:
            if _is_before(key, began):
                group.create_task(_forget(launcher, key))


def _is_before(key: str, began: int) -> bool:
    return key.startswith(PREFIX) and int(key.removeprefix(PREFIX)) < began


async def _forget(launcher: Launcher, key: str) -> None:
    await launcher.wait(key)
    launcher.forget(key)


class _Input:
    """The standard input of a command."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    async def write(self, data: bytes) -> None:
        """Write `data` as fast as it is taken; nowhere if nobody reads any more."""
        loop = asyncio.get_running_loop()
        left = memoryview(data)
        while left and self._fd >= 0:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self._fd, room.set)
                try:
                    await room.wait()
                finally:
                    loop.remove_writer(self._fd)
            except BrokenPipeError:
                self.close()

    def close(self) -> None:
        """Nothing more comes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Output:
    """One output of a command: read when there is something, sent when there is room."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._wake = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """The command has exited: send what it has left in the pipe and no more.

        Not until end of file: something it put in the background may hold the pipe for hours.
        """
        self._ended = True
        self._wake.set()

    async def read(self) -> bytes:
        """Return the next bytes, none at the end."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(self.fd, CHUNK)
            if self._ended:
                return b""
            self._wake.clear()
            loop.add_reader(self.fd, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                loop.remove_reader(self.fd)


class Command:
    """One command, run once."""

    def __init__(self, sink: Sink, used: Callable[[int], Awaitable[None]]) -> None:
        """`used` hears how many bytes of standard input the command has taken."""
        self._sink = sink
        self._used = used
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue()
        self._child: Child | None = None
        self._ended = False
        self._early: list[int] = []

    def feed(self, data: bytes) -> None:
        """Bytes for its standard input; none for the end of it."""
        self._stdin.put_nowait(data)

    def kill(self, number: int) -> None:
        """Send a signal to its process group."""
        if self._child is None:
            self._early.append(number)
        elif not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    async def run(self, start: Start) -> int:
        """Run it to its end; return its status as a shell does.

        Cancelled, it hangs up, and kills what stays. Raises OSError if it cannot be started.
        """
        with contextlib.ExitStack() as stack:
            ours: list[int] = []
            with contextlib.ExitStack() as theirs:
                ends = []
                for name in ("stdin", *OUTPUTS):
                    read_end, write_end = os.pipe2(os.O_CLOEXEC)
                    mine, other = (
                        (write_end, read_end) if name == "stdin" else (read_end, write_end)
                    )
                    ours.append(mine)
                    ends.append(other)
                    theirs.callback(os.close, other)
                stdin = _Input(ours[0])
                stack.callback(stdin.close)
                outputs = {name: _Output(fd) for name, fd in zip(OUTPUTS, ours[1:], strict=True)}
                for output in outputs.values():
                    stack.callback(os.close, output.fd)
                self._child = await start(ends)
            try:
                return await self._follow(self._child, stdin, outputs)
            except asyncio.CancelledError:
                await self._hang_up(self._child)
                raise

    async def _follow(self, child: Child, stdin: _Input, outputs: Mapping[str, _Output]) -> int:
        for number in self._early:
            self.kill(number)
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._pump_in(stdin))
            for name, output in outputs.items():
                group.create_task(self._pump_out(name, output))
            status = await child.wait()
            self._ended = True
            feeding.cancel()
            for output in outputs.values():
                output.end()
        return status if status >= 0 else 128 - status

    async def _hang_up(self, child: Child) -> None:
        self.kill(signal.SIGHUP)
        self.kill(signal.SIGCONT)  # a stopped one could not act on it
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_S):
                    await child.wait()
                    self._ended = True
        finally:
            self.kill(signal.SIGKILL)
            await child.wait()

    async def _pump_in(self, stdin: _Input) -> None:
        while data := await self._stdin.get():
            await stdin.write(data)
            await self._used(len(data))
        stdin.close()

    async def _pump_out(self, name: str, output: _Output) -> None:
        while data := await output.read():
            await self._sink(name, data)
