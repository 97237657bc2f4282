"""How the cluster goes down: warnings, services, every node's leave; each step on all members.

The init node takes each step by an operation on the replicated state; whichever is init node when
one dies goes on from there. The host (`ssi stop`) asks for the same, and where no state can be
agreed on, for want of a quorum, each node that the host asks leaves by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from ssi.common.addresses import node_name
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.hostline import HostLine
from ssi.node.init.executor import Executor
from ssi.node.init.plan import is_through
from ssi.node.state.init import Init, Phase, Shutdown
from ssi.node.state.view import NodeState
from ssi.node.wall import wall

logger = logging.getLogger(__name__)

WARNINGS_S = (15 * 60, 10 * 60, 5 * 60, 2 * 60, 60, 0)
"""Everybody is told so long before the time, and when it is planned."""

STOPPING_S = 60.0
"""What entries with the action shutdown may take."""

AGREE_S = 5.0
"""What the host has asked for begins by then, or each node leaves by itself."""

VERBS = {"poweroff": "power-off", "halt": "halt", "reboot": "reboot"}

Leave = Callable[[str], Awaitable[None]]
"""Called with one of HOW."""


def next_warning(planned_s: float, now_s: float) -> float:
    """Return when to warn next, a Unix time; `planned_s` itself is the last."""
    return min(planned_s - before for before in WARNINGS_S if planned_s - before > now_s)


def describe(shutdown: Shutdown, now_s: float) -> str:
    """Return what everybody is told."""
    left_s = shutdown.time - now_s
    when = "NOW" if left_s < 1 else (
        f"in {left_s / 60:.0f} minutes" if left_s >= 90 else f"in {left_s:.0f} seconds"
    )  # fmt: skip
    text = f"\n{shutdown.text}" if shutdown.text else ""
    return f"The cluster is going down for {VERBS[shutdown.how]} {when}!{text}"


class Descent:
    """Takes this node's part in a shutdown, its own or the cluster's."""

    def __init__(self, cluster: Cluster, executor: Executor, host: HostLine, leave: Leave) -> None:
        self._cluster = cluster
        self._executor = executor
        self._host = host
        self._leave = leave
        self._asked = asyncio.Event()
        host.hear("leave", self._hear_leave)

    def _hear_leave(self, _: Message) -> None:
        self._asked.set()

    async def run(self) -> None:
        """Wait until this node has to leave; return when it has."""
        async with asyncio.TaskGroup() as group:
            following = [
                group.create_task(self._follow()), group.create_task(self._obey()),
                group.create_task(self._warn()),
            ]  # fmt: skip
            await asyncio.wait(following[:2], return_when=asyncio.FIRST_COMPLETED)
            for task in following:
                task.cancel()
        shutdown = self._init().shutdown
        of_all = shutdown is not None and shutdown.phase is Phase.LEAVING
        await self._leave(shutdown.how if shutdown and of_all else "poweroff")

    # -- the replicated state's word -------------------------------------------------------------

    def _init(self) -> Init:
        return self._cluster.known.init if self._cluster.known else Init()

    def _phase(self) -> Phase | None:
        shutdown = self._init().shutdown
        return shutdown.phase if shutdown else None

    def _state(self) -> NodeState:
        view = self._cluster.known.view if self._cluster.known else None
        return view.state_of(self._cluster.node) if view else NodeState.COMINGUP

    def _is_init_node(self) -> bool:
        state = self._cluster.known
        return state is not None and state.view.init_node == self._cluster.node

    def _leaves(self) -> bool:
        """Whether it is decided that this node leaves now."""
        return self._state() is NodeState.GOINGDOWN or self._phase() is Phase.LEAVING

    async def _follow(self) -> None:
        """Take the steps that are the init node's to take; return when this node is to leave."""
        changes = self._cluster.changes
        while not self._leaves():
            shutdown = self._init().shutdown
            if self._state() is NodeState.SHUTDOWN:
                await self._go_alone()
            elif shutdown is None or not self._is_init_node():
                await changes.wait()
            elif shutdown.phase is Phase.PLANNED:
                if await self._wait_time(shutdown):
                    await self._go_on(Phase.STOPPING)
            else:
                self._host.say("phase", name="stopping")
                await self._wait_stopped(self._have_all_stopped)
                await self._go_on(Phase.LEAVING)

    async def _wait_time(self, shutdown: Shutdown) -> bool:
        """Wait until it is time for `shutdown`; False if it is planned no more, or otherwise."""
        try:
            async with asyncio.timeout(max(0.0, shutdown.time - time.time())):
                await self._cluster.changes.wait_for(lambda: self._init().shutdown != shutdown)
        except TimeoutError:
            return True
        return False

    async def _go_on(self, phase: Phase) -> None:
        self._cluster.propose("init", "phase", phase=phase.value)
        await self._cluster.changes.wait_for(lambda: self._phase() in {phase, Phase.LEAVING, None})

    async def _go_alone(self) -> None:
        """This node alone is shut down: its services end first; until then there is a way back."""
        await self._wait_stopped(
            lambda: self._state() is not NodeState.SHUTDOWN or self._executor.idle
        )
        if self._state() is NodeState.SHUTDOWN:
            node = self._cluster.node
            self._cluster.set_state(node, NodeState.GOINGDOWN, "its services have ended")
            await self._cluster.changes.wait_for(lambda: self._state() is not NodeState.SHUTDOWN)

    def _have_all_stopped(self) -> bool:
        """Whether services have ended, and entries for a shutdown have run."""
        state = self._cluster.known
        if state is None or self._phase() is not Phase.STOPPING:
            return True
        return self._executor.idle and is_through(state, actions=("shutdown",))

    async def _wait_stopped(self, stopped: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(STOPPING_S):
                while not stopped():
                    await _wait_either(self._cluster.changes.wait(), self._executor.changes.wait())
        except TimeoutError:
            logger.warning("services or entries for the shutdown take over %.0f s", STOPPING_S)

    # -- the host's word -------------------------------------------------------------------------

    async def _obey(self) -> None:
        """Do what the host asks; return when this node has to leave by itself."""
        await self._asked.wait()
        if self._phase() in {None, Phase.PLANNED}:
            self._cluster.propose(
                "init", "shutdown", how="poweroff", time=time.time(), by="the host", text="",
                phase=Phase.STOPPING.value,
            )  # fmt: skip
        try:
            async with asyncio.timeout(AGREE_S):
                await self._cluster.changes.wait_for(
                    lambda: self._phase() in {Phase.STOPPING, Phase.LEAVING}
                )
        except TimeoutError:
            logger.warning("nothing is agreed on in %.0f s: this node leaves by itself", AGREE_S)
            return
        try:
            async with asyncio.timeout(STOPPING_S + AGREE_S):
                await self._cluster.changes.wait_for(self._leaves)
        except TimeoutError:
            logger.warning("the others do not go on: this node leaves by itself")

    # -- warnings --------------------------------------------------------------------------------

    async def _warn(self) -> None:
        """Tell this node's users of a shutdown."""
        while True:
            await self._cluster.changes.wait_for(lambda: self._init().shutdown is not None)
            shutdown = self._init().shutdown
            if shutdown is not None:
                await self._warn_of(shutdown)
                if self._init().shutdown is None:
                    self._wall("The shutdown is cancelled.")

    async def _warn_of(self, shutdown: Shutdown) -> None:
        def is_same() -> bool:
            now = self._init().shutdown
            return now is not None and (now.time, now.by) == (shutdown.time, shutdown.by)

        while is_same():
            now_s = time.time()
            self._wall(describe(shutdown, now_s))
            until_s = next_warning(shutdown.time, now_s) if shutdown.time > now_s else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_s and until_s - now_s):
                    await self._cluster.changes.wait_for(lambda: not is_same())

    def _wall(self, text: str) -> None:
        wall(node_name(self._cluster.node), text)


async def _wait_either(*waits: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
