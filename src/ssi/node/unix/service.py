"""Unix sockets that are bound on the shared root, for processes of all nodes.

The kernel asks when it finds the file of one and nobody who has it bound. Who has it connects to it
for the client, as who he is, and the client gets what stands for it here; the keepers of both nodes
carry the bytes from then on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket

from ssi.common import wire
from ssi.common.errors import NodeLost, ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.devfs.streams import Streams
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.keeper import owner_of
from ssi.node.migration import landing
from ssi.node.peer import Peer
from ssi.node.pids import any_pid
from ssi.node.process.asking import AGAIN_S, Asking
from ssi.node.process.caller import MAX_GROUPS, MAX_PID, MAX_UID, read_caller
from ssi.node.process.device import Device, Sought
from ssi.node.state.state import State
from ssi.node.unix.bound import LISTENS, find_bound
from ssi.node.unix.keeper import Role, UnixKeeper, Wish
from ssi.node.unix.names import MAX_INODE, SocketName

logger = logging.getLogger(__name__)

MOST_HANDLE = 64
ID_BITS = 63

KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)


class UnixSockets:
    """This node's part."""

    def __init__(
        self, cluster: Cluster, ics: Ics, asking: Asking, device: Device, streams: Streams
    ) -> None:
        self._cluster = cluster
        self._ics = ics
        self._asking = asking
        self._keeper = UnixKeeper()
        self._keeper.on_gone = self._forget
        streams.source = self._keeper
        self._sending: dict[tuple[bytes, Peer, SocketName], tuple[int, int]] = {}
        """Who sends datagrams to which file, under which name: the id and the number of what stands
        for it."""
        device.serve_sockets(self._find)
        ics.serve("unix-find", self._answer_find)
        ics.serve("unix-connect", self._answer_connect)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            await self._keeper.wait_told()
            state = await self._cluster.wait_known()
            self._hear_changes(None, state)
            self._cluster.on_change.append(self._hear_changes)

    def _hear_changes(self, before: State | None, now: State) -> None:
        if before is None or before.view is not now.view:
            self._keeper.tell_alive([owner_of(now.view, node) for node in now.view.alive])

    def _owner(self, node: int) -> int:
        """Return what the keeper calls a node; raises NodeLost."""
        state = self._cluster.known
        if state is None or node not in state.view.alive:
            raise NodeLost(f"node{node} was lost")
        return owner_of(state.view, node)

    # -- for clients of this node ----------------------------------------------------------------

    async def _find(self, sought: Sought) -> int:
        """Return the number of what stands here for a socket; raises OSError."""
        caller = read_caller(sought.thread)
        client = Peer(caller.pid, caller.uids[1], caller.gids[1], caller.groups)
        known = self._sending.get((sought.file, client, sought.own))
        if known and sought.kind == socket.SOCK_DGRAM:
            return known[1]
        while True:
            node = await self._find_node(sought)
            try:
                return await self._connect(node, sought, client)
            except Refused:
                raise
            except ProtocolError as error:
                # Asked again it would say the same.
                logger.error("node%d: connecting to a Unix socket: %s", node, error)
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO)) from error
            except (SsiError, OSError) as error:
                # Its daemon is away, or it is dead, and nobody has it bound any more.
                logger.info("node%d: connecting to a Unix socket: %s; again", node, error)
                await asyncio.sleep(AGAIN_S)

    async def _find_node(self, sought: Sought) -> int:
        """Return which node has it bound; raises OSError."""
        others = sorted(self._asking.alive - {self._asking.node})
        words = {"inode": sought.inode, "kind": sought.kind}
        answers = await asyncio.gather(*(self._ask_bound(node, words) for node in others))
        for node, error in zip(others, answers, strict=True):
            if error == 0:
                return node
        others_say = [error for error in answers if error != errno.ECONNREFUSED]
        error = next(iter(others_say), errno.ECONNREFUSED)
        raise OSError(error, os.strerror(error))

    async def _ask_bound(self, node: int, words: Message) -> int:
        try:
            answer = await self._asking.ask(node, "unix-find", words)
        except NodeLost:
            return errno.ECONNREFUSED
        return wire.get_int(answer, "error", 0, 4095)

    async def _connect(self, node: int, sought: Sought, client: Peer) -> int:
        own, owner = self._asking.node, self._owner(node)
        words = {
            "file": wire.put_bytes(sought.file), "kind": sought.kind, "nonblock": sought.nonblock,
            **dump_peer(client), "name": sought.own.dump(),
        }  # fmt: skip
        async with self._ics.call(node, "unix-connect", words) as call:
            told = await call.receive()
            if told is None:
                await call.answer()
                raise NodeLost(f"node{node} has not connected")
            if refused := wire.get_int(told, "error", 0, 4095):
                raise Refused(refused)
            number = secrets.randbits(64)
            wish = Wish(Role.LISTEN, sought.number, owner, sought.kind, read_peer(told), number)
            with await landing.connect(own, node, told) as line:
                try:
                    with any_pid(own, wish.peer.pid):
                        await self._keeper.listen(wish, client, line)
                except OSError as error:
                    raise Refused(error.errno or errno.EIO) from error
            try:
                await call.answer()
                if self._owner(node) != owner:
                    raise NodeLost(f"node{node} was lost")
            except BaseException:
                self._keeper.drop(wish)
                raise
        if sought.kind == socket.SOCK_DGRAM:
            self._finish_closed(client)
            self._sending[sought.file, client, sought.own] = sought.number, number
        return number

    def _finish_closed(self, client: Peer) -> None:
        """End what leads from sockets of a process that it has closed, as their names tell."""
        for key, (known, _) in list(self._sending.items()):
            _, sender, name = key
            if sender == client and name.inode and find_bound(name.inode) is None:
                del self._sending[key]
                self._keeper.finish(known)

    def _forget(self, number: int) -> None:
        for key, (known, _) in list(self._sending.items()):
            if known == number:
                del self._sending[key]

    # -- for those of others ---------------------------------------------------------------------

    async def _answer_find(self, call: Call) -> Message:
        inode = wire.get_int(call.body, "inode", 1, MAX_INODE)
        kind = wire.get_int(call.body, "kind", 1, 16)
        return {"error": _judge(inode, kind)}

    async def _answer_connect(self, call: Call) -> Message:
        file = wire.get_bytes(call.body, "file")
        kind = wire.get_int(call.body, "kind", 1, 16)
        if len(file) > MOST_HANDLE or kind not in KINDS:
            raise ProtocolError(f"a socket of kind {kind}")
        wish = Wish(
            Role.CONNECT, secrets.randbits(ID_BITS), self._owner(call.node), kind,
            read_peer(call.body), nonblock=wire.get_flag(call.body, "nonblock"),
            name=SocketName.load(wire.get_object(call.body, "name")),
        )  # fmt: skip
        try:
            with any_pid(self._asking.node, wish.peer.pid):
                listening = await self._keeper.connect(wish, file)
        except OSError as error:
            await call.send({"error": error.errno or errno.EIO})
            return {}
        try:
            with landing.landing(self._asking.node, call.node) as place:
                await call.send({"error": 0, **place.describe(), **dump_peer(listening)})
                with await place.accept() as line:
                    self._keeper.carry(wish, line)
            if self._owner(call.node) != wish.owner:
                raise NodeLost(f"node{call.node} was lost")
        except BaseException as error:
            self._keeper.drop(wish)
            if isinstance(error, OSError):
                raise SsiError(f"no line to node{call.node}: {error}") from error
            raise
        return {}


class Refused(OSError):
    """What the real connection was answered, and the client is to hear."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


def _judge(inode: int, kind: int) -> int:
    """Return 0 if a socket to which one could connect is bound to a file here, or an errno."""
    bound = find_bound(inode)
    if bound is None:
        return errno.ECONNREFUSED
    if bound.kind != kind:
        return errno.EPROTOTYPE
    if kind != socket.SOCK_DGRAM and bound.state != LISTENS:
        return errno.ECONNREFUSED
    return 0


def read_peer(message: Message) -> Peer:
    """Return who it is in a message; raises ProtocolError."""
    return Peer(
        wire.get_int(message, "pid", 0, MAX_PID), wire.get_int(message, "uid", 0, MAX_UID),
        wire.get_int(message, "gid", 0, MAX_UID),
        tuple(wire.get_ints(message, "groups", 0, MAX_UID)[:MAX_GROUPS]),
    )  # fmt: skip


def dump_peer(peer: Peer) -> Message:
    """Return it as part of a message."""
    return {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid, "groups": list(peer.groups)}
