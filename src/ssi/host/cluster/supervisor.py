"""The supervisor of one cluster: it runs the nodes, confirms deaths and says who may mount."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable

from ssi.common.changes import Changes
from ssi.common.errors import NodeLost, ProtocolError, SsiError, TimedOut, UsageError
from ssi.common.nodes import MAX_NODE, fold_nodes
from ssi.common.wire import Message, get_flag, get_int, get_ints, get_text, put_bytes
from ssi.host.cluster.arbiter import Arbiter, Verdict
from ssi.host.cluster.key import read_key
from ssi.host.cluster.member import PHASES, Member, read_tail
from ssi.host.cluster.spec import ClusterPlace, ClusterSpec
from ssi.host.disk import make_blank
from ssi.host.net.faults import Faults
from ssi.host.net.switch import PortKind, Switch
from ssi.host.net.uplink import NoUplink, parse_published, uplinked
from ssi.host.uml.cmdline import NodeSpec
from ssi.host.uml.node import VirtualNode, run_node

logger = logging.getLogger(__name__)

BATCH = 8
"""Nodes started at once; more join in turns, as each join makes all others work."""

BOOT_S = 60.0
BOOT_EACH_S = 6.0
LEAVE_S = 20.0
STOPPING_S = 60.0

Report = Callable[[int, str], None]
"""Called with a node and its new phase."""


class Supervisor:
    """Runs the nodes of one cluster."""

    def __init__(self, spec: ClusterSpec, switch: Switch, group: asyncio.TaskGroup) -> None:
        self.spec = spec
        self.place = ClusterPlace(spec.id)
        self.switch = switch
        self._key = put_bytes(read_key(self.place))
        self.faults = Faults()
        self.members: dict[int, Member] = {}
        self.changes = Changes()
        self.on_message: dict[str, Callable[[Member, Message], None]] = {}
        self.on_loss: list[Callable[[int], None]] = []
        self.on_end: Callable[[], None] = lambda: None
        """Called when the nodes have shut the cluster down."""
        self._group = group
        self._arbiter = Arbiter()
        self.notes: list[str] = []
        """What the cluster goes without, for the person who starts it."""
        self._runs = 0
        self._making_journals = self._stopping = False
        self._rebooting: set[int] = set()
        """Nodes that have left to be started again when all have."""
        self._without_journal: set[int] = set()
        self._deaths: dict[int, Message] = {}
        """What was said about the last death of each node."""
        self._reports: list[Report] = []
        self._hear: dict[str, Callable[[Member, Message], None]] = {
            "hello": self._hear_hello, "phase": self._hear_phase, "view": self._hear_view,
            "member": self._hear_member, "going": self._hear_going,
            "trouble": self._hear_trouble,
            "no-journal": self._hear_no_journal, "journals": self._hear_journals,
        }  # fmt: skip

    # -- nodes ---------------------------------------------------------------------------------

    async def start(self, nodes: Iterable[int], report: Report) -> None:
        """Start `nodes` that are not up; return when all are ready. On failure none is left.

        Raises NodeLost or TimedOut.
        """
        wanted = sorted(set(nodes) - self.members.keys())
        self._reports.append(report)
        try:
            for first in range(0, len(wanted), BATCH):
                await self._start_batch(wanted[first : first + BATCH])
        except BaseException:
            await self.crash(wanted)
            raise
        finally:
            self._reports.remove(report)

    async def _start_batch(self, nodes: list[int]) -> None:
        within_s = BOOT_S + BOOT_EACH_S * (len(self.members) + len(nodes))
        # All are heard to their end, or one that fails would leave another half started.
        booted = await asyncio.gather(
            *(self._boot(node, within_s) for node in nodes), return_exceptions=True
        )
        started: dict[int, Member] = {}
        for node, outcome in zip(nodes, booted, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            started[node] = outcome

        def all_up_or_one_lost() -> bool:
            lost = any(self.members.get(n) is not started[n] for n in nodes)
            # The others may wait for one in trouble: it holds the lock of the first mount.
            troubled = any(started[n].trouble for n in nodes)
            return lost or troubled or all(started[n].ready for n in nodes)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changes.wait_for(all_up_or_one_lost)

        # First those that are a reason.
        def only_waited(member: Member) -> bool:
            return self.members.get(member.number) is member and not member.trouble

        for member in sorted(started.values(), key=only_waited):
            self._check_up(member, within_s)

    async def _wait_noticed(self, node: int, within_s: float) -> None:
        """Wait until nobody sees a former life of `node` any more."""
        try:
            async with asyncio.timeout(within_s):
                await self.changes.wait_for(lambda: not self._arbiter.not_noticed(node))
        except TimeoutError as error:
            blind = fold_nodes(self._arbiter.not_noticed(node))
            raise TimedOut(
                f"node{node} cannot start: node {blind} did not notice in {within_s:.0f} s that "
                "it had died", hint="do they hang? `ssi ls -v` shows what they see",
            ) from error  # fmt: skip

    def _check_up(self, member: Member, within_s: float) -> None:
        node = member.number
        said = member.virtual.panic or read_tail(self.place.console_log(node))
        said = said or read_tail(self.place.uml_log(node))
        logs = f"its logs are {self.place.logs}/node{node}.*"
        if self.members.get(node) is not member:
            raise NodeLost(f"node{node} died while it booted: {said}", hint=logs)
        if member.trouble:
            raise SsiError(f"node{node}: {member.trouble}", hint=logs)
        if not member.ready:
            waits = "" if member.phase != "ring" else (
                f": it sees {fold_nodes(member.ring)} and waits to see one that has the root"
            )  # fmt: skip
            raise TimedOut(
                f"node{node} was not up after {within_s:.0f} s, but in phase "
                f"{member.phase!r}{waits}", hint=logs,
            )  # fmt: skip

    async def _boot(self, node: int, within_s: float) -> Member:
        """Start the kernel of `node`; return when it runs."""
        await self._wait_noticed(node, within_s)
        make_blank(self.place.swap(node), self.spec.swap_mib << 20)
        for log in (self.place.console_log(node), self.place.uml_log(node)):
            log.unlink(missing_ok=True)
        self._runs += 1
        spec = NodeSpec(
            node=node, kernel=self.spec.kernel, ramdisk=self.spec.ramdisk, root=self.place.root,
            swap=self.place.swap(node), memory_mib=self.spec.memory_mib,
            umid=f"n{node}-{os.getpid()}-{self._runs}", uml_dir=self.place.runtime / "uml",
            extra=(f"ssi.token_ms={self.spec.token_ms}",),
        )  # fmt: skip
        running: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        network = await self.switch.attach(node)
        self._group.create_task(self._live(spec, network, running))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with contextlib.suppress(SsiError):
                await (await running).virtual.process.kill()
            raise

    async def _live(
        self, spec: NodeSpec, network: socket.socket, running: asyncio.Future[Member]
    ) -> None:
        node = spec.node
        member: Member | None = None
        try:
            async with self._uplinked(node), run_node(
                spec, network=network,
                console_log=self.place.console_log(node), uml_log=self.place.uml_log(node),
            ) as virtual:  # fmt: skip
                member = self._add(virtual)
                running.set_result(member)
                async with asyncio.TaskGroup() as group:
                    listening = [
                        group.create_task(self._listen(member)),
                        group.create_task(self._listen_for_fencing(member)),
                    ]
                    status = await virtual.process.wait()
                    for each in listening:
                        each.cancel()
                logger.info("node%d ended with status %d", node, status)
        except (OSError, SsiError) as error:
            problem = error if isinstance(error, SsiError) else SsiError(
                f"node{node} cannot be started: {error}"
            )  # fmt: skip
            if running.done():
                logger.exception("node%d", node)
            else:
                running.set_exception(problem)
        finally:
            await self.switch.detach(node)
            if member is not None and self.members.get(node) is member:
                self._remove(member)

    @contextlib.asynccontextmanager
    async def _uplinked(self, node: int) -> AsyncIterator[None]:
        """Give `node` its way out, or note why it has none; raises PortTaken."""
        published = [p for at, p in map(parse_published, self.spec.publish) if at == node]
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(uplinked(self.switch, node, published))
            except NoUplink as error:
                if published:
                    raise
                if str(error) not in self.notes:
                    self.notes.append(str(error))
            yield

    def _add(self, virtual: VirtualNode) -> Member:
        member = Member(virtual)
        self.members[member.number] = member
        self._arbiter.started(member.number)
        with self.place.groups.open("a") as groups:
            groups.write(f"{virtual.process.group}\n")
        self.changes.tell()
        return member

    def _remove(self, member: Member) -> None:
        del self.members[member.number]
        self._arbiter.died(member.number)
        self._give_orders()
        self._retry_mounts()
        self._send_all({"is": "expected", "votes": self._arbiter.expected_votes})
        if member.boot:
            self._deaths[member.number] = {
                "is": "died", "node": member.number, "boot": member.boot,
                "left": member.phase == "left",
            }  # fmt: skip
            self._send_all(self._deaths[member.number])
        for lose in self.on_loss:
            lose(member.number)
        self.changes.tell()
        if member.going == "reboot":
            self._rebooting.add(member.number)
        if member.going and not self.members and not self._stopping:
            self._end_or_reboot()

    def _end_or_reboot(self) -> None:
        nodes = sorted(self._rebooting)
        self._rebooting.clear()
        if nodes:
            self._group.create_task(self._reboot(nodes))
        else:
            self.on_end()

    async def _reboot(self, nodes: list[int]) -> None:
        logger.info("reboot: starting node %s", fold_nodes(nodes))
        self._deaths.clear()
        try:
            await self.start(nodes, lambda *_: None)
        except SsiError:
            logger.exception("reboot")
            if not self.members:
                self.on_end()

    async def crash(self, nodes: Collection[int]) -> None:
        """Kill `nodes`, as a power failure would; return when they are gone."""
        victims = [self.members[n] for n in nodes if n in self.members]
        for victim in victims:
            victim.crashed = True
        await asyncio.gather(*(victim.virtual.process.kill() for victim in victims))
        await self.changes.wait_for(
            lambda: not any(self.members.get(v.number) is v for v in victims)
        )

    async def stop(self, *, within_s: float = LEAVE_S) -> list[int]:
        """Have all nodes leave in order; kill and return those that have not within the time."""
        self._stopping = True
        self._send_all({"is": "leave"})
        if not await self._wait_empty(within_s):
            # Entries for a shutdown run: they have a limit of their own.
            stopping = any(member.phase == "stopping" for member in self.members.values())
            await self._wait_empty(STOPPING_S if stopping else 0)
        late = sorted(self.members)
        await self.crash(late)
        return late

    async def _wait_empty(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changes.wait_for(lambda: not self.members)
        return not self.members

    async def apply_faults(self, faults: Faults) -> None:
        """Let the network have these faults and no others."""
        await self.switch.apply(faults)
        self.faults = faults

    async def watch_switch(self) -> None:
        """Follow the switch; raises SwitchLost at its end, without which the cluster is nothing."""
        while True:
            port = await self.switch.wait_closed()
            if port.kind is PortKind.UPLINK and port.node in self.members:
                logger.warning("node%d has lost its way out: passt has ended", port.node)

    def find(self, node: int) -> Member:
        """Return the member `node`, or raise NodeLost."""
        if node not in self.members:
            raise NodeLost(
                f"node{node} is not up in cluster {self.spec.id}",
                hint=f"start it with `ssi add {self.spec.id} {node}`",
            )
        return self.members[node]

    # -- what nodes say ------------------------------------------------------------------------

    async def _listen(self, member: Member) -> None:
        async for message in member.virtual.line.messages():
            try:
                kind = get_text(message, "is")
                hear = self._hear.get(kind) or self.on_message.get(kind)
                if hear is None:
                    raise ProtocolError(f"unknown kind {kind!r:.40}")
                hear(member, message)
            except (ProtocolError, UsageError) as error:
                logger.warning("refused from node%d: %s", member.number, error)

    def _hear_hello(self, member: Member, message: Message) -> None:
        if get_int(message, "node", 1, MAX_NODE) != member.number:
            raise ProtocolError("it gives another node's number")
        member.boot = get_text(message, "boot")[:64]
        member.virtual.line.post({"is": "key", "key": self._key})
        if get_flag(message, "restarted"):
            logger.warning("node%d: its daemon was restarted", member.number)
            for lose in self.on_loss:
                lose(member.number)
            for order in self._arbiter.standing_orders(member.number):
                member.virtual.line.post({"is": order.value})
            expected = {"is": "expected", "votes": self._arbiter.expected_votes}
            member.virtual.line.post(expected)
            for death in self._deaths.values():
                member.virtual.line.post(death)
            if self._stopping:
                member.virtual.line.post({"is": "leave"})

    def _hear_phase(self, member: Member, message: Message) -> None:
        phase = get_text(message, "name")
        if phase not in PHASES:
            raise ProtocolError(f"unknown phase {phase!r:.40}")
        member.phase = phase
        if phase == "mounted":
            self._arbiter.mounted(member.number)
            self._give_orders()
        if phase == "left":
            self._arbiter.died(member.number)
            self._send_all({"is": "expected", "votes": self._arbiter.expected_votes})
        for report in self._reports:
            report(member.number, phase)
        self.changes.tell()

    def _hear_view(self, member: Member, message: Message) -> None:
        members = get_ints(message, "members", 1, MAX_NODE)
        member.ring = tuple(sorted(members))
        member.quorate = get_flag(message, "quorate")
        self._arbiter.saw(member.number, frozenset(members))
        self._give_orders()
        self.changes.tell()

    def _hear_member(self, member: Member, message: Message) -> None:
        member.view = get_int(message, "view", 0, 2**53)
        member.view_members = tuple(get_ints(message, "members", 1, MAX_NODE))
        member.init_node = get_int(message, "init", 0, MAX_NODE)
        self.changes.tell()

    def _hear_going(self, member: Member, message: Message) -> None:
        member.going = get_text(message, "how")[:20]

    def _hear_trouble(self, member: Member, message: Message) -> None:
        member.trouble = get_text(message, "text")[:400]
        logger.warning("node%d: %s", member.number, member.trouble)
        self.changes.tell()

    def _hear_no_journal(self, member: Member, _: Message) -> None:
        """A node that mounted makes journals for all; one at a time, or they would be too many."""
        mounted = [m for m in self.members.values() if m.phase in {"mounted", "ready"}]
        self._without_journal.add(member.number)
        if mounted and not self._making_journals:
            self._making_journals = True
            wanted = {"is": "journals", "wanted": len(self.members)}
            min(mounted, key=lambda m: m.number).virtual.line.post(wanted)

    def _hear_journals(self, _: Member, __: Message) -> None:
        self._retry_mounts()

    def _retry_mounts(self) -> None:
        """Those without a journal try again; a node has made some, or has died over it."""
        self._making_journals = False
        for node in self._without_journal & self.members.keys():
            self.members[node].virtual.line.post({"is": "journals", "wanted": 0})
        self._without_journal.clear()

    def _give_orders(self) -> None:
        for node, order in self._arbiter.orders():
            logger.info("node%d: %s", node, order.value)
            if node in self.members:
                self.members[node].virtual.line.post({"is": order.value})

    def _send_all(self, message: Message) -> None:
        for member in self.members.values():
            member.virtual.line.post(message)

    # -- fencing -------------------------------------------------------------------------------

    async def _listen_for_fencing(self, member: Member) -> None:
        async for message in member.virtual.fence.messages():
            try:
                victim, request = get_int(message, "node", 1, MAX_NODE), get_text(message, "id")
            except ProtocolError as error:
                logger.warning("refused from node%d's fence agent: %s", member.number, error)
                continue
            self._group.create_task(self._fence(member, victim, request))

    async def _fence(self, requester: Member, victim: int, request: str) -> None:
        """Judge, kill, confirm. The answer goes out only when nothing of the victim is left."""
        verdict = self._arbiter.judge(requester.number, victim)
        if verdict is Verdict.WAIT:
            verdict = await self._wait_for_other_side(requester.number, victim)
        logger.info("node%d asks to fence node%d: %s", requester.number, victim, verdict.value)
        if verdict is Verdict.LOSE:
            await self.crash([requester.number])
            return
        if verdict is not Verdict.DEAD:
            await self.crash([victim])
        requester.virtual.fence.post({"id": request, "dead": True})

    async def _wait_for_other_side(self, requester: int, victim: int) -> Verdict:
        grace_s = 4 * self.spec.token_ms / 1000
        judge = self._arbiter.judge
        try:
            async with asyncio.timeout(grace_s):
                await self.changes.wait_for(lambda: judge(requester, victim) is not Verdict.WAIT)
        except TimeoutError:
            return judge(requester, victim, final=True)
        return judge(requester, victim)
