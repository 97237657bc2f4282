"""The local server with a cluster behind it, run beside a test that calls it as programs do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ssi.common import frames
from ssi.common.errors import SsiError
from ssi.node.applets.api import Api
from ssi.node.applets.query import Query
from ssi.node.local import Applet, LocalServer

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A transition."""

    number: int
    time: float
    node: int
    was: str
    now: str
    cause: str
    view: int


class SmallCluster:
    """A cluster that is only what is told to it."""

    def __init__(self, *up: int, node: int = 1, name: str = "small") -> None:
        self.name = name
        self.node = node
        self.view = 0
        self.members: tuple[int, ...] = ()
        self.states: dict[int, str] = {}
        self.init_node: int | None = None
        self.pending_events = 0
        self.transitions: list[Step] = []
        self._waiting: list[asyncio.Event] = []
        for number in up:
            self.move(number, "UP", "joined")

    def move(self, node: int, state: str, cause: str) -> None:
        """Have `node` go to `state`."""
        was = self.states.get(node, "NEVERUP")
        self.states[node] = state
        self.view += 1
        number = self.transitions[-1].number + 1 if self.transitions else 1
        time = 1_700_000_000.25 + number
        self.transitions.append(Step(number, time, node, was, state, cause, self.view))
        self.members = tuple(sorted(n for n, now in self.states.items() if now != "DOWN"))
        self.init_node = min(self.members, default=None)
        for waiting in self._waiting:
            waiting.set()

    async def wait_transition(self, after: int) -> None:
        """Return once there is a transition above `after`."""
        waiting = asyncio.Event()
        self._waiting.append(waiting)
        try:
            while not self.transitions or self.transitions[-1].number <= after:
                waiting.clear()
                await waiting.wait()
        finally:
            self._waiting.remove(waiting)

    async def set_state(self, node: int, state: str, cause: str) -> None:
        """Have `node` go to `state`; a node that is DOWN stays so."""
        if self.states.get(node) == "DOWN":
            raise SsiError(f"node{node} cannot go from DOWN to {state}")
        self.move(node, state, cause)


@dataclasses.dataclass
class Serving:
    """A server that runs in a thread of its own."""

    folder: Path
    server: LocalServer
    cluster: SmallCluster
    loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[], _T]) -> _T:
        """Call `function` where the server runs."""

        async def run() -> _T:
            return function()

        return self.wait(run())

    def wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Wait for `coroutine`, run where the server runs."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def connect(self) -> socket.socket:
        """Return a connection."""
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(10)
        line.connect(os.fspath(self.folder / frames.SOCKET_NAME))
        return line

    def ask(self, *argv: str) -> tuple[int, str, str]:
        """Return status, output and error of `argv`."""
        with self.connect() as line:
            line.sendall(frames.encode_call(argv))
            return read_answer(line)


def read_frame(line: socket.socket) -> tuple[int, bytes]:
    """Return kind and bytes of the next frame; EOFError at the end."""
    kind, length = frames.parse_head(_read(line, frames.HEAD.size))
    return kind, _read(line, length)


def _read(line: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = line.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def read_answer(line: socket.socket) -> tuple[int, str, str]:
    """Return status, output and error of what `line` has asked for."""
    written = {kind: bytearray() for kind in frames.Reply}
    while True:
        kind, data = read_frame(line)
        written[frames.Reply(kind)] += data
        if kind == frames.Reply.END:
            out, error = (written[kind] for kind in (frames.Reply.STDOUT, frames.Reply.STDERR))
            return data[0], out.decode(), error.decode()


@contextlib.contextmanager
def serving(
    folder: Path, cluster: SmallCluster | None = None, **applets: Applet
) -> Iterator[Serving]:
    """Serve `applets` and those of `cluster` in `folder`."""
    server = LocalServer(folder)
    cluster = cluster or SmallCluster(1, 2)
    Query(cluster).register(server)
    Api(cluster).register(server)
    for name, applet in applets.items():
        server.serve(name, applet)
    ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []
    up = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(server.run())
        await asyncio.sleep(0)  # its first step opens the socket
        ready.append((asyncio.get_running_loop(), task))
        up.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    up.wait(10)
    loop, task = ready[0]
    try:
        yield Serving(folder, server, cluster, loop)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
    assert not thread.is_alive()
