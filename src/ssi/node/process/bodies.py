"""Bodies: processes that run here for ghosts of other nodes.

A body is born below a stand-in of its parent, with the PID of its ghost. It outlives this daemon:
the next one knows it by the file that is written before it is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssi.common import frames, wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.launcher import LEADS, Launcher, Program
from ssi.node.pids import any_pid, origin_of
from ssi.node.process import ends
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID, MAX_UID, read_caller
from ssi.node.process.descriptors import Descriptor, open_on_root
from ssi.node.process.device import Device
from ssi.node.process.jobcontrol import list_group, parent_of, session_of
from ssi.node.process.orders import FROM_KERNEL
from ssi.node.process.remotefiles import RemoteFiles
from ssi.node.process.signals import deliver
from ssi.node.process.standins import StandIn, StandIns
from ssi.node.processes import start_of
from ssi.node.runner import receive_request
from ssi.node.smallfiles import read_text, write_bytes
from ssi.node.state.state import State
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/bodies")
PREFIX = "body."
REMEMBERED = 1000

MILLION = 10**6
FD_BITS = 20
FD_MASK = (1 << FD_BITS) - 1


@dataclasses.dataclass(slots=True, eq=False)
class Body:
    """One of them."""

    id: str
    home: int
    """The ghost's node."""
    serial: int
    """Which of this node's bodies: with a descriptor's number it makes the handle."""
    pid: int = 0
    """0 until it is started."""
    begun: int = 0
    parent: int = 0
    tty: int = 0
    """The device number of its terminal, on the ghost's node."""
    pinned: bool = False
    devices: int = 0
    """The node whose /dev it has."""
    foreground: int = 0
    """The group here that has the terminal; 0 if the body has not given it away."""
    status: int | None = None
    """How it ended, as waitpid has it."""
    reported: bool = False
    """Its ghost has heard how it ended."""
    arriving: bool = False
    """It comes from another node, and does not run yet."""
    left: bool = False
    """It runs on another node by now, and what is left of it here is about to be killed."""
    remnant: bool = False
    """What is left of it here stays as long as its children are here."""
    job: str = ""
    """What its parent's launcher calls it; empty for one that became it in its place."""
    link: bool = False
    """None at all: descriptors of a remnant on its node lead here."""
    kept: bool = False
    """The ghost has left somebody at home for those who still use its descriptors."""
    handles: dict[int, int] = dataclasses.field(default_factory=dict)
    """How often each of the ghost's descriptors is open here."""
    twins: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    """Duplicates of a descriptor: all are closed with it."""
    files: dict[int, int] = dataclasses.field(default_factory=dict)
    """Descriptors of this daemon for files whose offset the ghost shares."""
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Its status is known."""
    reporter: asyncio.Task[None] | None = None
    """Tells the ghost how it fares."""
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Nothing is left here of a body that has moved, or has ended."""
    states: asyncio.Queue[int] = dataclasses.field(default_factory=asyncio.Queue)

    def dump(self) -> Message:
        """Return what the next daemon must know."""
        return {
            "id": self.id, "home": self.home, "serial": self.serial, "pid": self.pid,
            "begun": self.begun, "parent": self.parent, "tty": self.tty, "pinned": self.pinned,
            "devices": self.devices,
            "foreground": self.foreground, "status": -1 if self.status is None else self.status,
            "handles": [[fd, count] for fd, count in self.handles.items()],
            "arriving": self.arriving, "left": self.left, "remnant": self.remnant, "job": self.job,
            "link": self.link,
            "twins": [[fd, *others] for fd, others in self.twins.items()],
        }  # fmt: skip

    @classmethod
    def load(cls, saved: Message) -> Body:
        """Read it; raises ValueError, KeyError, TypeError."""
        status = saved.pop("status")
        handles = dict(saved.pop("handles"))
        twins = {fd: others for fd, *others in saved.pop("twins")}
        status = None if status == -1 else status
        return cls(**saved, status=status, handles=handles, twins=twins)


class Bodies:
    """All bodies of this node."""

    def __init__(
        self, cluster: Cluster, ics: Ics, asking: Asking, launcher: Launcher, stand_ins: StandIns,
        device: Device, folder: Path = FOLDER,
    ) -> None:  # fmt: skip
        self._asking = asking
        self._launcher = launcher
        self._stand_ins = stand_ins
        self._device = device
        self._files = RemoteFiles(asking, self, stand_ins, device)
        self._folder = folder
        self._by_id: dict[str, Body] = {}
        self._by_serial: dict[int, Body] = {}
        self._last = 0
        self._starting: dict[str, asyncio.Task[Message]] = {}
        self._heard: dict[str, None] = {}
        """Signals that have been delivered: none is twice."""
        self._tasks = Tasks()
        self._ready = asyncio.Event()
        cluster.on_change.append(self._look_for_losses)
        ics.serve("body-start", self._answer_start)
        ics.serve("body-list", self._answer_list)
        ics.serve("body-signal", self._answer_signal)
        ics.serve("body-orphan", self._answer_orphan)
        ics.serve("body-kill", self._answer_kill)

    def find(self, pid: int) -> Body | None:
        """Return the body with that PID, if it runs."""
        return next((body for body in self.all if body.pid == pid), None)

    @property
    def all(self) -> Sequence[Body]:
        """Those that run."""
        return [
            body for body in self._by_id.values()
            if body.pid and body.status is None and not body.left and not body.arriving
        ]  # fmt: skip

    @property
    def arriving(self) -> Sequence[Body]:
        """Those that come from another node, and do not run yet."""
        return [body for body in self._by_id.values() if body.arriving]

    def find_arriving(self, key: str) -> Body | None:
        """Return one of those."""
        return next((body for body in self.arriving if body.id == key), None)

    def find_by_ghost(self, key: str) -> Body | None:
        """Return the body of that ghost."""
        return self._by_id.get(key)

    def _obtain(self, key: str, home: int, tty: int, *, pinned: bool) -> Body:
        """Return the body of that ghost: one that has left things here, or a new one."""
        body = self._by_id.get(key)
        if body is None:
            return self.add(key, home, tty, pinned=pinned)
        body.pid, body.begun, body.status, body.parent, body.foreground = 0, 0, None, 0, 0
        body.job = PREFIX + key
        body.left = body.remnant = body.reported = body.kept = False
        body.reporter, body.ended, body.gone = None, asyncio.Event(), asyncio.Event()
        return body

    def expect(self, key: str, home: int, tty: int, *, pinned: bool) -> Body:
        """Return a body that comes from another node."""
        body = self._obtain(key, home, tty, pinned=pinned)
        body.arriving = True
        self._save(body)
        return body

    def expect_in_place(self, key: str, home: int, tty: int, pid: int, *, pinned: bool) -> Body:
        """Return a body that comes to where process `pid` has stood for it."""
        left = (one for one in self._by_id.values() if one.remnant and one.pid == pid)
        if body := next(left, None):
            self._forget(body)
            body.id, body.home, body.tty, body.pinned = key, home, tty, pinned
            body.left = body.remnant = False
            self._add(body)
        else:
            body = self._obtain(key, home, tty, pinned=pinned)
            body.job, body.pid, body.begun = "", pid, start_of(pid)
            self._tasks.spawn(self._watch(body))
        body.arriving = True
        self._save(body)
        return body

    def link(self, key: str, node: int) -> Body:
        """Return what leads to the descriptors of a remnant on another node."""
        body = self._by_id.get(key)
        if body is None:
            body = self.add(key, node, 0, pinned=False)
            body.link = body.reported = body.kept = True
            self._save(body)
        return body

    def expect_for_stand_in(
        self, key: str, home: int, tty: int, place: tuple[StandIn, str], *, pinned: bool
    ) -> Body:
        """Return a body that comes to where a stand-in of it is; those below are its children."""
        one, job = place
        body = self._obtain(key, home, tty, pinned=pinned)
        body.pid, body.job, body.arriving, body.devices = one.pid, job, True, one.devices
        if one.above:
            body.parent = one.above.pid
            one.above.users.discard(one)
            one.above.users.add(body)
        for other in self.all:
            if other.parent == one.pid:
                other.parent = 0
                self._tasks.spawn(self._watch(other))
                self._save(other)
        self._save(body)
        return body

    def leave_behind(self, body: Body) -> None:
        """It has left, and is a parent here for its children."""
        body.left = body.remnant = True
        self._save(body)

    async def give_back(self, body: Body) -> None:
        """It does not come, and what has stood for it is that again (`expect_in_place`)."""
        body.arriving = False
        if body.reporter:
            self.leave_behind(body)
            return
        # To wait for its end is nobody's affair any more.
        body.pid = 0
        await self.drop(body)

    # -- a daemon's beginning --------------------------------------------------------------------

    async def run(self) -> None:
        """Find those that the daemon before this one had, and be ready for more."""
        await self._launcher.wait_connected()
        await self._take_over()
        await self._device.start(self._launcher, self._files.reopen)
        self._ready.set()

    async def _take_over(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await self._stand_ins.take_over()
        for path in self._folder.iterdir():
            try:
                body = Body.load(json.loads(read_text(path)))
            except (ValueError, KeyError, TypeError):
                path.unlink()
                continue
            self._add(body)
            if body.parent and (above := self._stand_ins.find(body.parent)):
                above.users.add(body)
        self._stand_ins.end_unused()
        for client in self._stand_ins.clients:
            self._hear_launcher(client)
        for body in list(self._by_id.values()):
            self._resume(body)

    def _resume(self, body: Body) -> None:
        if body.link:
            body.reported = body.kept = True
            return
        client = self._client_of(body)
        job = client.job_of(body.job)
        if body.arriving and body.job and job is None:
            self._forget(body)
            return
        if job is None and body.status is None:
            # Never started, or nobody's child any more: then it is watched, if it is there.
            if body.pid and _is_process(body):
                self._tasks.spawn(self._watch(body))
            elif body.pid:
                body.status = 0
                body.states.put_nowait(0)
            else:
                self._forget(body)
                return
        elif job is not None:
            body.pid = job[0]
            if job[1] is not None:
                self._take_status(body, job[1])
        elif body.status is not None:
            body.states.put_nowait(body.status)
        if body.arriving:
            return
        self._start_reporter(body)

    def _client_of(self, body: Body) -> Launcher:
        above = self._stand_ins.find(body.parent) if body.parent else None
        return self._stand_ins.parent_of(above, body.devices)

    def _hear_launcher(self, client: Launcher) -> None:
        def hear(key: str, status: int) -> None:
            for body in list(self._by_id.values()):
                if body.job == key:
                    self._take_status(body, status)

        client.on_change = hear

    def _add(self, body: Body) -> None:
        self._by_id[body.id] = self._by_serial[body.serial] = body

    def _save(self, body: Body) -> None:
        path = self._folder / body.id
        fresh = path.with_suffix(".partial")
        write_bytes(fresh, wire.encode(body.dump()))
        fresh.rename(path)

    def _forget(self, body: Body) -> None:
        if self._by_id.pop(body.id, None):
            del self._by_serial[body.serial]
            (self._folder / body.id).unlink(missing_ok=True)

    # -- starting --------------------------------------------------------------------------------

    async def _answer_start(self, call: Call) -> Message:
        request = await receive_request(call)
        await self._ready.wait()
        key = wire.get_text(call.body, "id")
        if len(key) > 32 or not key.isalnum():
            raise ProtocolError(f"a body called {key!r:.60}")
        if key in self._by_id and key not in self._starting:
            return {"error": 0, "what": ""}
        if key not in self._starting:
            # Not by the caller's task: his daemon may be killed, and the next one asks again.
            self._starting[key] = task = asyncio.create_task(
                self._start(call.node, key, call.body, request)
            )
            task.add_done_callback(lambda _: self._starting.pop(key))
        return await asyncio.shield(self._starting[key])

    def add(self, key: str, home: int, tty: int, *, pinned: bool) -> Body:
        """Return a new body, which is not started yet."""
        # Never that of another before it: what a failed move has left may still have its handles.
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // MILLION
        serial = self._last = 1 + max(now, self._last, *self._by_serial)
        body = Body(key, home, serial, tty=tty, pinned=pinned, job=PREFIX + key)
        self._add(body)
        return body

    async def _start(self, home: int, key: str, wishes: Message, request: frames.Call) -> Message:
        tty, pinned = wire.get_int(wishes, "tty", 0, 2**32), wire.get_flag(wishes, "pinned")
        descriptors = [Descriptor.load(one) for one in wire.get_objects(wishes, "descriptors")]
        program, parent, session = _load_program(wishes, request)
        body = self.add(key, home, tty, pinned=pinned)
        body.devices = load_devices(wishes)
        fds: dict[int, int] = {}
        try:
            above = await self.place(body, parent, session, program.group)
            if above is None:
                program = dataclasses.replace(program, session=True, group=LEADS)
            self._save(body)
            await self._open_all(body, descriptors, fds)
            await self.run_program(body, program, above, fds)
        except OSError as error:
            await self.drop(body)
            return {"error": error.errno or errno.EIO, "what": str(error.filename or "")}
        except BaseException:
            await self.drop(body)
            raise
        finally:
            # By a thread: the last close of a device's descriptor waits for our own answer.
            await asyncio.to_thread(_close_all, set(fds.values()))
        self.begin(body)
        return {"error": 0, "what": ""}

    def begin(self, body: Body) -> None:
        """It runs: from now on its ghost hears how it fares."""
        body.arriving = False
        with contextlib.suppress(OSError):
            body.begun = start_of(body.pid)
        self._save(body)
        self._start_reporter(body)

    def begin_elsewhere(self, body: Body) -> None:
        """It runs, as the child of somebody who does not tell us how it ends."""
        self.begin(body)
        self._tasks.spawn(self._watch(body))

    async def place(self, body: Body, parent: int, session: int, group: int) -> StandIn | None:
        """Return the stand-in below which the body is to be born; None if it has no place.

        Its `devices` are known. Raises OSError or SsiError if it cannot be born at all.
        """
        above = await self._stand_ins.use(body, parent, session, group, body.devices)
        self._hear_launcher(self._stand_ins.parent_of(None, body.devices))
        if above:
            body.parent = above.pid
            # There the next daemon finds it.
            self._save(body)
            self._hear_launcher(above.client)
            if above.above:
                self._hear_launcher(above.above.client)
        return above

    async def run_program(
        self, body: Body, program: Program, above: StandIn | None, fds: dict[int, int]
    ) -> None:
        """Start the body, with descriptors of ours by its numbers; raises OSError."""
        client = self._stand_ins.parent_of(above, body.devices)
        numbers = sorted(fds)
        opened = [fds[number] for number in numbers]

        async def start(pid: int) -> int:
            wished = dataclasses.replace(program, pid=pid)
            with any_pid(self._asking.node, pid):
                return await client.start(body.job, wished, opened, numbers)

        try:
            body.pid = await start(program.pid)
        except FileExistsError:
            if program.pid in self._stand_ins and await self._stand_ins.make_room(program.pid):
                # It had children here, and is to be here itself.
                body.pid = await start(program.pid)
            else:
                # Something else here has its number, as its own ghost: it gets another.
                body.pid = await start(0)

    async def _open_all(
        self, body: Body, descriptors: Sequence[Descriptor], fds: dict[int, int]
    ) -> None:
        """Put a descriptor of this daemon into `fds` for each number that the body is to have."""
        for one in descriptors:
            if one.same_as in fds:
                fds[one.fd] = fds[one.same_as]
                body.twins.setdefault(one.same_as, []).append(one.fd)
                continue
            if one.path:
                fds[one.fd] = fd = await asyncio.to_thread(open_on_root, one)
                if one.inode and one.flags & os.O_ACCMODE == os.O_RDONLY:
                    body.files[one.fd] = os.dup(fd)
            else:
                flags = one.flags & (os.O_ACCMODE | os.O_NONBLOCK)
                body.handles[one.fd] = 0
                fds[one.fd] = await self._device.open(self.handle_of(body, one.fd), flags)
                body.handles[one.fd] += 1

    async def wait_end(self, body: Body) -> None:
        """Wait until one that has not begun has ended."""
        await body.ended.wait()

    async def drop(self, body: Body) -> None:
        """It has not begun."""
        for fd in body.files.values():
            os.close(fd)
        if body.status is not None:
            self._client_of(body).forget(body.job)
        self._forget(body)
        self._stand_ins.leave(body)

    # -- its state -------------------------------------------------------------------------------

    def _take_status(self, body: Body, status: int) -> None:
        if not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            if body.status is not None:
                return
            body.status = status
            body.ended.set()
            if body.pid:
                self._save(body)
        body.states.put_nowait(status)

    async def _watch(self, body: Body) -> None:
        """Wait for the end of one that is no child of a launcher's."""
        self._take_status(body, await ends.wait_status(body.pid))

    def _start_reporter(self, body: Body) -> None:
        if body.reporter is None:
            body.reporter = self._tasks.spawn(self._report_states(body))

    async def _report_states(self, body: Body) -> None:
        """Tell the ghost how the body fares, until it has ended."""
        while True:
            status = await body.states.get()
            if body.arriving:
                return
            if body.left:
                if body.status is not None:
                    self._take_leave(body)
                    return
                continue
            final = not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status)
            words: Message = {"id": body.id, "status": status, "others": False, "offsets": []}
            if final:
                words["others"] = any(body.handles.values())
                words["offsets"] = [
                    {"fd": fd, "offset": os.lseek(mine, 0, os.SEEK_CUR)}
                    for fd, mine in body.files.items()
                ]
            with contextlib.suppress(SsiError):
                await self._asking.ask(body.home, "ghost-state", words)
            if final:
                break
        for mine in body.files.values():
            os.close(mine)
        body.files.clear()
        self._client_of(body).forget(body.job)
        self._stand_ins.leave(body)
        body.reported, body.kept = True, bool(words["others"])
        body.gone.set()
        await self._finish(body)

    def _take_leave(self, body: Body) -> None:
        """What has been left here of a body that has moved has ended."""
        for mine in body.files.values():
            os.close(mine)
        self._client_of(body).forget(body.job)
        self._stand_ins.leave(body)
        body.remnant, body.reported, body.kept = False, True, False
        # Others here may use its descriptors.
        if any(body.handles.values()):
            self._save(body)
        else:
            self._forget(body)
        body.gone.set()

    async def _finish(self, body: Body) -> None:
        """Forget a body that has ended once nobody uses its descriptors."""
        if not body.reported or any(body.handles.values()) or body.id not in self._by_id:
            return
        self._forget(body)
        if body.home and body.kept:
            with contextlib.suppress(SsiError):
                await self._asking.ask(body.home, "ghost-end", {"id": body.id})

    def _fail(self, body: Body) -> None:
        """What others here still use of its descriptors leads nowhere: no ghost is left."""
        body.home = 0

    # -- what its ghost says ---------------------------------------------------------------------

    def _body_of(self, call: Call) -> Body | None:
        body = self._by_id.get(wire.get_text(call.body, "id"))
        return body if body and body.home == call.node else None

    async def _answer_signal(self, call: Call) -> Message:
        body = self._body_of(call)
        once = wire.get_text(call.body, "once")
        if body is None or body.status is not None or once in self._heard:
            return {}
        self._heard[once] = None
        while len(self._heard) > REMEMBERED:
            self._heard.pop(next(iter(self._heard)))
        number = wire.get_int(call.body, "number", 1, 64)
        code = wire.get_int(call.body, "code", -(2**31), 2**31)
        sender = wire.get_int(call.body, "pid", 0, MAX_PID)
        uid = wire.get_int(call.body, "uid", 0, MAX_UID)
        value = wire.get_int(call.body, "value", -(2**31), 2**31)
        for pid in self._list_targets(body, from_terminal=code == FROM_KERNEL):
            with contextlib.suppress(OSError):
                deliver(pid, number, sender, uid, value)
        return {}

    def _list_targets(self, body: Body, *, from_terminal: bool) -> list[int]:
        """Return who gets a signal of the ghost's.

        One from the terminal is for a whole group, of which the ghost's node knows the ghosts: the
        others here get it by one of these.
        """
        if not from_terminal:
            return [body.pid]
        bodies = {one.pid: one for one in self.all}
        if body.foreground:
            return [pid for pid in list_group(body.foreground) if pid not in self._stand_ins]
        with contextlib.suppress(ProcessLookupError):
            members = list_group(os.getpgid(body.pid))
            if body.pid == min((pid for pid in members if pid in bodies), default=0):
                others = [p for p in members if p not in bodies and p not in self._stand_ins]
                return [body.pid, *others]
        return [body.pid]

    async def _answer_orphan(self, call: Call) -> Message:
        if (body := self._body_of(call)) and body.status is None and body.parent:
            await self._orphan(body)
        return {}

    async def _orphan(self, body: Body) -> None:
        """Its parent has ended: so ends the stand-in, with all that this means to the kernel."""
        parent, body.parent = body.parent, 0
        for other in self.all:
            if other.parent == parent:
                other.parent = 0
                self._tasks.spawn(self._watch(other))
        self._tasks.spawn(self._watch(body))
        await self._stand_ins.end(parent)

    async def _answer_list(self, call: Call) -> Message:
        """Tell a node that was booted anew which processes of its former life are here."""
        await self._ready.wait()
        ours: list[Message] = []
        for body in self.all:
            if origin_of(body.pid) == call.node and body.home in {0, call.node}:
                with contextlib.suppress(ProcessLookupError):
                    uid = read_caller(body.pid).uids[0]
                    ours.append({"id": body.id, "pid": body.pid, "uid": uid})
                    body.home = call.node
                    self._save(body)
        return {"bodies": ours}

    async def _answer_kill(self, call: Call) -> Message:
        if body := self._body_of(call):
            self._kill(body)
        return {}

    def _kill(self, body: Body) -> None:
        if body.status is None and body.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(body.pid, signal.SIGKILL)
        else:
            self._fail(body)

    def _look_for_losses(self, _: State, now: State) -> None:
        for body in list(self._by_id.values()):
            if body.home and body.home not in now.view.alive:
                self._tasks.spawn(self._lose_home(body))

    async def _lose_home(self, body: Body) -> None:
        """The ghost's node is dead: the terminal has hung up, and the parent is gone."""
        self._fail(body)
        if body.link:
            return
        if body.status is not None:
            return
        if body.parent:
            await self._orphan(body)
        if body.tty:
            for pid in self._list_targets(body, from_terminal=True):
                for number in (signal.SIGHUP, signal.SIGCONT):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    # -- descriptors -----------------------------------------------------------------------------

    def of(self, handle: int) -> tuple[Body, int]:
        """Return the body, and the ghost's descriptor, of a handle of the remote device.

        Raises OSError when no ghost is left.
        """
        body = self._by_serial.get(handle >> FD_BITS)
        if body is None or not body.home:
            raise OSError(errno.EIO, "no ghost is left")
        return body, handle & ((1 << FD_BITS) - 1)

    def handle_of(self, body: Body, fd: int) -> int:
        """Return the handle of a ghost's descriptor."""
        return body.serial << FD_BITS | fd

    def above(self, pid: int) -> Body | None:
        """Return the body that process `pid` of the same session is, or descends from."""
        bodies = {body.pid: body for body in self.all}
        session = session_of(pid)
        while pid and session_of(pid) == session:
            if body := bodies.get(pid):
                return body
            pid = parent_of(pid)
        return None

    def count(self, handle: int) -> None:
        """Take it that a descriptor of this handle has been opened."""
        body, fd = self._by_serial.get(handle >> FD_BITS), handle & FD_MASK
        if body is None:
            raise OSError(errno.EIO, "its process has ended")
        body.handles[fd] = body.handles.get(fd, 0) + 1
        self._save(body)

    def lend_terminal(self, body: Body, group: int) -> None:
        """Note that a group of this node has the body's terminal."""
        body.foreground = group
        self._save(body)

    def release(self, handle: int) -> None:
        """Take it that one descriptor of this handle is closed."""
        body = self._by_serial.get(handle >> FD_BITS)
        fd = handle & ((1 << FD_BITS) - 1)
        if body is None or fd not in body.handles:
            return
        body.handles[fd] -= 1
        if not body.handles[fd]:
            self._tasks.spawn(self._close(body, [fd, *body.twins.get(fd, [])]))

    async def _close(self, body: Body, fds: Sequence[int]) -> None:
        if body.pid == 0 and not body.link:
            return  # it was not started
        self._save(body)
        if body.home:
            with contextlib.suppress(SsiError):
                for fd in fds:
                    await self._asking.ask(body.home, "ghost-close", {"id": body.id, "fd": fd})
        await self._finish(body)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _is_process(body: Body) -> bool:
    try:
        return start_of(body.pid) == body.begun
    except (OSError, ValueError, IndexError):
        return False


def load_devices(wishes: Message) -> int:
    """Return the node whose /dev a body is to have; raises ProtocolError."""
    return wire.get_int(wishes, "devices", 1, MAX_NODE)


def _load_program(wishes: Message, request: frames.Call) -> tuple[Program, int, int]:
    """Return what is to be started, the parent's PID and the session's."""
    parent, session = (wire.get_int(wishes, key, 0, MAX_PID) for key in ("parent", "session"))
    pid, group = (wire.get_int(wishes, key, 1, MAX_PID) for key in ("pid", "group"))
    uids, gids = (wire.get_ints(wishes, key, 0, MAX_UID) for key in ("uids", "gids"))
    limits = wire.get_ints(wishes, "limits", -1, 2**64 - 1)
    if len(uids) < 2 or len(gids) < 2 or len(limits) % 2:
        raise ProtocolError("a process has two users, two groups, and limits in pairs")
    blocked, ignored = (wire.get_int(wishes, key, 0, 2**64 - 1) for key in ("blocked", "ignored"))
    program = Program(
        request.argv, request.environment, request.cwd, uids[0], gids[0],
        wire.get_ints(wishes, "groups", 0, MAX_UID), request.umask,
        nice=wire.get_int(wishes, "nice", -20, 19), pid=pid, effective=(uids[1], gids[1]),
        session=session == pid, group=LEADS if group == pid else group, blocked=blocked,
        ignored=ignored, limits=list(zip(limits[::2], limits[1::2], strict=True)),
        no_new_privileges=wire.get_flag(wishes, "no_new_privileges"),
        death_signal=wire.get_int(wishes, "death_signal", 0, 64),
    )  # fmt: skip
    return program, parent, parent if session == pid else session
