"""Commands that the host runs in this node (`ssi exec`), without a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from ssi.common.streams import Credit
from ssi.common.wire import (
    CHUNK,
    Message,
    get_bytes,
    get_flag,
    get_int,
    get_text,
    get_texts,
    put_bytes,
)
from ssi.node.hostline import HostLine
from ssi.node.root import USERLAND, is_mounted, userland_argv

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/bash",
    "USER": "root",
}

MAX_ID = 2**53
OUTPUTS = ("stdout", "stderr")


class _Output:
    """One output of a command: read when there is something, sent when there is credit."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.credit = Credit()
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


class _Command:
    """One running command."""

    def __init__(self, number: int, host: HostLine) -> None:
        self.number = number
        self._host = host
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self.outputs: dict[str, _Output] = {}

    def feed(self, data: bytes) -> None:
        """Bytes for its standard input; none for the end of it."""
        self._stdin.put_nowait(data)

    def kill(self, number: int) -> None:
        """Send a signal to its process group."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def run(self, argv: list[str], environment: dict[str, str]) -> int:
        """Run it to its end; return its status as a shell gives it."""
        pipes = {name: os.pipe2(os.O_CLOEXEC) for name in OUTPUTS}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE,
                stdout=pipes["stdout"][1], stderr=pipes["stderr"][1],
                env=environment, start_new_session=True,
            )  # fmt: skip
        finally:
            for _, write_end in pipes.values():
                os.close(write_end)
            if self._process is None:
                for read_end, _ in pipes.values():
                    os.close(read_end)
        self.outputs = {name: _Output(pipes[name][0]) for name in OUTPUTS}
        try:
            return await self._follow(self._process)
        finally:
            for output in self.outputs.values():
                os.close(output.fd)

    async def _follow(self, process: asyncio.subprocess.Process) -> int:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._pump_in(process))
            for name, output in self.outputs.items():
                group.create_task(self._pump_out(name, output))
            status = await process.wait()
            feeding.cancel()
            for output in self.outputs.values():
                output.end()
        return status if status >= 0 else 128 - status

    async def _pump_in(self, process: asyncio.subprocess.Process) -> None:
        stdin = process.stdin
        assert stdin is not None
        while data := await self._stdin.get():
            with contextlib.suppress(ConnectionError):
                stdin.write(data)
                await stdin.drain()
            self._host.say("credit", id=self.number, bytes=len(data))
        stdin.close()

    async def _pump_out(self, name: str, output: _Output) -> None:
        while data := await output.read():
            await output.credit.take(len(data))
            await self._host.stream(
                {"is": "output", "id": self.number, "name": name, "data": put_bytes(data)}
            )


class Commands:
    """All commands that run for the host."""

    def __init__(self, host: HostLine, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._group = group
        self._running: dict[int, _Command] = {}
        host.hear("run", self._start)
        host.hear("stdin", self._feed)
        host.hear("credit", self._credit)
        host.hear("signal", self._signal)

    def _start(self, message: Message) -> None:
        number = get_int(message, "id", 0, MAX_ID)
        argv = get_texts(message, "argv")
        ramdisk = get_flag(message, "ramdisk")
        self._running[number] = command = _Command(number, self._host)
        self._group.create_task(self._run(command, argv, ramdisk=ramdisk))

    async def _run(self, command: _Command, argv: list[str], *, ramdisk: bool) -> None:
        environment = ENVIRONMENT
        if not ramdisk:
            if not is_mounted(USERLAND):
                self._end(command, status=None, why="the root is not mounted yet")
                return
            # cd: setns leaves the caller at the root of the namespace.
            argv = userland_argv(["/bin/sh", "-c", 'cd && exec "$@"', "sh", *argv])
        try:
            status = await command.run(argv, environment)
        except OSError as error:
            self._end(command, status=127, why=f"{argv[0]}: {error.strerror}")
        else:
            self._end(command, status=status, why="")

    def _end(self, command: _Command, *, status: int | None, why: str) -> None:
        del self._running[command.number]
        self._host.say("ended", id=command.number, status=status, why=why)

    def _find(self, message: Message) -> _Command | None:
        # None: it has ended while this was under way.
        return self._running.get(get_int(message, "id", 0, MAX_ID))

    def _feed(self, message: Message) -> None:
        if command := self._find(message):
            command.feed(get_bytes(message, "data"))

    def _credit(self, message: Message) -> None:
        command = self._find(message)
        output = command.outputs.get(get_text(message, "name")) if command else None
        if output:
            output.credit.add(get_int(message, "bytes", 1, 2**31))

    def _signal(self, message: Message) -> None:
        if command := self._find(message):
            command.kill(get_int(message, "signal", 1, signal.NSIG - 1))
