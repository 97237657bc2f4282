"""The applets of libssi and ssi.api: lines of a key, a space and a value.

docs/protocol.md names every key. A record ends with an empty line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ssi.common.addresses import node_address
from ssi.common.errors import UsageError
from ssi.common.nodes import MAX_NODE, parse_node
from ssi.node.applets.cluster import (
    NEVERUP,
    UP,
    Cluster,
    Transition,
    change_state,
    find_last,
    find_state,
    is_simple,
    last_number,
)
from ssi.node.local import LocalServer, Output, Request

MAX_DIGITS = 19
"""As many as surely fit into 64 bits."""


def render_record(fields: Iterable[tuple[str, object]]) -> str:
    """Return a record; a value has no line end and no blanks in a row."""
    return "".join(f"{key} {' '.join(str(value).split())}\n" for key, value in fields) + "\n"


def _of_transition(transition: Transition) -> list[tuple[str, object]]:
    return [
        ("transition", transition.number), ("time_us", int(transition.time * 1_000_000)),
        ("view", transition.view), ("node", transition.node), ("was", transition.was),
        ("now", transition.now), ("cause", transition.cause),
    ]  # fmt: skip


def _of_node(cluster: Cluster, node: int) -> list[tuple[str, object]]:
    # Its last transition repeats the node's number, and means the same.
    last = find_last(cluster, node)
    return [
        ("node", node), ("state", find_state(cluster, node)),
        ("member", int(node in cluster.members)), ("address", node_address(node)),
        *(_of_transition(last) if last else ()),
    ]  # fmt: skip


def _take_words(request: Request, *names: str) -> tuple[str, ...]:
    """Return the words behind the applet's name: as many as there are `names`."""
    words = request.argv[1:]
    if len(words) != len(names):
        raise UsageError(f"wants {' '.join(names) or 'no words'}")
    return words


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise UsageError(f"{text!r} is no number of a transition")
    return int(text)


WHICH: dict[str, tuple[int, Callable[[int, int], bool]]] = {
    # Of those whose number is right, the first (0) or the last (-1).
    "this": (0, lambda number, given: number == given),
    "next": (0, lambda number, given: number > given),
    "prev": (-1, lambda number, given: number < given),
    "first": (0, lambda _number, _given: True),
    "last": (-1, lambda _number, _given: True),
}


class Api:
    """The applets named api-..."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by these."""
        for name, applet in {
            "api-cluster": self.cluster,
            "api-membership": self.membership,
            "api-node": self.node,
            "api-nodes": self.nodes,
            "api-transition": self.transition,
            "api-detailedtransition": self.detailed_transition,
            "api-setstate": self.set_state,
            "api-events": self.events,
        }.items():
            server.serve(name, applet)

    async def cluster(self, request: Request, output: Output) -> int:
        """Tell what there is once."""
        _take_words(request)
        cluster = self._cluster
        await output.write(render_record([
            ("name", cluster.name), ("node", cluster.node), ("max_nodes", MAX_NODE),
            ("view", cluster.view), ("init_node", cluster.init_node or 0),
            ("transition", last_number(cluster)),
        ]))  # fmt: skip
        return 0

    async def membership(self, request: Request, output: Output) -> int:
        """Tell who is a member and who is up."""
        _take_words(request)
        cluster = self._cluster
        up = sorted(node for node, state in cluster.states.items() if state == UP)
        await output.write(render_record([
            ("transition", last_number(cluster)), ("view", cluster.view),
            *(("member", node) for node in cluster.members), *(("up", node) for node in up),
        ]))  # fmt: skip
        return 0

    async def node(self, request: Request, output: Output) -> int:
        """Tell about one node."""
        (node,) = _take_words(request, "NODE")
        await output.write(render_record(_of_node(self._cluster, parse_node(node))))
        return 0

    async def nodes(self, request: Request, output: Output) -> int:
        """Tell about each node that is or was up."""
        _take_words(request)
        states = self._cluster.states
        known = {node for node, state in states.items() if state != NEVERUP}
        nodes = sorted(known.union(self._cluster.members))
        await output.write("".join(render_record(_of_node(self._cluster, node)) for node in nodes))
        return 0

    async def transition(self, request: Request, output: Output) -> int:
        """Tell the next simple transition after one, if there is any."""
        (after,) = _take_words(request, "AFTER")
        found = self._since(_parse_number(after), is_simple)
        if found:
            await output.write(render_record(_of_transition(found[0])))
        return 0

    def _since(self, after: int, wanted: Callable[[Transition], bool]) -> list[Transition]:
        return [each for each in self._cluster.transitions if each.number > after and wanted(each)]

    async def detailed_transition(self, request: Request, output: Output) -> int:
        """Tell any transition, seen from one, if there is any."""
        which, given = _take_words(request, "WHICH", "NUMBER")
        number = _parse_number(given)
        if which not in WHICH:
            raise UsageError(f"{which!r} is none of {', '.join(WHICH)}")
        end, is_right = WHICH[which]
        found = [each for each in self._cluster.transitions if is_right(each.number, number)]
        if found:
            await output.write(render_record(_of_transition(found[end])))
        return 0

    async def set_state(self, request: Request, output: Output) -> int:  # noqa: ARG002
        """Change a node's state."""
        node, state = _take_words(request, "NODE", "STATE")
        await change_state(self._cluster, request.uid, node, state, "clusternode_setinfo")
        return 0

    async def events(self, request: Request, output: Output) -> int:
        """Tell each simple transition after one; with `all`, each. Ends when the caller goes."""
        since, kind = _take_words(request, "SINCE", "KIND")
        if kind not in {"simple", "all"}:
            raise UsageError(f"{kind!r} is none of simple, all")
        wanted: Callable[[Transition], bool] = is_simple if kind == "simple" else lambda _: True
        last = _parse_number(since)
        while True:
            await self._cluster.wait_transition(last)
            seen = last
            last = max(last, last_number(self._cluster))
            for transition in self._since(seen, wanted):
                # One write, so one frame: cluster_events_read reads one and keeps nothing.
                await output.write(render_record(_of_transition(transition)))
