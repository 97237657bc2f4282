"""rc.nodeup and rc.nodedown: run by the init node for each node that has come or is lost.

One after the other, in the order of the view's transitions. The init node says that one has run to
its end; if it dies before that, the next init node runs the script again: SSI_EVENT is its number.
"""

from __future__ import annotations

import asyncio
import logging

from ssi.common.errors import TimedOut
from ssi.node.cluster import Cluster
from ssi.node.init.executor import make_environment
from ssi.node.init.jobs import Jobs
from ssi.node.init.plan import is_through
from ssi.node.state.init import Phase
from ssi.node.state.inittab import BEFORE
from ssi.node.state.view import Event, NodeState

logger = logging.getLogger(__name__)

PREFIX = "event."
LIMIT_S = 300.0
"""A script that takes longer is ended: the others wait for it."""

COMMIT_S = 10.0

SCRIPT = '[ ! -x "$0" ] || exec "$0" "$1"'


class Events:
    """Runs the scripts while this is the init node."""

    def __init__(self, cluster: Cluster, jobs: Jobs, console: str) -> None:
        self._cluster = cluster
        self._jobs = jobs
        self._console = console

    async def run(self) -> None:
        """Run the scripts until cancelled."""
        await self._cluster.wait_known()
        await self._jobs.wait_known()
        self._forget_others()
        while True:
            await self._cluster.changes.wait_for(lambda: self._next() is not None)
            if event := self._next():
                await self._handle(event)

    def _next(self) -> Event | None:
        """Return the event whose turn it is, if it is ours to run its script."""
        state = self._cluster.known
        if state is None or not state.view.events or not state.init.level:
            return None
        ours = state.view.init_node == self._cluster.node
        going = state.init.shutdown and state.init.shutdown.phase is not Phase.PLANNED
        if not ours or going or not is_through(state, actions=BEFORE):
            return None
        return state.view.events[0]

    def _forget_others(self) -> None:
        """Events whose end the daemon before this one has said already."""
        state = self._cluster.known
        left = {_key(event) for event in state.view.events} if state else set()
        for key in self._jobs.find():
            if key.startswith(PREFIX) and key not in left:
                self._jobs.forget(key)

    async def _handle(self, event: Event) -> None:
        if event.kind == "nodedown":
            self._cluster.set_state(event.node, NodeState.UCLEANUP, "rc.nodedown runs")
        await self._run_script(event)
        try:
            await self._cluster.commit("view", "event-done", event=event.number, within_s=COMMIT_S)
        except TimedOut as error:
            # It is repeated until it is done; whether all know is their affair.
            logger.warning("%s", error)
            await self._cluster.changes.wait_for(lambda: self._next() != event)
        if event.kind == "nodedown":
            self._cluster.set_state(event.node, NodeState.DOWN, "rc.nodedown has run")
        self._jobs.forget(_key(event))

    async def _run_script(self, event: Event) -> None:
        script = f"/etc/rc.d/rc.{event.kind}"
        state = self._cluster.known
        assert state
        environment = make_environment(self._cluster.node, self._console, state.init)
        environment |= {"SSI_EVENT": str(event.number), "SSI_VIEW": str(state.view.number)}
        argv = ["/bin/sh", "-c", SCRIPT, script, str(event.node)]
        try:
            async with asyncio.timeout(LIMIT_S):
                status = await self._jobs.run(_key(event), argv, environment)
        except TimeoutError:
            logger.warning("%s %d takes over %.0f s: ended", script, event.node, LIMIT_S)
            await self._jobs.stop(_key(event))
            return
        if status:
            logger.warning("%s %d ended with status %d", script, event.node, status)


def _key(event: Event) -> str:
    return f"{PREFIX}{event.number}"
