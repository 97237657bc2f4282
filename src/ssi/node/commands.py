"""Commands that the host runs in this node (`ssi exec`), without a terminal."""

from __future__ import annotations

import asyncio
import signal

from ssi.common.streams import Credit
from ssi.common.wire import (
    Message,
    get_bytes,
    get_flag,
    get_int,
    get_texts,
    get_word,
    put_bytes,
)
from ssi.node.command import OUTPUTS, Command, start_in_ramdisk, start_in_userland
from ssi.node.hostline import HostLine
from ssi.node.launcher import Launcher, Program
from ssi.node.root import USERLAND, is_mounted

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/bash",
    "USER": "root",
}

MAX_ID = 2**53


class _Running:
    """A command and the line's part in it."""

    def __init__(self, number: int, host: HostLine) -> None:
        self.number = number
        self.credits = {name: Credit() for name in OUTPUTS}
        self.command = Command(self._send, self._give_credit)
        self._host = host

    async def _send(self, name: str, data: bytes) -> None:
        await self.credits[name].take(len(data))
        await self._host.stream(
            {"is": "output", "id": self.number, "name": name, "data": put_bytes(data)}
        )

    async def _give_credit(self, count: int) -> None:
        self._host.say("credit", id=self.number, bytes=count)


class Commands:
    """All commands that run for the host."""

    def __init__(self, host: HostLine, launcher: Launcher, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._launcher = launcher
        self._group = group
        self._running: dict[int, _Running] = {}
        host.hear("run", self._start)
        host.hear("stdin", self._feed)
        host.hear("credit", self._credit)
        host.hear("signal", self._signal)

    def _start(self, message: Message) -> None:
        number = get_int(message, "id", 0, MAX_ID)
        argv = get_texts(message, "argv")
        ramdisk = get_flag(message, "ramdisk")
        self._running[number] = running = _Running(number, self._host)
        self._group.create_task(self._run(running, argv, ramdisk=ramdisk))

    async def _run(self, running: _Running, argv: list[str], *, ramdisk: bool) -> None:
        if ramdisk:
            start = start_in_ramdisk(argv, ENVIRONMENT)
        else:
            if not is_mounted(USERLAND):
                self._end(running, status=None, why="the root is not mounted yet")
                return
            program = Program(argv, ENVIRONMENT, cwd=ENVIRONMENT["HOME"])
            start = start_in_userland(self._launcher, program)
        try:
            status = await running.command.run(start)
        except OSError as error:
            self._end(running, status=127, why=f"{argv[0]}: {error.strerror}")
        else:
            self._end(running, status=status, why="")

    def _end(self, running: _Running, *, status: int | None, why: str) -> None:
        del self._running[running.number]
        self._host.say("ended", id=running.number, status=status, why=why)

    def _find(self, message: Message) -> _Running | None:
        # None: it has ended while this was under way.
        return self._running.get(get_int(message, "id", 0, MAX_ID))

    def _feed(self, message: Message) -> None:
        if running := self._find(message):
            running.command.feed(get_bytes(message, "data"))

    def _credit(self, message: Message) -> None:
        if running := self._find(message):
            name = get_word(message, "name", OUTPUTS)
            running.credits[name].add(get_int(message, "bytes", 1, 2**31))

    def _signal(self, message: Message) -> None:
        if running := self._find(message):
            running.command.kill(get_int(message, "signal", 1, signal.NSIG - 1))
