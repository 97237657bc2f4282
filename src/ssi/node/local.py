"""The socket on which programs of the userland call this daemon; an applet answers each name.

The socket's folder is bind-mounted in the userland (make-userland): when the daemon restarts, the
folder stays and gets a new socket of the same name. Who calls is known by the kernel's word alone.
Nobody gets more than a share of the connections.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import os
import posixpath
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from ssi.common import frames
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.frames import Given, Reply
from ssi.node.accepting import accept, attend
from ssi.node.complaints import Complaints
from ssi.node.peer import Peer, read_peer

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/public")

REQUEST_S = 5.0
"""Time to send a request."""

AGAIN_S = 0.1
BACKLOG = 128

ROOT_SHARE = 4096
USER_SHARE = 1024
USERS_SHARE = 8192
"""Connections at a time: of root, of one other user, of all others together; a ghost has one as
long as it lives. Together below the descriptors that ssi.node.main lets us have."""

MAX_REPORTS = 4096
"""Of a ghost that wait to be read."""

MAX_SIGNAL = signal.NSIG - 1

SOFTWARE = 70  # EX_SOFTWARE
BUSY = 75  # EX_TEMPFAIL
NOT_FOUND = 127  # as a shell has it


@dataclasses.dataclass(frozen=True, slots=True)
class Signal:
    """A signal that the caller got and passes on."""

    number: int


class Inbox:
    """What a caller gives besides the request: standard input and signals."""

    def __init__(self, give_credit: Callable[[int], None] = lambda _: None) -> None:
        self._give_credit = give_credit
        self._signals: collections.deque[Signal] = collections.deque()
        self._input: collections.deque[bytes] = collections.deque()
        self._reports: collections.deque[bytes] = collections.deque()
        self._more = asyncio.Event()
        self._free = frames.WINDOW
        self._ended = False

    def put(self, kind: int, data: bytes) -> None:
        """Take one frame of the caller's, or raise ProtocolError."""
        match kind:
            case Given.STDIN if data and not self._ended:
                self._free -= len(data)
                if self._free < 0:
                    raise ProtocolError("more standard input than there was credit for")
                self._input.append(data)
            case Given.END_OF_STDIN if not data and not self._ended:
                self._ended = True
                self._input.append(b"")
            case Given.REPORT:
                if len(self._reports) >= MAX_REPORTS:
                    raise ProtocolError("more reports than can be read")
                self._reports.append(data)
            case Given.SIGNAL:
                self._put_signal(frames.parse_number(data))
            case _:
                raise ProtocolError(f"a frame of kind {kind} with {len(data)} bytes")
        self._more.set()

    def _put_signal(self, number: int) -> None:
        if not 1 <= number <= MAX_SIGNAL:
            raise ProtocolError(f"signal {number}")
        # One that is pending is not pending twice, as in the kernel. Nor can they fill our memory.
        if Signal(number) not in self._signals:
            self._signals.append(Signal(number))

    async def receive(self) -> bytes | Signal:
        """Return the next signal or, without one, the next bytes; none is the end of input."""
        # Ctrl-C must not wait behind input that nobody reads.
        await self._wait_for(lambda: self._signals or self._input)
        return self._signals.popleft() if self._signals else self._take_input()

    async def receive_signal(self) -> Signal:
        """Return the next signal, whatever input there is."""
        await self._wait_for(lambda: self._signals)
        return self._signals.popleft()

    async def receive_input(self) -> bytes:
        """Return the next bytes, whatever signals there are; none is the end of input."""
        await self._wait_for(lambda: self._input)
        return self._take_input()

    async def receive_report(self) -> bytes:
        """Return the next report of a ghost."""
        await self._wait_for(lambda: self._reports)
        return self._reports.popleft()

    async def _wait_for(self, has: Callable[[], object]) -> None:
        while not has():
            self._more.clear()
            await self._more.wait()

    def _take_input(self) -> bytes:
        data = self._input.popleft()
        if data:
            self._free += len(data)
            self._give_credit(len(data))
        return data


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and by whom."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    umask: int
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    inbox: Inbox = dataclasses.field(default_factory=Inbox, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the applet."""
        return posixpath.basename(self.argv[0])

    async def receive(self) -> bytes | Signal:
        """Return the next signal, or bytes of standard input, none at its end.

        For programs that send them (`onall`); the others' standard input stays where it is.
        """
        return await self.inbox.receive()


class CallerGone(Exception):
    """Nobody is left to write to. An applet need not catch it."""


class Output:
    """Where an applet writes. Each write waits while the caller is not reading.

    What fits into a frame is one frame.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, data: str | bytes) -> None:
        """Write to the caller's standard output."""
        await self._send(Reply.STDOUT, data)

    async def error(self, data: str | bytes) -> None:
        """Write to the caller's standard error."""
        await self._send(Reply.STDERR, data)

    async def order(self, data: bytes) -> None:
        """Order a ghost to do something."""
        await self._send(Reply.ORDER, data)

    async def _send(self, kind: Reply, data: str | bytes) -> None:
        for frame in frames.encode_frames(
            kind, data.encode(errors="surrogateescape") if isinstance(data, str) else data
        ):
            self._writer.write(frame)
            try:
                await self._writer.drain()
            except ConnectionError as error:
                raise CallerGone from error


Applet = Callable[[Request, Output], Awaitable[int]]


class _Shares:
    """Counts connections by user."""

    def __init__(self) -> None:
        self._open: collections.Counter[int] = collections.Counter()

    def _has_room(self, uid: int) -> bool:
        if uid == 0:
            return self._open[0] < ROOT_SHARE
        return self._open[uid] < USER_SHARE and self._open.total() - self._open[0] < USERS_SHARE

    @contextlib.contextmanager
    def __call__(self, uid: int) -> collections.abc.Iterator[bool]:
        """Hold a connection of `uid`; False if he has too many."""
        if not self._has_room(uid):
            yield False
            return
        self._open[uid] += 1
        try:
            yield True
        finally:
            self._open[uid] -= 1
            self._open += collections.Counter()  # forgets users who have none


def open_listener(folder: Path) -> socket.socket:
    """Return a listening socket in `folder`, in place of one that an earlier daemon left there."""
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    path = folder / frames.SOCKET_NAME
    fresh = folder / f".{frames.SOCKET_NAME}"
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(fresh))
        fresh.chmod(0o666)  # everybody may ask; each applet judges who may what
        listener.listen(BACKLOG)
        # Only now: under its name it is never seen without somebody who listens.
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


class LocalServer:
    """Serves the applets to all programs of the userland."""

    def __init__(
        self, folder: Path = FOLDER, *, prepare: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """`prepare` is awaited before each applet: a daemon that has just started knows little."""
        self._prepare = prepare
        self._folder = folder
        self._applets: dict[str, Applet] = {}
        self._shares = _Shares()
        self._complaints = Complaints(logger)

    def serve(self, name: str, applet: Applet) -> None:
        """Have `applet` answer those who come as `name`."""
        self._applets[name] = applet

    async def run(self) -> None:
        """Serve until cancelled."""
        with open_listener(self._folder) as listener:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        connection, _ = await accept(listener)
                    except OSError as error:
                        # No descriptor or memory is left: those who have some give them back.
                        logger.warning("accept: %s", error)
                        await asyncio.sleep(AGAIN_S)
                    else:
                        attend(group, connection, self._attend(connection))

    async def _attend(self, connection: socket.socket) -> None:
        with connection:
            try:
                peer = read_peer(connection)
            except OSError as error:
                logger.warning("a caller who has gone: %s", error)
                return
            with self._shares(peer.uid) as admitted:
                if not admitted:
                    self._complaints.add(_name(peer), "too many requests at once")
                    _turn_away(connection)
                    return
                await self._converse(connection, peer)

    async def _converse(self, connection: socket.socket, peer: Peer) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await self._answer(reader, writer, peer)
        except ProtocolError as error:
            self._complaints.add(_name(peer), error)
        except TimeoutError:
            self._complaints.add(_name(peer), f"no request within {REQUEST_S} s")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # gone
        finally:
            writer.close()
        with contextlib.suppress(ConnectionError):
            # He may read slowly: a pager on `cluster -v`, say. Only his own share is held.
            await writer.wait_closed()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> None:
        async with asyncio.timeout(REQUEST_S):
            length = frames.parse_length(await reader.readexactly(frames.LENGTH.size))
            call = frames.parse_call(await reader.readexactly(length))

        def give_credit(count: int) -> None:
            writer.write(frames.encode_number(Reply.CREDIT, count))

        inbox = Inbox(give_credit)
        request = Request(
            **{field.name: getattr(call, field.name) for field in dataclasses.fields(call)},
            **dataclasses.asdict(peer), inbox=inbox,
        )  # fmt: skip
        # From here on the caller must not just ask again: something may have been done.
        writer.write(frames.encode_frame(Reply.ACCEPTED))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._run(request, Output(writer)))
            hearing = group.create_task(self._hear(reader, inbox, peer))
            await asyncio.wait({running, hearing}, return_when=asyncio.FIRST_COMPLETED)
            hearing.cancel()
            running.cancel()  # if it is not done, the caller has gone
        if not running.cancelled():
            writer.write(frames.encode_frame(Reply.END, bytes([running.result() & 0xFF])))

    async def _hear(self, reader: asyncio.StreamReader, inbox: Inbox, peer: Peer) -> None:
        """Pass on what the caller gives, until he is gone or talks nonsense."""
        try:
            while True:
                kind, length = frames.parse_head(await reader.readexactly(frames.HEAD.size))
                inbox.put(kind, await reader.readexactly(length))
        except ProtocolError as error:
            self._complaints.add(_name(peer), error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def _run(self, request: Request, output: Output) -> int:
        """Run the applet; return its status."""
        name = request.name
        applet = self._applets.get(name)
        try:
            if applet is None:
                await output.error(f"{name}: the node daemon knows no such command\n")
                return NOT_FOUND
            try:
                if self._prepare:
                    await self._prepare()
                return await applet(request, output)
            except SsiError as error:
                await output.error(f"{name}: {error}\n")
                if error.hint:
                    await output.error(f"{name}: hint: {error.hint}\n")
                return error.exit_status
        except CallerGone:
            return SOFTWARE  # nobody will hear it
        except Exception:
            logger.exception("applet %s", name)
            with contextlib.suppress(CallerGone):
                await output.error(f"{name}: an error in the node daemon; see its log\n")
            return SOFTWARE


def _name(peer: Peer) -> str:
    return f"process {peer.pid} of user {peer.uid}"


def _turn_away(connection: socket.socket) -> None:
    words = b"too many requests of yours are under way\n"
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(
            frames.encode_frame(Reply.STDERR, words) + frames.encode_frame(Reply.END, bytes([BUSY]))
        )
