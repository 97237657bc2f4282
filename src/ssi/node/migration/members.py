"""Who is in a process group or a session, on all nodes, and in which order they move."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID
from ssi.node.process.jobcontrol import group_of, list_people, parent_of, session_of
from ssi.node.process.places import Places


class Kind(enum.StrEnum):
    """What processes have in common."""

    GROUP = "process group"
    SESSION = "session"


_NUMBER_OF = {Kind.GROUP: group_of, Kind.SESSION: session_of}


def put_in_order(parents: Mapping[int, int], leader: int) -> list[int]:
    """Return the keys, which are processes: the leader, then no child before its parent.

    What comes to a node finds its parent there, and its group.
    """

    def depth(pid: int) -> int:
        above = [pid]
        while (parent := parents[above[-1]]) in parents and parent not in above:
            above.append(parent)
        return len(above)

    return sorted(parents, key=lambda pid: (pid != leader, depth(pid), pid))


class Members:
    """Finds them on all nodes, and tells those of this one."""

    def __init__(self, cluster: Cluster, asking: Asking, places: Places, ics: Ics) -> None:
        self._cluster = cluster
        self._asking = asking
        self._places = places
        ics.serve("members", self._answer)

    async def find(self, kind: Kind, number: int) -> list[int]:
        """Return the PIDs of a group's or a session's processes, in the order to move them."""
        state = await self._cluster.wait_known()
        found = await asyncio.gather(
            *(self._ask(node, kind, number) for node in sorted(state.view.alive))
        )
        parents = {pid: parent for own in found for pid, parent in own.items()}
        return put_in_order(parents, number)

    async def _ask(self, node: int, kind: Kind, number: int) -> dict[int, int]:
        try:
            words = {"kind": kind, "number": number}
            answer = await self._asking.ask(node, "members", words)
        except NodeLost:
            return {}  # its processes are lost as well
        return {
            wire.get_int(one, "pid", 1, MAX_PID): wire.get_int(one, "parent", 0, MAX_PID)
            for one in wire.get_objects(answer, "members")
        }

    async def _answer(self, call: Call) -> Message:
        number_of = _NUMBER_OF[Kind(wire.get_word(call.body, "kind", list(Kind)))]
        number = wire.get_int(call.body, "number", 1, MAX_PID)
        return {
            "members": [
                {"pid": pid, "parent": parent_of(pid)} for pid in list_people()
                if number_of(pid) == number and not self._places.is_placeholder(pid)
            ]
        }  # fmt: skip
