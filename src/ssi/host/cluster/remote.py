"""A command that runs in a node: this terminal's end of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading

from ssi.common import wire
from ssi.common.errors import SsiError, TimedOut
from ssi.common.line import Line
from ssi.common.streams import Credit
from ssi.common.wire import CHUNK, Message
from ssi.host.cluster.client import connect, converse
from ssi.host.cluster.spec import ClusterPlace

_OUTPUTS = {"stdout": 1, "stderr": 2}


class _Input:
    """This process's standard input, sent as the command reads it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.credit = Credit()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=2)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        # A thread: standard input may be a plain file, which no event loop can wait for.
        with contextlib.suppress(RuntimeError, OSError):  # the loop has ended, or there is no stdin
            data = b"-"
            while data:
                data = os.read(0, CHUNK)
                asyncio.run_coroutine_threadsafe(self._chunks.put(data), loop).result()

    async def run(self) -> None:
        """Send until the end of it."""
        threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True).start()
        data = b"-"
        while data:
            data = await self._chunks.get()
            await self.credit.take(len(data))
            await self._line.send({"is": "stdin", "data": wire.put_bytes(data)})


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Session:
    def __init__(self, line: Line) -> None:
        self._line = line
        self.input = _Input(line)

    def hear(self, message: Message) -> None:
        """Take an event of the command."""
        kind = wire.get_text(message, "is")
        if kind == "output":
            name = wire.get_text(message, "name")
            data = wire.get_bytes(message, "data")
            # Blocks while nobody reads our output: the command gets no credit then, and waits.
            _write_all(_OUTPUTS[name], data)
            self._line.post({"is": "credit", "name": name, "bytes": len(data)})
        elif kind == "credit":
            self.input.credit.add(wire.get_int(message, "bytes", 1, 2**31))

    def pass_signal(self, number: int) -> None:
        """Have the command get the signal we got; a second one ends ourselves."""
        self._line.post({"is": "signal", "signal": number})
        asyncio.get_running_loop().remove_signal_handler(number)


async def _run(place: ClusterPlace, request: Message, within_s: float | None) -> Message:
    async with connect(place) as line:
        session = _Session(line)
        feeding = asyncio.create_task(session.input.run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            loop.add_signal_handler(number, session.pass_signal, number)
        try:
            async with asyncio.timeout(within_s):
                return await converse(line, request, session.hear)
        finally:
            feeding.cancel()


async def collect_output(place: ClusterPlace, node: int, argv: list[str]) -> bytes:
    """Run `argv` on `node`, without input; return what it printed.

    Raises SsiError when it fails, with what it said; NodeLost when the node dies.
    """
    written = {name: bytearray() for name in _OUTPUTS}
    async with connect(place) as line:

        def hear(message: Message) -> None:
            if wire.get_text(message, "is") == "output":
                name, data = (
                    wire.get_word(message, "name", _OUTPUTS),
                    wire.get_bytes(message, "data"),
                )
                written[name] += data
                line.post({"is": "credit", "name": name, "bytes": len(data)})

        request = {"do": "exec", "node": node, "argv": argv, "ramdisk": False}
        answer = await converse(line, request, hear)
    if answer.get("status") != 0:
        said = written["stderr"].decode(errors="replace").strip()
        raise SsiError(said or str(answer.get("why") or f"{argv[0]} failed"))
    return bytes(written["stdout"])


def run_command(
    place: ClusterPlace, node: int, argv: list[str], *, ramdisk: bool, within_s: float | None
) -> int:
    """Run `argv` on `node` with our standard streams; return its exit status as a shell gives it.

    Raises NodeLost when the node dies, TimedOut after `within_s` seconds; the command then gets
    SIGHUP.
    """
    request = {"do": "exec", "node": node, "argv": argv, "ramdisk": ramdisk}
    try:
        answer = asyncio.run(_run(place, request, within_s))
    except TimeoutError as error:
        raise TimedOut(f"node{node}: the command ran for more than {within_s:g} s") from error
    if answer.get("status") is None:
        raise SsiError(f"node{node}: {answer.get('why') or 'the command did not run'}")
    if answer.get("why"):
        sys.stderr.write(f"ssi: node{node}: {answer['why']}\n")
    return wire.get_int(answer, "status", 0, 255)
