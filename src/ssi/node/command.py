"""A running command: a transport carries its streams, and signals to its process group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ssi.common.wire import CHUNK

OUTPUTS = ("stdout", "stderr")

HANG_UP_S = 5.0
"""From SIGHUP to SIGKILL, when nobody waits for the command any more."""

Sink = Callable[[str, bytes], Awaitable[None]]
"""Takes bytes of the output of that name; waits while the receiver does not use them."""


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
        self._process: asyncio.subprocess.Process | None = None
        self._early: list[int] = []

    def feed(self, data: bytes) -> None:
        """Bytes for its standard input; none for the end of it."""
        self._stdin.put_nowait(data)

    def kill(self, number: int) -> None:
        """Send a signal to its process group."""
        if self._process is None:
            self._early.append(number)
        elif self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def run(
        self, argv: Sequence[str], environment: Mapping[str, str], *, keep: Sequence[int] = ()
    ) -> int:
        """Run it to its end, the descriptors `keep` left open; return its status as a shell does.

        Cancelled, it hangs up, and kills what stays. Raises OSError if it cannot be started.
        """
        pipes = {name: os.pipe2(os.O_CLOEXEC) for name in OUTPUTS}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE,
                stdout=pipes["stdout"][1], stderr=pipes["stderr"][1],
                env=environment, start_new_session=True, pass_fds=keep,
            )  # fmt: skip
        finally:
            for _, write_end in pipes.values():
                os.close(write_end)
            if self._process is None:
                for read_end, _ in pipes.values():
                    os.close(read_end)
        outputs = {name: _Output(pipes[name][0]) for name in OUTPUTS}
        try:
            return await self._follow(self._process, outputs)
        except asyncio.CancelledError:
            await self._hang_up(self._process)
            raise
        finally:
            for output in outputs.values():
                os.close(output.fd)

    async def _follow(
        self, process: asyncio.subprocess.Process, outputs: Mapping[str, _Output]
    ) -> int:
        for number in self._early:
            self.kill(number)
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._pump_in(process))
            for name, output in outputs.items():
                group.create_task(self._pump_out(name, output))
            status = await process.wait()
            feeding.cancel()
            for output in outputs.values():
                output.end()
        return status if status >= 0 else 128 - status

    async def _hang_up(self, process: asyncio.subprocess.Process) -> None:
        self.kill(signal.SIGHUP)
        self.kill(signal.SIGCONT)  # a stopped one could not act on it
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_S):
                    await process.wait()
        finally:
            self.kill(signal.SIGKILL)
            await process.wait()

    async def _pump_in(self, process: asyncio.subprocess.Process) -> None:
        stdin = process.stdin
        assert stdin is not None
        while data := await self._stdin.get():
            with contextlib.suppress(ConnectionError):
                stdin.write(data)
                await stdin.drain()
            await self._used(len(data))
        stdin.close()

    async def _pump_out(self, name: str, output: _Output) -> None:
        while data := await output.read():
            await self._sink(name, data)
