"""Devices of other nodes that processes here have open: what is done to them is done there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.devfs import streams
from ssi.node.devfs.keeper import Order
from ssi.node.devfs.places import MAX_I64, MAX_U32, Places
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import read_caller
from ssi.node.process.device import KIND_SHIFT, Control, Kind, Result, Wanted
from ssi.node.process.farends import PIECES, Kept, Pieces, Watches
from ssi.node.process.remembered import Remembered

FOLDER = Path("/run/ssi/devices")


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
        self._kept = Kept(folder, End)
        self._opening: dict[int, int] = {}
        """Requests that open one: the node that is asked."""
        self._pieces = Pieces()
        self._remembered = Remembered(asking, "device-done")
        self._watches = Watches(self._watch, self._remembered.settle)

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self, wanted: Wanted, place: int, flags: int) -> tuple[int, bool]:
        """Return a handle, and whether it has no offsets; raises OSError."""
        number = wanted.number
        if end := self._kept.find_opened(number):
            return end.handle, end.streams
        if streams.is_stream(place):
            streams.check_opener(wanted.thread)
            question = "stream-open"
            node, stream = streams.find_stream(place)
            words: Message = {"number": number, "stream": stream}
        else:
            question = "device-open"
            node, path = self._places.find(place)
            caller = await asyncio.to_thread(read_caller, wanted.thread)
            words = {**caller.dump(), "number": number, "path": path, "flags": flags}
        self._opening[number] = node
        try:
            answer = await self._asking.ask(node, question, words, within_s=FOREVER_S)
        except NodeLost as error:
            raise OSError(errno.EIO, str(error)) from error
        finally:
            del self._opening[number]
        if error_number := wire.get_int(answer, "error", 0, 4095):
            raise OSError(error_number, os.strerror(error_number))
        end = End(
            self._kept.next_serial(), number, node, wire.get_text(answer, "boot"),
            wire.get_int(answer, "end", 1, MAX_U32), wire.get_flag(answer, "streams"),
        )  # fmt: skip
        self._kept.save(end)
        self._remembered.add(number, node, {"number": number, "end": end.end})
        return end.handle, end.streams

    async def close(self, handle: int) -> None:
        """The last descriptor is closed: it returns when the device is."""
        end = self._kept.find(handle)
        if end is None:
            return
        with contextlib.suppress(NodeLost):
            words = {"end": end.end, "boot": end.boot}
            await self._asking.ask(end.node, "device-close", words, within_s=FOREVER_S)
        self._kept.forget(end)

    def release(self, handle: int) -> None:
        """Take it that it is closed: `close` has done it."""

    # -- what is done to them --------------------------------------------------------------------

    async def _do(self, wanted: Wanted, order: Order, **fields: object) -> Result:
        end = self._kept.find(wanted.handle)
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
        end = self._kept.find(wanted.handle)

        async def do(piece: Wanted, given: str) -> Result:
            return await self._do(piece, Order.WRITE, data=given)

        return await self._pieces.write(wanted, data, do, goes_on=bool(end and end.streams))

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

    async def _watch(self, wanted: Wanted, events: int) -> Result:
        return await self._do(wanted, Order.WATCH, value=events)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are."""
        return await self._watches.poll(wanted, events, notify)

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""
        node, named = self._opening.get(wanted.number, 0), 0
        if not node and (end := self._kept.find(wanted.handle)):
            node, named = end.node, end.end
        number = self._pieces.give_up(wanted.number)
        if node:
            with contextlib.suppress(SsiError):
                await self._asking.ask(node, "device-cancel", {"number": number, "end": named})

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""
        await self._remembered.settle(number)
