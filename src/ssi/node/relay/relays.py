"""Sockets of processes here whose other ends stayed where they were made.

Over here such a socket is one of a real pair, whose other one the keeper has. What is done at the
far end its ghost or remnant does, as for any descriptor that stayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.bodies import Bodies, Body
from ssi.node.process.orders import Order
from ssi.node.relay.keeper import Relay, RelayKeeper, State, Want
from ssi.node.relay.saved import Saved, pass_descriptors
from ssi.node.tasks import Tasks

AGAIN_S = 0.5


class Relays:
    """Those of this node."""

    def __init__(self, asking: Asking, bodies: Bodies, keeper: RelayKeeper | None = None) -> None:
        self._asking = asking
        self._bodies = bodies
        self._keeper = keeper or RelayKeeper()
        self._tasks = Tasks()
        self._remembered: dict[int, tuple[int, str]] = {}
        """By which ghosts the answers are remembered: nodes and ids."""
        self._keeper.on_want = lambda want: self._tasks.spawn(self._do(want))
        self._keeper.on_cancel = lambda number: self._tasks.spawn(self._cancel(number))
        self._keeper.on_done = lambda number: self._tasks.spawn(self._forget(number))

    async def run(self) -> None:
        """Keep the keeper running, until cancelled."""
        await self._keeper.run()

    async def wait_known(self) -> None:
        """Wait until all relays are known."""
        await self._keeper.wait_told()

    def find(self, inode: int) -> Relay | None:
        """Return the relay of a process's socket."""
        return next((one for one in self._keeper.relays.values() if one.inode == inode), None)

    # -- processes that come ---------------------------------------------------------------------

    async def add(self, handle: int, far: int, path: Path, flags: int) -> int:
        """Return a socket that has the handle's far end, which `far` keeps open; raises OSError.

        What goes along with it is in an image of a move; it rests until `begin`.
        """
        with path.open("rb") as file:
            fd = await self._keeper.add(handle, file.fileno(), far, path.parent.name)
        _set_nonblock(fd, flags)
        Saved.read(path).shut(fd)
        return fd

    async def bring_home(self, fd: int, path: Path, flags: int) -> int:
        """Return a socket for one whose real end `fd` is here, with what was on its way."""
        saved = Saved.read(path)
        inode = os.fstat(fd).st_ino
        if saved.is_empty:
            back = os.dup(fd)
        elif relay := self.find(inode):
            with path.open("rb") as file:
                await self._keeper.give_back(relay, file.fileno(), fd)
            back = os.dup(fd)
        else:
            return await self.add(0, fd, path, flags)
        pass_descriptors(back, passes=True)
        _set_nonblock(back, flags)
        saved.shut(back)
        return back

    # -- processes that leave --------------------------------------------------------------------

    async def freeze(self, relay: Relay, path: Path, near: socket.socket, halves: int) -> None:
        """Write what is on its way through a relay, and in its socket, into an image of a move.

        The socket's process does not run; it has shut these halves. Raises OSError.
        """
        with path.open("wb") as file:
            await self._keeper.freeze(relay, file.fileno(), near.fileno(), path.parent.name)
        saved = Saved.read(path)
        saved.take(near, halves)
        saved.write(path)

    async def settle(self, move: str, *, left: bool) -> None:
        """Have those go on that were stopped for a move; or end, if their process has left."""
        await self.wait_known()
        for relay in self._list(move, (State.FREEZES, State.FROZEN)):
            self._let(relay, goes_on=not left)

    async def begin(self, move: str, *, goes_on: bool) -> None:
        """Have those go on that came with a move, or none of them be left."""
        await self.wait_known()
        for relay in self._list(move, (State.RESTS,)):
            self._let(relay, goes_on=goes_on)

    async def settle_others(self, moves: Collection[str]) -> None:
        """Settle what a daemon before this one has left of other moves than these."""
        await self.wait_known()
        for relay in list(self._keeper.relays.values()):
            if relay.state != State.RUNS and relay.move not in moves:
                self._let(relay, goes_on=relay.state != State.RESTS)

    def list_used(self, owner: Body) -> set[int]:
        """Return what is used of an owner's descriptors."""
        found = set()
        for relay in self._keeper.relays.values():
            if relay.handle and relay.state == State.RUNS:
                with contextlib.suppress(OSError):
                    body, fd = self._bodies.of(relay.handle)
                    found |= {fd} if body is owner else set()
        return found

    def _list(self, move: str, states: Collection[State]) -> Sequence[Relay]:
        return [
            one for one in self._keeper.relays.values() if one.move == move and one.state in states
        ]

    def _let(self, relay: Relay, *, goes_on: bool) -> None:
        if goes_on:
            self._keeper.go_on(relay)
        else:
            self._keeper.end(relay)

    # -- the far ends ----------------------------------------------------------------------------

    async def _do(self, want: Want) -> None:
        result, data = await self._ask(want)
        self._keeper.answer(want, result, data)

    async def _ask(self, want: Want) -> tuple[int, bytes]:
        try:
            body, fd = self._bodies.of(want.handle)
            home = body.home
            self._remembered[want.number] = home, body.id
            words = {
                "id": body.id, "number": want.number, "order": want.order, "fd": fd,
                "value": want.value, "size": 0, "flags": want.flags,
                "data": wire.put_bytes(want.data),
            }  # fmt: skip
            answer = await self._asking.ask(home, "ghost-do", words, within_s=FOREVER_S)
        except (OSError, NodeLost):
            return -errno.EIO, b""
        data = wire.get_bytes(answer, "data") if want.order == Order.READ else b""
        return wire.get_int(answer, "result", -4095, 2**31), data

    async def _cancel(self, number: int) -> None:
        while remembered := self._remembered.get(number):
            home, key = remembered
            with contextlib.suppress(SsiError):
                await self._asking.ask(home, "ghost-cancel", {"id": key, "number": number})
            # It may have come before what it cancels.
            await asyncio.sleep(AGAIN_S)

    async def _forget(self, number: int) -> None:
        if remembered := self._remembered.pop(number, None):
            home, key = remembered
            with contextlib.suppress(SsiError):
                await self._asking.tell(home, "ghost-done", {"id": key, "number": number})


def _set_nonblock(fd: int, flags: int) -> None:
    """Have it wait or not, as the socket did; what else it has of flags stays."""
    others = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK
    fcntl.fcntl(fd, fcntl.F_SETFL, others | flags & os.O_NONBLOCK)
