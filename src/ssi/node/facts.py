"""What programs may ask about the cluster, from the replicated state (see applets.cluster)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssi.common.errors import SsiError
from ssi.node.cluster import Cluster
from ssi.node.state.view import LEGAL, NodeState, Transition, View

WITHIN_S = 10.0


class Facts:
    """The cluster as this node knows it now; while its state is not known, an empty one."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self.node = cluster.node
        self._cluster = cluster

    @property
    def _view(self) -> View:
        return self._cluster.known.view if self._cluster.known else View()

    @property
    def view(self) -> int:
        """The number of the current view."""
        return self._view.number

    @property
    def members(self) -> tuple[int, ...]:
        """The nodes in the current view."""
        return self._view.members

    @property
    def states(self) -> Mapping[int, str]:
        """The state of each node that is known."""
        return {n: node.state.value for n, node in self._view.nodes.items()}

    @property
    def init_node(self) -> int | None:
        """Where the cluster's init runs."""
        return self._view.init_node

    @property
    def pending_events(self) -> int:
        """How many nodeups and nodedowns still wait for their script."""
        return len(self._view.events)

    @property
    def transitions(self) -> Sequence[Transition]:
        """The last few hundred, oldest first."""
        return self._view.transitions

    async def wait_known(self) -> None:
        """Wait until the state is known; raises TimedOut."""
        await self._cluster.wait_known(within_s=WITHIN_S)

    async def wait_transition(self, after: int) -> None:
        """Return once there is a transition with a number above `after`."""
        await self._cluster.changes.wait_for(
            lambda: bool(self.transitions) and self.transitions[-1].number > after
        )

    async def set_state(self, node: int, state: str, cause: str) -> None:
        """Have `node` go to `state`; raise SsiError if it cannot."""
        was, now = self._view.state_of(node), NodeState(state)
        if (was, now) not in LEGAL:
            possible = sorted(to for of, to in LEGAL if of == was)
            raise SsiError(
                f"node{node} is {was} and cannot be set to {now}",
                hint=f"from there it can be set to {', '.join(possible) or 'nothing'}",
            )
        await self._cluster.commit_state(node, now, cause, within_s=WITHIN_S)
