"""How a node comes up: ring, admission, locks, root, userland. Each phase is told to the host."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message, get_int
from ssi.node import dlm, root
from ssi.node.cluster import Cluster
from ssi.node.hostline import HostLine
from ssi.node.ipc.places import claim_range as claim_identifiers
from ssi.node.launcher import check_program
from ssi.node.members import Members
from ssi.node.pids import claim_range, keep_range
from ssi.node.settings import Settings

logger = logging.getLogger(__name__)

COROSYNC_S = 60.0
DLM_S = 60.0


class Boot:
    """Brings the node up once; a restarted daemon goes through what is done already."""

    def __init__(
        self, settings: Settings, host: HostLine, members: Members, cluster: Cluster,
        group: asyncio.TaskGroup, *, restarted: bool,
    ) -> None:  # fmt: skip
        self._group = group
        self._cluster = cluster
        self._restarted = restarted
        self._settings = settings
        self._host = host
        self._members = members
        self._admitted = asyncio.Event()
        host.hear("admit", self._hear_admit)
        self._journal_made = asyncio.Event()
        host.hear("vote", self._hear_vote)
        host.hear("journals", self._hear_journals)

    def _hear_admit(self, _: Message) -> None:
        self._admitted.set()

    def _hear_vote(self, _: Message) -> None:
        self._members.claim_vote(first=not self._restarted)

    def _tell(self, phase: str) -> None:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        logger.info("phase %s after %.2f s", phase, uptime)
        self._host.say("phase", name=phase, uptime=uptime)

    async def run(self) -> bool:
        """Come up until people may log in; False, and the host is told why, if that fails."""
        try:
            await self._join()
            await self._open()
        except SsiError as error:
            logger.exception("boot")
            self._host.say("trouble", text=str(error))
            return False
        return True

    async def _join(self) -> None:
        self._tell("init")
        await self._members.connect(within_s=COROSYNC_S)
        await self._cluster.join()
        self._tell("ring")
        coming = self._group.create_task(self._cluster.come())
        if root.is_mounted():
            self._members.claim_vote()
        else:
            # The host is the one arbiter of who may mount: see docs/decisions/quorum.md.
            await self._admitted.wait()
            dlm.start_dlm()
            await dlm.wait_ready(self._settings.node, within_s=DLM_S)
            self._tell("locks")
            await self._mount()
        # Who votes knows the state: he may soon be all that is left of the cluster.
        await coming
        self._members.claim_vote()

    async def _mount(self) -> None:
        while True:
            self._journal_made.clear()
            try:
                await root.mount_root(self._settings.root)
            except root.NoJournal:
                self._host.say("no-journal")
                await self._journal_made.wait()
            else:
                return

    def _hear_journals(self, message: Message) -> None:
        """The host wants journals for so many nodes, or says that there are more now."""
        wanted = get_int(message, "wanted", 0, MAX_NODE)
        if wanted == 0:
            self._journal_made.set()
        else:
            self._group.create_task(self._add_journals(wanted))

    async def _add_journals(self, wanted: int) -> None:
        try:
            await root.add_journals(wanted)
        except SsiError as error:
            self._host.say("trouble", text=str(error))
        else:
            self._host.say("journals", made=wanted)

    async def _open(self) -> None:
        self._tell("mounted")
        claim_range(self._settings.node)
        self._group.create_task(keep_range(self._settings.node))
        claim_identifiers(self._cluster)
        state = await self._cluster.wait_known()
        await root.enter_userland(self._settings.node, state.view.life)
        check_program()
        await self._cluster.rise()
        self._tell("ready")
        await self._add_swap()

    async def _add_swap(self) -> None:
        if (
            not Path(self._settings.swap).exists()
            or len(Path("/proc/swaps").read_text().splitlines()) > 1
        ):
            return
        try:
            await root.run("mkswap", self._settings.swap)
            await root.run("swapon", self._settings.swap)
        except SsiError as error:
            logger.warning("no swap: %s", error)
