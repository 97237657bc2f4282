"""/proc/PID/goto and cantmove: the places, and writes that are interrupted and begin again."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from ssi.common.errors import SsiError
from ssi.node.migration.criu import CannotMove
from ssi.node.proc import fuse
from ssi.node.proc.channel import Channel
from ssi.node.proc.control import Control
from ssi.node.proc.fuse import ERESTARTSYS, Op, Request
from ssi.node.proc.places import CANTMOVE, GOTO, ControlPlace, control_of, place_of
from ssi.node.process.caller import Caller

PID, THREAD = 65537, os.getpid()
PLACE = ControlPlace(PID, GOTO, THREAD)


class Moves:
    """Moves nothing: each move ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.ends: asyncio.Queue[SsiError | None] = asyncio.Queue()
        self.obstacles: list[str] = []

    async def move(self, pid: int, target: int, caller: Caller) -> None:
        assert caller.pid == os.getpid()
        self.begun.append((pid, target))
        if error := await self.ends.get():
            raise error

    async def ask(self, pid: int, caller: Caller) -> list[str]:
        assert (pid, caller.pid) == (PID, os.getpid())
        return self.obstacles


def request(op: int, body: bytes = b"", place: ControlPlace = PLACE, unique: int = 8) -> Request:
    return Request(unique, op, place.node, 0, THREAD, body)


def writing(text: bytes) -> bytes:
    return struct.pack("=QQIIQII", 0, 0, len(text), 0, 0, 0, 0) + text


async def ask(control: Control, request: Request, place: ControlPlace) -> bytes:
    return await control.answers[request.op](request, place)


def run(check: Callable[[Moves, Control], Awaitable[None]]) -> None:
    async def main() -> None:
        moves = Moves()
        await check(moves, Control(moves, moves))

    asyncio.run(main())


def test_a_place_is_a_number_and_back() -> None:
    for place in (ControlPlace(), ControlPlace(PID), ControlPlace(2**22 - 1, CANTMOVE, 2**22 - 1)):
        assert control_of(place.node) == place
        assert place_of(place.node) is None
    assert control_of(fuse.ROOT) is None


def test_a_folder_for_each_who_looks() -> None:
    async def check(_: Moves, control: Control) -> None:
        folder = ControlPlace().child(f"{PID}-{THREAD}")
        assert folder == ControlPlace(PID, "", THREAD)
        for wrong in ("1", "1-", "-1", "0-1", "1-0", "1-2-3", "01-2", f"1-{2**22}", "goto"):
            with pytest.raises(FileNotFoundError):
                ControlPlace().child(wrong)
        entry = control.entry_of(PLACE)
        said = await ask(control, request(Op.LOOKUP, b"goto\0", folder), folder)
        assert said == entry.pack()
        with pytest.raises(FileNotFoundError):
            await ask(control, request(Op.LOOKUP, b"stat\0", folder), folder)

    run(check)


def test_a_write_is_a_move() -> None:
    async def check(moves: Moves, control: Control) -> None:
        moves.ends.put_nowait(None)
        said = await ask(control, request(Op.WRITE, writing(b"2\n")), PLACE)
        assert said == struct.pack("=II", 2, 0)
        assert moves.begun == [(PID, 2)]
        for wrong in (b"", b"0", b"two", b"128", b"1 2", b"\xff"):
            with pytest.raises(OSError, match="no node") as caught:
                await ask(control, request(Op.WRITE, writing(wrong)), PLACE)
            assert caught.value.errno == errno.EINVAL
        moves.ends.put_nowait(CannotMove("why", number=errno.EBUSY))
        with pytest.raises(OSError, match="why") as caught:
            await ask(control, request(Op.WRITE, writing(b"2")), PLACE)
        assert caught.value.errno == errno.EBUSY

    run(check)


def test_a_write_that_begins_again_moves_once() -> None:
    async def check(moves: Moves, control: Control) -> None:
        write = request(Op.WRITE, writing(b"3"))
        # While the move goes on; when it has failed; and then it is another one.
        for _ in range(2):
            task = asyncio.create_task(ask(control, write, PLACE))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        moves.ends.put_nowait(CannotMove("failed", number=errno.EIO))
        await asyncio.sleep(0.01)
        with pytest.raises(OSError, match="failed"):
            await ask(control, write, PLACE)
        assert moves.begun == [(PID, 3)]
        moves.ends.put_nowait(None)
        await ask(control, write, PLACE)
        assert moves.begun == [(PID, 3)] * 2

    run(check)


def test_success_is_not_remembered() -> None:
    """Who comes back may want to go there once more."""

    async def check(moves: Moves, control: Control) -> None:
        write = request(Op.WRITE, writing(b"3"))
        task = asyncio.create_task(ask(control, write, PLACE))
        await asyncio.sleep(0.01)
        task.cancel()
        moves.ends.put_nowait(None)
        await asyncio.sleep(0.01)
        moves.ends.put_nowait(None)
        await ask(control, write, PLACE)
        assert moves.begun == [(PID, 3)] * 2

    run(check)


def test_an_interrupted_write_is_answered_at_once() -> None:
    async def main() -> None:
        kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        moves = Moves()
        control = Control(moves, moves)
        running = asyncio.create_task(
            Channel(ours.detach()).run(lambda one: ask(control, one, PLACE))
        )
        for op, body in ((Op.WRITE, writing(b"2")), (Op.INTERRUPT, struct.pack("=Q", 8))):
            head = struct.pack("=IIQQIIIHH", 40 + len(body), op, 8, PLACE.node, 0, 0, THREAD, 0, 0)
            kernel.send(head + body)
        kernel.settimeout(10)
        said = await asyncio.to_thread(kernel.recv, 100)
        assert said == struct.pack("=IiQ", 16, -ERESTARTSYS, 8)
        running.cancel()
        kernel.close()

    asyncio.run(main())


def test_cantmove_says_what_keeps_it() -> None:
    async def check(moves: Moves, control: Control) -> None:
        place = ControlPlace(PID, CANTMOVE, THREAD)
        moves.obstacles = ["it is pinned", "it is in a chroot: /x"]
        text = b"it is pinned\nit is in a chroot: /x\n"
        body = struct.pack("=QQII", 0, 0, 3, 0)
        assert await ask(control, request(Op.READ, body, place), place) == text[:3]
        # Who has read the beginning reads the end of the same.
        moves.obstacles = []
        body = struct.pack("=QQII", 0, 3, 4096, 0)
        assert await ask(control, request(Op.READ, body, place), place) == text[3:]
        body = struct.pack("=QQII", 0, 0, 4096, 0)
        assert await ask(control, request(Op.READ, body, place), place) == b""
        with pytest.raises(PermissionError):
            await ask(control, request(Op.WRITE, writing(b"2"), place), place)

    run(check)
