"""What a Python program can ask about the cluster it runs in: `import ssi.api`.

Each call asks the node daemon, and waits up to ten seconds while that is being restarted. In C the
same is libssi (ssi.h).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from ssi.common import frames
from ssi.common.errors import NodeLost, ProtocolError, SsiError, TimedOut, UsageError
from ssi.common.frames import Reply

__all__ = [
    "CannotMove", "DaemonRestarted", "Denied", "Events", "Membership", "Node", "NotOnCluster",
    "SsiError", "Transition", "UsageError", "cluster_name", "membership", "migrate", "node_info",
    "node_number", "nodes", "set_state", "wait_for_transition",
]  # fmt: skip

FOLDER = Path(frames.FOLDER)
SERVER_UID = 0
PATIENCE_S = 10.0
STEP_S = 0.02

_CREDENTIALS = struct.Struct("=iII")
_RESTARTING = (FileNotFoundError, ConnectionError)


class NotOnCluster(SsiError):
    """This machine is no node of a cluster."""

    code = "not-on-cluster"


class Denied(SsiError):
    """Only root may do this."""

    code = "denied"
    exit_status = 77


class CannotMove(SsiError):
    """A process stays where it is."""

    code = "cannot-move"


class DaemonRestarted(NodeLost):
    """The node daemon has ended while it was listened to; `Events.reopen` listens to the next."""

    code = "daemon-restarted"


_ERRORS: dict[int, type[SsiError]] = {2: UsageError, 77: Denied}
"""By exit status of an applet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """A node went from one state to another."""

    number: int
    time: float
    view: int
    node: int
    was: str
    now: str
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class Membership:
    """Who is in the cluster, after the transition numbered `transition`."""

    transition: int
    view: int
    members: tuple[int, ...]
    up: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node; `last` is its last transition, None if none is remembered."""

    number: int
    state: str
    member: bool
    address: str
    last: Transition | None


def _connect() -> socket.socket:
    if not FOLDER.is_dir():
        raise NotOnCluster(f"this is no node of a cluster: {FOLDER} is missing")
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(str(FOLDER / frames.SOCKET_NAME))
        data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(data)[1] != SERVER_UID:
            raise ProtocolError(f"who listens in {FOLDER} is not the node daemon")
    except BaseException:
        line.close()
        raise
    return line


def _read(line: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = line.recv(length - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return bytes(data)


def _read_frame(line: socket.socket) -> tuple[int, bytes]:
    kind, length = frames.parse_head(_read(line, frames.HEAD.size))
    return kind, _read(line, length)


def _open(words: tuple[str, ...], deadline: float) -> tuple[socket.socket, tuple[int, bytes]]:
    """Return a connection that has asked, and the first frame of the answer."""
    while True:
        line = None
        try:
            line = _connect()
            # One that turns us away does not read, but has said why.
            with contextlib.suppress(ConnectionError):
                line.sendall(frames.encode_call(words))
            return line, _read_frame(line)
        except BaseException as error:
            if line:
                line.close()
            if not isinstance(error, _RESTARTING):
                raise
        _wait_step(deadline)


def _wait_step(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise TimedOut("the node daemon does not answer")
    time.sleep(STEP_S)


def _raise(status: int, said: str) -> None:
    first = said.strip().partition("\n")[0]
    name, _, text = first.partition(": ")
    raise _ERRORS.get(status, SsiError)(text or name or f"exit status {status}")


def _read_answer(line: socket.socket, frame: tuple[int, bytes]) -> str:
    written = {Reply.STDOUT: bytearray(), Reply.STDERR: bytearray()}
    while frame[0] != Reply.END:
        if frame[0] in written:
            written[Reply(frame[0])] += frame[1]
        frame = _read_frame(line)
    if status := frame[1][0]:
        _raise(status, written[Reply.STDERR].decode(errors="replace"))
    return written[Reply.STDOUT].decode(errors="replace")


def _ask(*words: str, again: bool = True) -> str:
    """Return the answer; a question that does something is not asked twice."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        line, frame = _open(words, deadline)
        try:
            with line:
                return _read_answer(line, frame)
        except ConnectionError as error:
            if not again:
                raise DaemonRestarted("the node daemon has ended; it may be done or not") from error
        _wait_step(deadline)


_Record = list[tuple[str, str]]


def _records(text: str) -> Iterator[_Record]:
    for block in text.split("\n\n"):
        if block:
            yield [
                (key, value) for key, _, value in (ln.partition(" ") for ln in block.split("\n"))
            ]


def _ask_one(*words: str) -> _Record:
    return next(_records(_ask(*words)), [])


def _to_transition(record: _Record) -> Transition | None:
    fields = dict(record)
    if "transition" not in fields:
        return None
    return Transition(
        number=int(fields["transition"]), time=int(fields["time_us"]) / 1_000_000,
        view=int(fields["view"]), node=int(fields["node"]), was=fields["was"], now=fields["now"],
        cause=fields["cause"],
    )  # fmt: skip


def _to_node(record: _Record) -> Node:
    fields = dict(record)
    return Node(
        number=int(fields["node"]), state=fields["state"], member=fields["member"] == "1",
        address=fields["address"], last=_to_transition(record),
    )  # fmt: skip


def cluster_name() -> str:
    """Return the cluster's name."""
    return dict(_ask_one("api-cluster"))["name"]


def node_number() -> int:
    """Return the number of the node this runs on."""
    return int(dict(_ask_one("api-cluster"))["node"])


def membership() -> Membership:
    """Return who is in the cluster now."""
    record = _ask_one("api-membership")
    fields = dict(record)
    members, up = (tuple(int(value) for key, value in record if key == word)
                   for word in ("member", "up"))  # fmt: skip
    return Membership(int(fields["transition"]), int(fields["view"]), members, up)


def node_info(node: int) -> Node:
    """Return what is known of `node`."""
    return _to_node(_ask_one("api-node", str(node)))


def nodes() -> list[Node]:
    """Return all nodes that are or were up."""
    return [_to_node(record) for record in _records(_ask("api-nodes"))]


def set_state(node: int, state: str) -> None:
    """Have `node` go to `state`; for root."""
    _ask("api-setstate", str(node), state, again=False)


def migrate(node: int, pid: int | None = None) -> None:
    """Move a process to `node`: this one, which then goes on there, or `pid`.

    Raises UsageError if that is no node's number, Denied for a process that one may not signal, and
    CannotMove with the reasons if it stays.
    """
    folder = Path(f"/proc/{'self' if pid is None else pid}")
    try:
        # Unbuffered: what comes of the write is what comes of the move.
        with (folder / "goto").open("wb", buffering=0) as goto:
            goto.write(str(node).encode())
    except FileNotFoundError:
        if not FOLDER.is_dir():
            raise NotOnCluster(f"this is no node of a cluster: {FOLDER} is missing") from None
        raise CannotMove(f"there is no process {pid}") from None
    except OSError as error:
        _raise_refusal(error, folder, node)


def migrate_group(node: int, group: int) -> None:
    """Move all processes of a process group to `node`, this one as well if it is in it.

    Raises UsageError as migrate does, and CannotMove with a line for each process that stays: the
    others have moved.
    """
    _migrate_all(node, "group", group)


def migrate_session(node: int, session: int) -> None:
    """Move all processes of a session to `node`, as migrate_group does those of a group."""
    _migrate_all(node, "session", session)


def _migrate_all(node: int, kind: str, number: int) -> None:
    pids = [int(dict(record)["pid"]) for record in _records(_ask("api-members", kind, str(number)))]
    if not pids:
        raise CannotMove(f"there is no {kind} {number}")
    refused = []
    for pid in pids:
        try:
            migrate(node, pid)
        except (CannotMove, Denied) as error:
            if _lives(pid):
                refused.append(f"{pid}: {error}")
    if refused:
        raise CannotMove("\n".join(refused))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _raise_refusal(error: OSError, folder: Path, node: int) -> NoReturn:
    if error.errno == errno.EINVAL:
        raise UsageError(f"{node} is not a node number") from error
    if error.errno == errno.EPERM:
        raise Denied(f"{folder.name} is not yours") from error
    reasons = ""
    if error.errno == errno.EBUSY:
        with contextlib.suppress(OSError):
            reasons = "; ".join((folder / "cantmove").read_text().splitlines())
    raise CannotMove(reasons or error.strerror or str(error)) from error


class Events:
    """Transitions as they happen, after the one numbered `since`; a context manager.

    `detailed` is for all of them, else only those by which a node becomes UP or ceases to be. To
    iterate waits for each, and goes on with the next node daemon when one ends. `fileno` is for
    select and poll: when it is readable, `read` returns a transition or raises DaemonRestarted.
    """

    def __init__(self, since: int, *, detailed: bool = False) -> None:
        self.last = since
        self._kind = "all" if detailed else "simple"
        self._line: socket.socket | None = None
        self.reopen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        if self._line:
            self._line.close()
            self._line = None

    def reopen(self) -> None:
        """Listen to the node daemon that is there now; nothing is missed. `fileno` is another."""
        self.close()
        deadline = time.monotonic() + PATIENCE_S
        line, (kind, data) = _open(("api-events", str(self.last), self._kind), deadline)
        if kind != Reply.ACCEPTED:
            line.close()
            raise SsiError(data.decode(errors="replace").strip())
        self._line = line

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with a transition."""
        return self._open_line().fileno()

    def _open_line(self) -> socket.socket:
        if self._line is None:
            raise ValueError("these Events are closed")
        return self._line

    def read(self) -> Transition:
        """Return the next transition, waiting for it; raise DaemonRestarted if none can come."""
        try:
            kind, data = _read_frame(self._open_line())
        except ConnectionError as error:
            raise DaemonRestarted("the node daemon has ended") from error
        record = next(_records(data.decode(errors="replace")), [])
        found = _to_transition(record) if kind == Reply.STDOUT else None
        if found is None:
            raise ProtocolError(f"no transition: {data[:60]!r}")
        self.last = found.number
        return found

    def __iter__(self) -> Iterator[Transition]:
        while True:
            try:
                yield self.read()
            except DaemonRestarted:
                self.reopen()

    def wait(self, timeout: float | None = None) -> Transition | None:
        """Return the next transition, None if there is none within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            poller = select.poll()  # select would refuse descriptors above 1023
            poller.register(self, select.POLLIN)
            if not poller.poll(None if left is None else left * 1000):
                return None
            try:
                return self.read()
            except DaemonRestarted:
                self.reopen()


def wait_for_transition(
    after: int,
    timeout: float | None = None,
    *,
    wanted: Callable[[Transition], bool] = lambda _: True,
) -> Transition | None:
    """Return the first `wanted` transition after number `after`, of simple ones; None in `timeout`.

    It may have happened already.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with Events(after) as events:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = events.wait(left)
            if found is None or wanted(found):
                return found
