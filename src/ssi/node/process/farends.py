"""What descriptors of files on other nodes have in common: FIFOs, devices, message queues."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from ssi.common import wire
from ssi.node.process.device import KIND_SHIFT, Result, Wanted
from ssi.node.tasks import Tasks

WATCH = 1 << 59
PIECE_SHIFT = 44
PIECES = WATCH - (1 << PIECE_SHIFT)
"""Set in the number of what follows from a request; pieces of a write are counted. Higher bits are
the home's."""


class FarEnd(Protocol):
    """A descriptor's end, as a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]

    @property
    def serial(self) -> int:
        """What it is called here: the low part of the kernel's handle."""

    @property
    def number(self) -> int:
        """Of the request that opened it."""


EndT = TypeVar("EndT", bound=FarEnd)


class Kept(Generic[EndT]):
    """All of a kind that this node has, each in a file for the next daemon."""

    def __init__(self, folder: Path, load: Callable[..., EndT]) -> None:
        self._folder = folder
        self._by_serial: dict[int, EndT] = {}
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            try:
                end = load(**json.loads(path.read_text()))
            except (ValueError, TypeError):
                path.unlink()
            else:
                self._by_serial[end.serial] = end

    def __iter__(self) -> Iterator[EndT]:
        return iter(self._by_serial.values())

    def __contains__(self, serial: int) -> bool:
        return serial in self._by_serial

    def next_serial(self) -> int:
        """Return what the next one is to be called."""
        return 1 + max(self._by_serial, default=0)

    def save(self, end: EndT) -> None:
        """Keep it, or what it is now."""
        self._by_serial[end.serial] = end
        path = self._folder / str(end.serial)
        fresh = path.with_suffix(".partial")
        fresh.write_text(json.dumps(dataclasses.asdict(end)))
        fresh.rename(path)

    def forget(self, end: EndT) -> None:
        """It is closed."""
        self._by_serial.pop(end.serial, None)
        (self._folder / str(end.serial)).unlink(missing_ok=True)

    def get(self, serial: int) -> EndT | None:
        """Return one by what it is called here."""
        return self._by_serial.get(serial)

    def find(self, handle: int) -> EndT | None:
        """Return one by the kernel's handle."""
        return self._by_serial.get(handle & ((1 << KIND_SHIFT) - 1))

    def find_opened(self, number: int) -> EndT | None:
        """Return what a request has opened, if the daemon then was killed before it said so."""
        return next((end for end in self if end.number == number), None)


class Watches:
    """Who waits for events: once for each descriptor and kind of event."""

    def __init__(
        self, watch: Callable[[Wanted, int], Awaitable[Result]],
        settle: Callable[[int], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`watch` returns the events there are: if it may wait, once there are some."""
        self._watch = watch
        self._settle = settle
        self._watched: set[tuple[int, int]] = set()
        self._tasks = Tasks()

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are; if none, `notify` is called once there are."""
        result = await self._watch(wanted, events)
        if result.value == 0 and notify and (wanted.handle, events) not in self._watched:
            self._watched.add((wanted.handle, events))
            self._tasks.spawn(self._await_events(wanted, events, notify))
        return result

    async def _await_events(self, wanted: Wanted, events: int, notify: Callable[[], None]) -> None:
        later = dataclasses.replace(wanted, number=wanted.number | WATCH, nonblock=False)
        try:
            with contextlib.suppress(OSError):
                await self._watch(later, events)
        finally:
            self._watched.discard((wanted.handle, events))
        notify()
        await self._settle(later.number)


class Pieces:
    """Writes, piece by piece, each what there is room for.

    The home remembers all until the end: the next daemon would begin with the first.
    """

    def __init__(self) -> None:
        self._under_way: dict[int, int] = {}
        """The number of the piece, by the request's."""
        self._given_up: set[int] = set()

    async def write(
        self, wanted: Wanted, data: bytes, do: Callable[[Wanted, str], Awaitable[Result]], *,
        goes_on: bool = True,
    ) -> Result:  # fmt: skip
        """Have all written, or what there is room for if the writer does not wait.

        Without `goes_on` what has been taken of the first piece is all.
        """
        written, count = 0, 0
        try:
            while True:
                number = wanted.number | count << PIECE_SHIFT
                self._under_way[wanted.number] = number
                piece = dataclasses.replace(wanted, number=number)
                try:
                    result = await do(piece, wire.put_bytes(data[written:]))
                except OSError as error:
                    result = Result(-(error.errno or errno.EIO))
                written += max(0, result.value)
                over = result.value <= 0 or written >= len(data) or wanted.nonblock
                if over or not goes_on or wanted.number in self._given_up:
                    return Result(written) if written else result
                count += 1
        finally:
            del self._under_way[wanted.number]
            self._given_up.discard(wanted.number)

    def give_up(self, number: int) -> int:
        """A request is to end soon; return the number of what is under way for it."""
        if number in self._under_way:
            self._given_up.add(number)
        return self._under_way.get(number, number)
