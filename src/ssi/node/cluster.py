"""This node's part in the replicated state: it joins the group, proposes, and tells of changes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.changes import Changes
from ssi.common.errors import ProtocolError, TimedOut
from ssi.common.nodes import MAX_NODE, fold_nodes
from ssi.common.wire import Message
from ssi.node.cpg import MAX_MESSAGE, Change, Group
from ssi.node.hostline import HostLine
from ssi.node.logs import set_view
from ssi.node.members import Members, retry
from ssi.node.quorum import CorosyncError
from ssi.node.state.replica import Replica, Snapshot
from ssi.node.state.state import MACHINE, State
from ssi.node.state.view import NodeState, View

logger = logging.getLogger(__name__)

GROUP = "ssi"
SAVED = Path("/run/ssi/state.json")
BUSY_S = 0.005
AGAIN_S = 1.0

OnChange = Callable[[State, State], None]


def _read_saved() -> Snapshot[State] | None:
    """Return what the daemon before this one knew, None if there was none."""
    try:
        return Snapshot.load(MACHINE, json.loads(SAVED.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, ProtocolError):
        logger.exception("%s", SAVED)
        return None


def _save(known: Snapshot[State]) -> None:
    partial = SAVED.with_suffix(".partial")
    partial.write_bytes(wire.encode(known.dump(MACHINE)))
    partial.replace(SAVED)


class Cluster:
    """The cluster's state as this node knows it."""

    def __init__(self, node: int, boot: str, members: Members, host: HostLine) -> None:
        self.node = node
        self.boot = boot
        self.changes = Changes()
        """Told after each change of the state, and of who knows it."""
        self.on_change: list[OnChange] = []
        self._members = members
        self._host = host
        self._said: dict[str, object] = {}
        self._replica: Replica[State] = Replica(node, MACHINE, _read_saved())
        self._told = State()
        self._knew: Snapshot[State] | None = None
        self._run = time.time_ns()
        """Higher than any run before: operations of theirs that still come are known as old."""
        self._number = 0
        self._outstanding: dict[int, Message] = {}
        self._results: dict[int, asyncio.Future[tuple[State, int]]] = {}
        self._lost: set[int] = set()
        """Nodes that have left us, and whose death is not confirmed."""
        self._dead: dict[int, tuple[str, str]] = {}
        """Each node's last confirmed death: the name of that life, and how it ended."""
        self._queue: deque[bytes] = deque()
        self._group: Group | None = None
        host.hear("died", self._hear_died)
        members.on_facts = self._learn

    @property
    def known(self) -> State | None:
        """The state, None while it is not known."""
        return self._replica.known.state if self._replica.known else None

    async def run(self) -> None:
        """Ask again from time to time while the state is not known, until cancelled."""
        while True:
            await asyncio.sleep(AGAIN_S)
            if self._group:
                self._take(self._replica.ask_again())

    async def wait_known(self, *, within_s: float | None = None) -> State:
        """Wait until the state is known; return it. Raises TimedOut."""
        try:
            async with asyncio.timeout(within_s):
                await self.changes.wait_for(lambda: self.known is not None)
        except TimeoutError as error:
            raise TimedOut(
                f"node{self.node} has not learnt the cluster's state in {within_s:.0f} s",
                hint="`ssi ls -v` on the host shows what each node sees",
            ) from error
        assert self.known
        return self.known

    # -- the group -------------------------------------------------------------------------------

    async def join(self) -> None:
        """Join the group of all daemons."""
        self._group = await retry(lambda: Group(GROUP, self._hear, self._change))
        asyncio.get_running_loop().add_reader(self._group.fileno(), self._dispatch)
        await retry(self._group.join)
        self._learn()

    def _dispatch(self) -> None:
        assert self._group
        try:
            self._group.dispatch()
        except CorosyncError:
            self._part()

    def _part(self) -> None:
        """corosync is gone. Members sees that, too, and acts."""
        if self._group:
            asyncio.get_running_loop().remove_reader(self._group.fileno())
            self._group = None
            self._queue.clear()

    def _learn(self) -> None:
        ring = self._members.view.members if self._members.view else ()
        self._take(self._replica.learn(
            voter=self._members.votes, founder=self._members.founds, ring=frozenset(ring)
        ))  # fmt: skip

    def _change(self, change: Change) -> None:
        self._lost |= change.lost
        # Whoever was away may have gone on without us, or we without them.
        firm = not change.merged & self._lost
        if not self._members.votes and change.lost:
            firm = False
        self._take(self._replica.change(change.members, change.left, change.joined, firm=firm))

    def _hear(self, sender: int, data: bytes) -> None:
        try:
            self._take(self._replica.deliver(sender, wire.decode(data)))
        except ProtocolError as error:
            logger.warning("refused from the group, node%d: %s", sender, error)

    def _take(self, messages: list[Message]) -> None:
        """Note what a call of the replica has changed, and send what it wants sent."""
        known, knew = self._replica.known, self._knew
        self._knew = known
        if known is not None and known is not knew:
            _save(known)
            self._settle(known)
            if knew is None:
                self._repeat()
                self._report_deaths()
            self._tell(known.state)
        for message in messages:
            self._send(message)
        self.changes.tell()

    def _tell(self, now: State) -> None:
        before, self._told = self._told, now
        if before.view.number != now.view.number:
            set_view(now.view.number)
            logger.info("view %d: %s", now.view.number, fold_nodes(now.view.members))
        self._tell_host(now.view)
        for callback in self.on_change:
            callback(before, now)

    def _tell_host(self, view: View) -> None:
        said = {
            "view": view.number, "members": list(view.members), "init": view.init_node or 0,
            "state": view.state_of(self.node).value,
        }  # fmt: skip
        if said != self._said:
            self._said = said
            self._host.say("member", **said)

    def _send(self, message: Message) -> None:
        if self._group is None:
            return
        data = wire.encode(message)
        if len(data) > MAX_MESSAGE:
            logger.error("too large for the group: %.80r", data)
            return
        seen = b'{"is":"seen"'
        if data.startswith(seen) and self._queue and self._queue[-1].startswith(seen):
            self._queue.pop()
        self._queue.append(data)
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._queue and self._group:
            try:
                sent = self._group.send(self._queue[0])
            except CorosyncError:
                self._part()
                return
            if not sent:
                asyncio.get_running_loop().call_later(BUSY_S, self._flush)
                return
            self._queue.popleft()

    def _hear_died(self, message: Message) -> None:
        """The host confirms a death; every member says so, as any of them may be the next."""
        node = wire.get_int(message, "node", 1, MAX_NODE)
        cause = "it has left" if wire.get_flag(message, "left") else "it is dead"
        self._dead[node] = (wire.get_text(message, "boot"), cause)
        self._lost.discard(node)
        self._report_deaths()

    def _report_deaths(self) -> None:
        view = self.known.view if self.known else View()
        for node, (boot, cause) in self._dead.items():
            if node in view.alive and view.boot_of(node) == boot:
                self.set_state(node, NodeState.KCLEANUP, cause)

    # -- operations ------------------------------------------------------------------------------

    def _settle(self, known: Snapshot[State]) -> None:
        """Own operations that have been applied need not be repeated."""
        run, last = known.marks.get(self.node, (-1, 0))
        if run != self._run:
            return
        for number in [n for n in self._outstanding if n <= last]:
            del self._outstanding[number]
            if (result := self._results.pop(number, None)) and not result.done():
                result.set_result((known.state, known.index))

    def _repeat(self) -> None:
        """Operations that were delivered while we did not know the state came to nothing."""
        for _, message in sorted(self._outstanding.items()):
            self._send(message)

    def propose(self, part: str, operation: str, **fields: object) -> int:
        """Have an operation done, some time soon; return its number."""
        self._number += 1
        message = {
            "is": "do", "run": self._run, "number": self._number,
            "operation": {"on": part, "do": operation, **fields},
        }  # fmt: skip
        self._outstanding[self._number] = message
        if self._replica.known:
            self._send(message)
        return self._number

    async def commit(
        self, part: str, operation: str, *, within_s: float, **fields: object
    ) -> State:
        """Have an operation done; return the state it led to when every living node knows it.

        From then on it cannot be lost while one of them lives. Raises TimedOut; it may be done all
        the same later.
        """
        result: asyncio.Future[tuple[State, int]] = asyncio.get_running_loop().create_future()
        number = self.propose(part, operation, **fields)
        self._results[number] = result
        late: set[int] = set()
        try:
            async with asyncio.timeout(within_s):
                state, index = await result
                while late := self._ignorant(index):
                    await self.changes.wait()
        except TimeoutError as error:
            raise TimedOut(
                f"not done within {within_s:.0f} s: node {fold_nodes(late or {self.node})} does "
                "not know of it", hint="`cluster -v` shows who is up",
            ) from error  # fmt: skip
        finally:
            self._results.pop(number, None)
        return state

    def _ignorant(self, index: int) -> set[int]:
        """Return the living nodes that have not come as far as `index`."""
        alive = self.known.view.alive if self.known else frozenset({self.node})
        return {n for n in alive if self._replica.seen.get(n, -1) < index}

    def set_state(self, node: int, state: NodeState, cause: str) -> None:
        """Say that `node` is in this state now, if that follows from the one it is in."""
        self.propose("view", "state", **self._state_fields(node, state, cause))

    async def commit_state(
        self, node: int, state: NodeState, cause: str, *, within_s: float
    ) -> None:
        """Do the same, and return when every living node knows it; raises TimedOut."""
        fields = self._state_fields(node, state, cause)
        await self.commit("view", "state", within_s=within_s, **fields)

    def _state_fields(self, node: int, state: NodeState, cause: str) -> dict[str, object]:
        boot = self.known.view.boot_of(node) if self.known else self.boot
        return {
            "node": node, "boot": boot, "state": state.value, "time": time.time(), "cause": cause
        }  # fmt: skip

    async def come(self) -> None:
        """Say that this node is coming up; return when all know."""
        state = await self.wait_known()
        if state.view.boot_of(self.node) != self.boot or self.node not in state.view.alive:
            self.propose(
                "view", "coming",
                node=self.node, boot=self.boot, time=time.time(), cause="its daemon has joined",
            )  # fmt: skip
        await self.changes.wait_for(
            lambda: self.known is not None and self.known.view.boot_of(self.node) == self.boot
        )

    async def rise(self) -> None:
        """Say that this node has mounted the root; return when it is a member."""
        await self.come()
        self.set_state(self.node, NodeState.UP, "it has mounted the root")
        await self.changes.wait_for(
            lambda: (
                self.known is not None
                and self.known.view.state_of(self.node) is not NodeState.COMINGUP
            )
        )
