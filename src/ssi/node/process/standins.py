"""Stand-ins: processes here that have the PIDs of parents and leaders that are on other nodes.

Below them bodies are born, so that getppid(), getsid() and getpgid() are the kernel's own answers.
Each is a fork of a visitors' stand-in, or of another one when it belongs to that one's session.
A visitors', itself a fork of the launcher, stands for nobody; it has a mount namespace in which
/dev is that of another node: there is one for each node whose /dev somebody here has. A stand-in is
there as long as somebody needs it, and a little longer: a shell's next command needs it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.devfs.places import home_folder
from ssi.node.launcher import LEADS, STAYS, Launcher, Program
from ssi.node.pids import any_pid, origin_of
from ssi.node.process.jobcontrol import list_group, session_of
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/standins")
PREFIX = "standin."
VISITORS = "visitors."
LINGER_S = 30.0


class StandIn:
    """One of them."""

    def __init__(self, pid: int, client: Launcher, above: StandIn | None, devices: int = 0) -> None:
        self.pid = pid
        self.devices = devices
        """The node whose /dev is that of who is born below."""
        self.client = client
        self.users: set[object] = set()
        """Bodies born below it, and stand-ins forked from it."""
        self.above = above
        self.ending: asyncio.TimerHandle | None = None


class StandIns:
    """All of this node."""

    def __init__(self, node: int, launcher: Launcher, folder: Path = FOLDER) -> None:
        self._node = node
        self._launcher = launcher
        self._folder = folder
        self._all: dict[int, StandIn] = {}
        self._visitors: dict[int, Launcher] = {}
        """The parents of who has no stand-in for one, by the nodes whose /dev they have."""
        self.devices_shown = asyncio.Event()
        """There is a /devfs, of which they take /dev."""
        self._lock = asyncio.Lock()
        self._tasks = Tasks()

    def __contains__(self, pid: object) -> bool:
        return pid in self._all or pid in self.visitors

    @property
    def visitors(self) -> set[int]:
        """The PIDs of those that stand for nobody."""
        return {client.pid for client in self._visitors.values()}

    @property
    def pids(self) -> set[int]:
        """Their PIDs."""
        return {*self._all, *self.visitors}

    @property
    def clients(self) -> list[Launcher]:
        """What talks to each."""
        return [*self._visitors.values(), *(one.client for one in self._all.values())]

    def parent_of(self, above: StandIn | None, devices: int) -> Launcher:
        """Return what talks to the parent of who has this stand-in, or none."""
        return above.client if above else self._visitors.get(devices, self._launcher)

    def devices_of(self, pid: int) -> int:
        """Return the node whose /dev a process here has; raises OSError."""
        space = _mounts_of(pid)
        for node, client in self._visitors.items():
            with contextlib.suppress(OSError):
                if _mounts_of(client.pid) == space:
                    return node
        return self._node

    async def _have_visitors(self, devices: int) -> Launcher:
        """Have what all are forks of that have the /dev of that node; raises OSError, SsiError."""
        if devices not in self._visitors:
            await self.devices_shown.wait()
            program = Program([], {}, cwd=home_folder(devices), visitors=True)
            self._visitors[devices] = await self._start(
                self._launcher, f"{VISITORS}{devices}", program
            )
        return self._visitors[devices]

    async def take_over(self) -> None:
        """Find those that the daemon before this one has left."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await self._launcher.wait_connected()
        for path in sorted(self._folder.iterdir()):
            client = Launcher(self._node, path)
            try:
                await client.connect()
            except OSError:
                path.unlink()
                continue
            if path.name.startswith(VISITORS):
                self._visitors[int(path.name.removeprefix(VISITORS))] = client
            else:
                self._all[int(path.name)] = StandIn(int(path.name), client, None)
        for one in self._all.values():
            with contextlib.suppress(OSError):
                one.devices = self.devices_of(one.pid)
            for key in one.client.keys:
                if key.startswith(PREFIX) and (below := self._all.get(_pid_of(key))):
                    below.above = one
                    one.users.add(below)

    def end_unused(self) -> None:
        """End those of which nobody has said that he uses them."""
        for one in self._all.values():
            self._consider(one)

    def find(self, pid: int) -> StandIn | None:
        """Return the one of that PID."""
        return self._all.get(pid)

    async def use(
        self, user: object, parent: int, session: int, group: int, devices: int
    ) -> StandIn | None:
        """Return the one below which `user` is to be born; None if that is the visitors'.

        A process of no node's range is of each node alone, and the visitors' is there for it; so it
        is for one whose PID something else here has. `devices` is the node whose /dev `user` has;
        all of a session have the same. Raises OSError or SsiError if there is no place at all.
        """
        async with self._lock:
            await self._have_visitors(devices)
            try:
                one = await self._find_parent(parent, session, devices)
                if one and group not in {0, one.pid, session} and not self._is_here(group, session):
                    leader = await self._find(group, session, devices)
                    leader.users.add(user)
            except (OSError, SsiError) as error:
                logger.warning("no stand-in for %d of session %d: %s", parent, session, error)
                return None
            if one:
                one.users.add(user)
            return one

    def _is_here(self, group: int, session: int) -> bool:
        """Tell whether processes have brought a group here, without a stand-in of its leader."""
        members = [] if group in self._all else list_group(group)
        return any(session_of(pid) == session for pid in members)

    async def _find_parent(self, parent: int, session: int, devices: int) -> StandIn | None:
        return await self._find(parent, session, devices) if origin_of(parent) else None

    async def _find(self, pid: int, session: int, devices: int) -> StandIn:
        if one := self._all.get(pid):
            if one.ending:
                one.ending.cancel()
                one.ending = None
            return one
        above = None if pid == session or not origin_of(session) else self._all.get(session)
        if above is None and pid != session and origin_of(session):
            above = await self._find(session, session, devices)
        one = await self._make(pid, session, above, devices)
        self._all[pid] = one
        if above:
            above.users.add(one)
        return one

    async def _make(self, pid: int, session: int, above: StandIn | None, devices: int) -> StandIn:
        launcher = self.parent_of(above, devices)
        program = Program(
            [], {}, pid=pid, session=pid == session or above is None,
            # One that is no leader is in the session's own group: nothing asks for it.
            group=LEADS if above else STAYS,
        )  # fmt: skip
        client = await self._start(launcher, str(pid), program)
        return StandIn(pid, client, above, above.devices if above else devices)

    async def _start(self, launcher: Launcher, name: str, program: Program) -> Launcher:
        """Start one, and return what talks to it; raises OSError."""
        path = self._folder / name
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            with any_pid(self._node, program.pid):
                await launcher.start(PREFIX + name, program, [listener.fileno()])
        client = Launcher(self._node, path)
        await client.connect()
        return client

    def leave(self, user: object) -> None:
        """`user` needs none any more."""
        for one in self._all.values():
            if user in one.users:
                one.users.discard(user)
                self._consider(one)

    def _consider(self, one: StandIn) -> None:
        """End it in a while if nobody uses it until then."""
        if not one.users and one.ending is None:
            loop = asyncio.get_running_loop()
            one.ending = loop.call_later(LINGER_S, lambda: self._tasks.spawn(self._end_later(one)))

    async def _end_later(self, one: StandIn) -> None:
        async with self._lock:
            one.ending = None
            if not one.users:
                await self._end(one)

    async def _end(self, one: StandIn) -> None:
        if self._all.get(one.pid) is not one:
            return
        if one.ending:
            one.ending.cancel()
        with contextlib.suppress(SsiError):  # it was killed
            one.client.end()
        one.client.close()
        parent, key = self.parent_of(one.above, one.devices), f"{PREFIX}{one.pid}"
        await parent.wait(key)
        parent.forget(key)
        del self._all[one.pid]
        (self._folder / str(one.pid)).unlink(missing_ok=True)
        if one.above:
            one.above.users.discard(one)
            self._consider(one.above)

    async def make_room(self, pid: int) -> bool:
        """End one that nobody uses; return whether the PID is free of stand-ins."""
        async with self._lock:
            one = self._all.get(pid)
            if one and not one.users:
                await self._end(one)
            return pid not in self._all

    async def give_place(self, pid: int) -> tuple[StandIn, str] | None:
        """Forget one whose process is about to come in its place.

        Returns it, and the key that it has with the one above it; None if others of its session
        need it, or are below it.
        """
        async with self._lock:
            one = self._all[pid]
            for below in [user for user in one.users if isinstance(user, StandIn)]:
                if not below.users:
                    await self._end(below)
            if any(isinstance(user, StandIn) for user in one.users):
                return None
            del self._all[pid]
            if one.ending:
                one.ending.cancel()
            (self._folder / str(pid)).unlink(missing_ok=True)
            return one, f"{PREFIX}{pid}"

    async def end(self, pid: int) -> None:
        """End one whatever it is used for: its process has ended, or its PID is to be another's."""
        async with self._lock:
            if one := self._all.get(pid):
                await self._end(one)


def _pid_of(key: str) -> int:
    name = key.removeprefix(PREFIX)
    return int(name) if name.isdigit() else 0


def _mounts_of(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/mnt").stat().st_ino
