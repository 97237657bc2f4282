"""Runs what this node is to run of inittab.ssi, and ends what it is not."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Mapping

from ssi.common.changes import Changes
from ssi.node.cluster import Cluster
from ssi.node.init.jobs import Jobs
from ssi.node.init.plan import Task, list_tasks
from ssi.node.state.init import Init, Mark

logger = logging.getLogger(__name__)

FAST = 10
FAST_S = 120.0
PAUSE_S = 300.0
"""An entry that is started FAST times in FAST_S rests for PAUSE_S, as with sysvinit."""

PREFIX = "entry."
"""Of the keys of our jobs."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_environment(node: int, console: str, init: Init) -> dict[str, str]:
    """Return what the cluster's init gives to all that it starts."""
    return {
        "PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", "TERM": "linux",
        "CONSOLE": f"/dev/{console}", "RUNLEVEL": init.level, "PREVLEVEL": init.previous or "N",
        "INIT_VERSION": "ssi", "SSI_NODE": str(node),
    }  # fmt: skip


class Respawns:
    """When an entry was started, to find one that ends as soon as it begins."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=FAST)

    def start(self, now_s: float) -> float:
        """Note a start; return how long to wait before it."""
        too_fast = len(self._times) == FAST and now_s - self._times[0] < FAST_S
        if too_fast:
            self._times.clear()
        self._times.append(now_s)
        return PAUSE_S if too_fast else 0.0


@dataclasses.dataclass(slots=True, eq=False)
class _Run:
    """One key that is run, has ended and is remembered, or is being stopped."""

    running: asyncio.Task[None] | None = None
    stopping: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        return self.stopping is None and (self.running is None or self.running.done())


class Executor:
    """Follows the plan."""

    def __init__(self, cluster: Cluster, jobs: Jobs, console: str) -> None:
        self.changes = Changes()
        """Told when something has ended."""
        self._cluster = cluster
        self._jobs = jobs
        self._console = console
        self._runs: dict[str, _Run] = {}
        self._again = asyncio.Event()
        self._closed = False
        cluster.on_change.append(lambda *_: self._again.set())

    @property
    def idle(self) -> bool:
        """Whether nothing runs that init has started."""
        return all(run.idle for run in self._runs.values())

    async def run(self) -> None:
        """Follow the plan until cancelled; what runs then goes on."""
        await self._cluster.wait_known()
        await self._jobs.wait_known()
        async with asyncio.TaskGroup() as group:
            self._adopt(group)
            while True:
                self._again.clear()
                self._reconcile(group)
                await self._again.wait()

    async def close(self) -> None:
        """End all that runs, and start nothing more; return when it has ended."""
        self._closed = True
        self._again.set()
        await self.changes.wait_for(lambda: self.idle)

    def _tasks(self) -> Mapping[str, Task]:
        if self._closed:
            return {}
        state = self._cluster.known
        assert state
        return {PREFIX + task.key: task for task in list_tasks(state, self._cluster.node)}

    def _adopt(self, group: asyncio.TaskGroup) -> None:
        """What the daemon before this one has run and nobody wants now is stopped."""
        wanted = self._tasks()
        for key in self._jobs.find():
            if key.startswith(PREFIX) and key not in wanted:
                self._runs[key] = run = _Run()
                run.stopping = group.create_task(self._stop(key, run))

    def _reconcile(self, group: asyncio.TaskGroup) -> None:
        if self._cluster.known is None and not self._closed:
            return  # what runs goes on until we know better
        wanted = self._tasks()
        for key, run in self._runs.items():
            if key not in wanted and run.stopping is None:
                run.stopping = group.create_task(self._stop(key, run))
        if any(run.stopping for run in self._runs.values()):
            return  # nothing begins before what must end has ended
        for key, task in wanted.items():
            if key not in self._runs:
                running = self._keep(key, task) if task.is_kept else self._run_once(key, task)
                self._runs[key] = _Run(group.create_task(running))

    async def _stop(self, key: str, run: _Run) -> None:
        if run.running:
            run.running.cancel()
            await asyncio.wait({run.running})
        await self._jobs.stop(key)
        self._jobs.forget(key)
        del self._runs[key]
        self._again.set()
        self.changes.tell()

    def _environment(self) -> dict[str, str]:
        state = self._cluster.known
        init = state.init if state else Init()
        return make_environment(self._cluster.node, self._console, init)

    async def _start(self, key: str, task: Task) -> int:
        # As inittab has it: a line for the shell, which becomes what it names.
        argv = ["/bin/sh", "-c", f"exec {task.entry.command}"]
        return await self._jobs.run(key, argv, self._environment())

    async def _run_once(self, key: str, task: Task) -> None:
        status = await self._start(key, task)
        if status:
            logger.warning("entry %s ended with status %d", task.entry.id, status)
        self._propose(task.mark)
        self.changes.tell()

    def _propose(self, mark: Mark) -> None:
        self._cluster.propose("init", "ran", **dataclasses.asdict(mark))

    async def _keep(self, key: str, task: Task) -> None:
        respawns = Respawns()
        loop = asyncio.get_running_loop()
        while True:
            if pause_s := respawns.start(loop.time()):
                logger.error(
                    "entry %s ends as soon as it begins: %d starts in %.0f s, again in %.0f s",
                    task.entry.id, FAST, FAST_S, pause_s,
                )  # fmt: skip
                await asyncio.sleep(pause_s)
            status = await self._start(key, task)
            logger.info("entry %s ended with status %d", task.entry.id, status)
            self._jobs.forget(key)
