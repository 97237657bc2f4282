"""Devices of other nodes that processes here have open: what is done to them is done there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.node.devfs.keeper import Order
from ssi.node.devfs.places import MAX_I64, MAX_U32, Places
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import read_caller
from ssi.node.process.device import KIND_SHIFT, Control, Kind, Result, Wanted
from ssi.node.process.remembered import Remembered
from ssi.node.tasks import Tasks

FOLDER = Path("/run/ssi/devices")
WATCH = 1 << 59
PIECE_SHIFT = 44
PIECES = WATCH - (1 << PIECE_SHIFT)
"""Set in the number of what follows from a request; pieces of a write are counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """One of them."""

    serial: int
    number: int
    """Of the request that opened it."""
    node: int
    boot: str
    end: int
    """What it is called there."""
    streams: bool

    @property
    def handle(self) -> int:
        """What the kernel knows it by."""
        return Kind.DEVICE << KIND_SHIFT | self.serial


class Ends:
    """All of this node."""

    def __init__(self, places: Places, asking: Asking, folder: Path = FOLDER) -> None:
        self._places = places
        self._asking = asking
        self._folder = folder
        self._by_serial: dict[int, End] = {}
        self._opening: dict[int, int] = {}
        """Requests that open one: the node that is asked."""
        self._writing: dict[int, int] = {}
        """Requests that write: the number of the piece that is under way."""
        self._given_up: set[int] = set()
        self._watched: set[tuple[int, int]] = set()
        """Handles, and events that somebody waits for."""
        self._remembered = Remembered(asking, "device-done")
        self._tasks = Tasks()
        self._take_over()

    def _take_over(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.iterdir():
            try:
                end = End(**json.loads(path.read_text()))
            except (ValueError, TypeError):
                path.unlink()
            else:
                self._by_serial[end.serial] = end

    def _save(self, end: End) -> None:
        path = self._folder / str(end.serial)
        fresh = path.with_suffix(".partial")
        fresh.write_text(json.dumps(dataclasses.asdict(end)))
        fresh.rename(path)

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self, wanted: Wanted, place: int, flags: int) -> tuple[int, bool]:
        """Return a handle, and whether it has no offsets; raises OSError."""
        number = wanted.number
        for end in self._by_serial.values():
            if end.number == number:  # the daemon before this one was killed before it could say so
                return end.handle, end.streams
        node, path = self._places.find(place)
        caller = await asyncio.to_thread(read_caller, wanted.thread)
        words = {**caller.dump(), "number": number, "path": path, "flags": flags}
        self._opening[number] = node
        try:
            answer = await self._asking.ask(node, "device-open", words, within_s=FOREVER_S)
        except NodeLost as error:
            raise OSError(errno.EIO, str(error)) from error
        finally:
            del self._opening[number]
        if error_number := wire.get_int(answer, "error", 0, 4095):
            raise OSError(error_number, os.strerror(error_number))
        end = End(
            1 + max(self._by_serial, default=0), number, node, wire.get_text(answer, "boot"),
            wire.get_int(answer, "end", 1, MAX_U32), wire.get_flag(answer, "streams"),
        )  # fmt: skip
        self._by_serial[end.serial] = end
        self._save(end)
        self._remembered.add(number, node, {"number": number, "end": end.end})
        return end.handle, end.streams

    async def close(self, handle: int) -> None:
        """The last descriptor is closed: it returns when the device is."""
        end = self._find(handle)
        if end is None:
            return
        with contextlib.suppress(NodeLost):
            words = {"end": end.end, "boot": end.boot}
            await self._asking.ask(end.node, "device-close", words, within_s=FOREVER_S)
        self._by_serial.pop(end.serial, None)
        (self._folder / str(end.serial)).unlink(missing_ok=True)

    def release(self, handle: int) -> None:
        """Take it that it is closed: `close` has done it."""

    def _find(self, handle: int) -> End | None:
        return self._by_serial.get(handle & ((1 << KIND_SHIFT) - 1))

    # -- what is done to them --------------------------------------------------------------------

    async def _do(self, wanted: Wanted, order: Order, **fields: object) -> Result:
        end = self._find(wanted.handle)
        if end is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        words = {
            "number": wanted.number, "order": int(order), "value": 0, "size": 0, "data": "",
            "offset": wanted.offset, "nonblock": wanted.nonblock, "end": end.end,
            "boot": end.boot, **fields,
        }  # fmt: skip
        try:
            answer = await self._asking.ask(end.node, "device-do", words, within_s=FOREVER_S)
        except NodeLost as error:
            raise OSError(errno.EIO, str(error)) from error
        done = {"number": wanted.number, "end": end.end}
        self._remembered.add(wanted.number & ~PIECES, end.node, done)
        result = wire.get_int(answer, "result", -4095, MAX_I64)
        return Result(result, wire.get_bytes(answer, "data"))

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Read."""
        return await self._do(wanted, Order.READ, value=size)

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Write: all, unless who writes does not wait or a device has no room for more."""
        end = self._find(wanted.handle)
        written, count = 0, 0
        try:
            while True:
                number = wanted.number | count << PIECE_SHIFT
                self._writing[wanted.number] = number
                piece = dataclasses.replace(wanted, number=number)
                given = wire.put_bytes(data[written:])
                try:
                    result = await self._do(piece, Order.WRITE, data=given)
                except OSError as error:
                    result = Result(-(error.errno or errno.EIO))
                written += max(0, result.value)
                over = result.value <= 0 or written >= len(data) or wanted.nonblock
                if over or not end or not end.streams or wanted.number in self._given_up:
                    return Result(written) if written else result
                count += 1
        finally:
            del self._writing[wanted.number]
            self._given_up.discard(wanted.number)

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """Do an ioctl."""
        if control.by_value:
            size = argument & 0xFFFFFFFF
            return await self._do(wanted, Order.IOCTL_VALUE, value=command, size=size)
        words = {"value": command, "size": control.returned, "data": wire.put_bytes(data)}
        return await self._do(wanted, Order.IOCTL, **words)

    async def seek(self, wanted: Wanted, whence: int) -> Result:
        """Return the new offset."""
        return await self._do(wanted, Order.SEEK, value=whence)

    async def sync(self, wanted: Wanted) -> Result:
        """Have written what was written."""
        return await self._do(wanted, Order.SYNC)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are."""
        result = await self._do(wanted, Order.WATCH, value=events)
        if result.value == 0 and notify and (wanted.handle, events) not in self._watched:
            self._watched.add((wanted.handle, events))
            self._tasks.spawn(self._await_events(wanted, events, notify))
        return result

    async def _await_events(self, wanted: Wanted, events: int, notify: Callable[[], None]) -> None:
        later = dataclasses.replace(wanted, number=wanted.number | WATCH, nonblock=False)
        try:
            with contextlib.suppress(OSError):
                await self._do(later, Order.WATCH, value=events)
        finally:
            self._watched.discard((wanted.handle, events))
        notify()
        await self.settle(later.number)

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""
        node, named = self._opening.get(wanted.number, 0), 0
        if not node and (end := self._find(wanted.handle)):
            node, named = end.node, end.end
        number = self._writing.get(wanted.number, wanted.number)
        if wanted.number in self._writing:
            self._given_up.add(wanted.number)
        if node:
            with contextlib.suppress(SsiError):
                await self._asking.ask(node, "device-cancel", {"number": number, "end": named})

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""
        await self._remembered.settle(number)
