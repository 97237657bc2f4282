"""Segments of System V shared memory: memory of one node, until another one attaches it.

Then its home puts it into a file of the root, and each node that attaches it has a segment of its
own with the same identifier, of the same file (device.py). The home's stays until nobody has it
attached anywhere. Nothing is known here that kernels and the folder do not know: a daemon that
comes after one that was killed looks there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import struct
import time
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call as Question
from ssi.node.ics.ics import Ics
from ssi.node.ipc import device
from ssi.node.ipc.device import Device, Segment
from ssi.node.ipc.keeper import Call, IpcKeeper, Kind, Wish
from ssi.node.ipc.places import Places
from ssi.node.process.asking import Asking
from ssi.node.process.caller import Caller
from ssi.node.root import SYSROOT
from ssi.node.state.ipc import MAX_ID, Home

logger = logging.getLogger(__name__)

STAT = 2
PAGE = 4096
LINGER_S = 1.0
"""Who has been let through to attach one has done so in that time."""

_ABOUT = struct.Struct("=qqqiiQ")
_ABOUT_AT = 56
"""In struct shmid64_ds: times of attachment, detachment and change, cpid, lpid, nattch."""


class Segments:
    """Those that this node has of what several nodes have."""

    def __init__(
        self, cluster: Cluster, places: Places, keeper: IpcKeeper, asking: Asking, ics: Ics
    ) -> None:
        self._cluster = cluster
        self._places = places
        self._keeper = keeper
        self._asking = asking
        self._device: Device | None = None
        self._backing = asyncio.Lock()
        self._look = asyncio.Event()
        self._used: dict[int, float] = {}
        """When somebody was let through to attach one, here or elsewhere."""
        self._had: set[int] = set()
        """Those that were here when they were looked at last."""
        ics.serve("ipc-share", self._answer_share)
        ics.serve("ipc-attached", self._answer_attached)
        ics.serve("ipc-segments", self._answer_segments)
        ics.serve("ipc-permissions", self._answer_permissions)
        ics.serve("ipc-left", self._answer_left)

    @property
    def _folder(self) -> Path:
        state = self._cluster.known
        assert state
        return SYSROOT / "cluster" / f"sysv.{state.view.life}"

    def _path(self, one: Segment) -> Path:
        return self._folder / f"{one.id}-{one.inode}"

    @property
    def _kernel(self) -> Device:
        if self._device is None:
            self._device = Device()
        return self._device

    def is_shared(self, identifier: int) -> bool:
        """Tell whether a segment of this node may be another node's as well."""
        return self._kernel.find(identifier) is not None

    # -- the home --------------------------------------------------------------------------------

    async def _answer_share(self, question: Question) -> Message:
        if wire.get_text(question.body, "boot") != self._places.own.boot:
            return {"lost": True}
        await self._cluster.wait_known()
        identifier = wire.get_int(question.body, "id", 0, MAX_ID)
        caller = Caller.load(wire.get_object(question.body, "caller"))
        about = await self._keeper.look(Wish(Call.SHMCTL, identifier, caller, (0, STAT, 0)))
        if about.result < 0:
            return {"lost": False, "error": -about.result}
        try:
            async with self._backing:
                self._used[identifier] = time.monotonic()
                one = await asyncio.to_thread(self._share, identifier, about.data)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EIDRM}:
                logger.warning("shared memory %d: %s", identifier, error)
            return {"lost": False, "error": _what_to_say(error)}
        return {"lost": False, "error": 0, "segment": one.dump()}

    def _share(self, identifier: int, about: bytes) -> Segment:
        """Put it into a file, if it is not; raises OSError."""
        if not (one := self._kernel.find(identifier)):
            size = int.from_bytes(about[48:56], "little")
            file, path = self._make_file(identifier, -(-size // PAGE) * PAGE)
            try:
                self._kernel.back(identifier, file)
            except OSError as error:
                path.unlink(missing_ok=True)
                # An earlier daemon, which was killed meanwhile, may have had it done.
                if error.errno != errno.EEXIST:
                    raise
            finally:
                os.close(file)
            one = self._kernel.find(identifier)
        if one is None:
            raise OSError(errno.EIDRM, "it was removed")
        return one

    def _make_file(self, identifier: int, size: int) -> tuple[int, Path]:
        """Make it, with a name by which it is known what it is of."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{identifier}-new-{os.urandom(6).hex()}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            return file, path.rename(self._folder / f"{identifier}-{os.fstat(file).st_ino}")
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise

    async def complete(self, identifier: int, about: bytes) -> bytes:
        """Return what IPC_STAT says at the home, with what is on all other nodes."""
        if not self.is_shared(identifier):
            return about
        atime, dtime, ctime, cpid, lpid, nattch = _ABOUT.unpack_from(about, _ABOUT_AT)
        used_at = max(atime, dtime)
        for one in await self._ask_attached(identifier):
            nattch += one.nattch
            atime, dtime = max(atime, one.atime), max(dtime, one.dtime)
            if one.used_at > used_at:
                used_at, lpid = one.used_at, one.lpid
        room = bytearray(about)
        _ABOUT.pack_into(room, _ABOUT_AT, atime, dtime, ctime, cpid, lpid, nattch)
        return bytes(room)

    async def tell_permissions(self, identifier: int) -> None:
        """They are others than they were: the other nodes' kernels go by them as well."""
        if one := self._kernel.find(identifier):
            words = {"segment": one.dump()}
            await asyncio.gather(*(self._tell(n, "ipc-permissions", words) for n in self._others))

    async def hear_removal(self, identifier: int) -> None:
        """One of this node has been removed: by all, and gone unless it is attached."""
        if self.is_shared(identifier):
            await self._tell_gone(identifier)
            await self._let_go(identifier)
            self._look.set()

    async def _tell_gone(self, identifier: int) -> None:
        words = {"kind": int(Kind.MEMORY), "id": identifier}
        await asyncio.gather(*(self._tell(node, "ipc-gone", words) for node in self._others))

    async def _let_go(self, identifier: int) -> None:
        """Have it destroyed, if it was removed and nobody has it any more."""
        async with self._backing:
            one = self._kernel.find(identifier)
            if not one or not one.is_removed or one.nattch or self._is_used(identifier):
                return
            if any(other.nattch for other in await self._ask_attached(identifier)):
                return
            # By a thread: the last reference to a file of the root may go with it.
            await asyncio.to_thread(self._kernel.hold, identifier, held=False)
            if self._kernel.find(identifier):
                return
            await asyncio.to_thread(self._path(one).unlink, missing_ok=True)
        self._places.remove(Kind.MEMORY, identifier)
        await self._tell_gone(identifier)

    def _is_used(self, identifier: int) -> bool:
        return time.monotonic() < self._used.get(identifier, 0.0) + LINGER_S

    # -- the other nodes -------------------------------------------------------------------------

    @property
    def _others(self) -> list[int]:
        return self._places.others

    async def _tell(self, node: int, name: str, words: Message) -> None:
        with contextlib.suppress(SsiError):
            await self._asking.ask(node, name, words)

    async def _ask_attached(self, identifier: int) -> list[Segment]:
        """Return what the other nodes have of one."""

        async def ask(node: int) -> list[Segment]:
            with contextlib.suppress(SsiError):
                answer = await self._asking.ask(node, "ipc-attached", {"id": identifier})
                return [Segment.load(one) for one in wire.get_objects(answer, "segments")]
            return []

        found = await asyncio.gather(*(ask(node) for node in self._others))
        return [one for each in found for one in each]

    async def bring(self, home: Home, identifier: int, caller: Caller) -> int | None:
        """Have a segment of `home` here, too, if the caller may read it; return an error number.

        None if `home` is not that any more; raises NodeLost.
        """
        words = {"boot": home.boot, "id": identifier, "caller": caller.dump()}
        answer = await self._asking.ask(home.node, "ipc-share", words)
        if wire.get_flag(answer, "lost"):
            return None
        if error := wire.get_int(answer, "error", 0, 4095):
            return error
        one = Segment.load(wire.get_object(answer, "segment"))
        self._used[identifier] = time.monotonic()
        try:
            await asyncio.to_thread(self._make, one)
        except OSError as failure:
            return _what_to_say(failure)
        self._had.add(identifier)
        if one.is_removed:
            self._look.set()
        return 0

    def _make(self, one: Segment) -> None:
        file = os.open(self._path(one), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fstat(file)  # so that the kernel knows its size
            self._kernel.make(one, file)
        finally:
            os.close(file)

    async def forget(self, identifier: int) -> None:
        """Its home has removed it."""
        one = self._kernel.find(identifier)
        if one and not one.held:
            await asyncio.to_thread(device.remove, identifier)

    async def _answer_attached(self, question: Question) -> Message:
        one = self._kernel.find(wire.get_int(question.body, "id", 0, MAX_ID))
        return {"segments": [one.dump()] if one else []}

    async def _answer_segments(self, question: Question) -> Message:
        home = Home.load(wire.get_object(question.body, "home"))
        await self._cluster.wait_known()
        found = [one for one in self._kernel.list() if self._home_of(one.id) == home]
        return {"segments": [one.dump() for one in found]}

    async def _answer_permissions(self, question: Question) -> Message:
        one = Segment.load(wire.get_object(question.body, "segment"))
        if here := self._kernel.find(one.id):
            with contextlib.suppress(OSError):
                self._kernel.make(dataclasses.replace(one, mode=one.mode | here.mode & ~0o777), 0)
        return {}

    async def _answer_left(self, _: Question) -> Message:
        self._look.set()
        return {}

    def _home_of(self, identifier: int) -> Home | None:
        return self._places.find(Kind.MEMORY, identifier)

    async def take(self, dead: Home) -> list[Segment]:
        """Be the home of those that somebody has of a dead node; return them."""
        found: dict[int, Segment] = {}
        for node in [*self._others, self._places.own.node]:
            with contextlib.suppress(SsiError):
                answer = await self._asking.ask(node, "ipc-segments", {"home": dead.dump()})
                for one in map(Segment.load, wire.get_objects(answer, "segments")):
                    found.setdefault(one.id, one)
        taken = []
        for one in found.values():
            try:
                await asyncio.to_thread(self._make, one)
                self._kernel.hold(one.id, held=True)
                taken.append(one)
            except OSError as error:
                logger.warning("shared memory %d: %s", one.id, error)
        return taken

    # -- what is not used any more ---------------------------------------------------------------

    async def run(self) -> None:
        """See to it that nothing stays that nobody uses, until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._kernel.fd, self._hear)
        self._hear()
        try:
            # Whoever was before this daemon may have been told of something.
            await asyncio.gather(*(self._tell(node, "ipc-left", {}) for node in self._others))
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S if self._used else None):
                        await self._look.wait()
                self._look.clear()
                await self._tidy()
        finally:
            loop.remove_reader(self._kernel.fd)

    def _hear(self) -> None:
        self._kernel.list()  # or the device could be read from again at once
        self._look.set()

    def look_again(self) -> None:
        """Nodes have gone, or objects have another home."""
        self._look.set()

    async def _tidy(self) -> None:
        here = self._kernel.list()
        gone, self._had = self._had - {one.id for one in here}, {one.id for one in here}
        self._used = {one: when for one, when in self._used.items() if self._is_used(one)}
        for one in here:
            if not one.is_removed or one.nattch:
                continue
            if one.held:
                await self._let_go(one.id)
            elif not self._is_used(one.id):
                await asyncio.to_thread(device.remove, one.id)
        if any(self._home_of(identifier) != self._places.own for identifier in gone):
            await asyncio.gather(*(self._tell(node, "ipc-left", {}) for node in self._others))
        async with self._backing:
            await asyncio.to_thread(self._remove_files)

    def _remove_files(self) -> None:
        """Remove what is of nothing that there is: left by somebody who died."""
        with contextlib.suppress(FileNotFoundError):
            here = {self._path(one).name for one in self._kernel.list()}
            for path in self._folder.iterdir():
                home = self._home_of(int(path.name.partition("-")[0]))
                own = self._places.is_lowest() if home is None else home == self._places.own
                if own and path.name not in here:
                    path.unlink(missing_ok=True)


def _what_to_say(error: OSError) -> int:
    """Return what who attaches a segment is told."""
    match error.errno:
        case errno.EINVAL | errno.EIDRM | errno.ENOENT:
            return errno.EINVAL
        case errno.EOPNOTSUPP:
            return errno.EREMOTE
        case _:
            return errno.ENOMEM
