"""cluster, clustername, clusternode_num, clusternode_avail, clusternode_getstate."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ssi.common.addresses import node_address
from ssi.common.nodes import fold_nodes, parse_node
from ssi.node.applets.arguments import Parser, parse
from ssi.node.applets.cluster import (
    NEVERUP,
    STATES,
    UP,
    Cluster,
    change_state,
    find_last,
    find_state,
)
from ssi.node.local import LocalServer, Output, Request


@dataclasses.dataclass(frozen=True, slots=True)
class NodeRow:
    """A node in the table."""

    node: int
    state: str
    address: str


def _rows(cluster: Cluster) -> list[NodeRow]:
    """Return all nodes that are or were up: those that are lost, too."""
    known = {node for node, state in cluster.states.items() if state != NEVERUP}
    nodes = sorted(known.union(cluster.members))
    return [NodeRow(node, find_state(cluster, node), node_address(node)) for node in nodes]


def render_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in columns as wide as needed."""
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _yes(truth: object) -> str:
    return "yes" if truth else "no"


def _details(cluster: Cluster, node: int) -> Iterator[tuple[str, object]]:
    """Yield keys and values as `cluster -V` shows them."""
    yield "Node", node
    yield "State", find_state(cluster, node)
    yield "Address", node_address(node)
    yield "Member", _yes(node in cluster.members)
    yield "Init node", _yes(node == cluster.init_node)
    if last := find_last(cluster, node):
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(last.time))
        yield "Previous state", last.was
        yield "Reason for last transition", last.cause
        yield "Last transition ID", last.number
        yield "Last transition time", moment


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _key(text: str) -> str:
    return text.lower().replace(" ", "_")


class Query:
    """The commands that ask and change nothing, and clusternode_setstate, their counterpart."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by these."""
        for name, applet in {
            "cluster": self.cluster,
            "clustername": self.name,
            "clusternode_num": self.number,
            "clusternode_avail": self.available,
            "clusternode_getstate": self.state,
            "clusternode_setstate": self.set_state,
        }.items():
            server.serve(name, applet)

    async def cluster(self, request: Request, output: Output) -> int:
        """Show the members, all nodes, or one node."""
        words = await parse(_cluster_parser(), request, output)
        if words is None:
            return 0
        if words.V is not None:
            details = dict(_details(self._cluster, parse_node(words.V)))
            await _emit(output, {_key(key): value for key, value in details.items()},
                        "".join(f"{key}: {value}\n" for key, value in details.items()),
                        as_json=words.json)  # fmt: skip
        elif words.verbose:
            rows = [dataclasses.astuple(row) for row in _rows(self._cluster)]
            await _emit(output, [dataclasses.asdict(row) for row in _rows(self._cluster)],
                        render_table(("NODE", "STATE", "ADDRESS"), rows),
                        as_json=words.json)  # fmt: skip
        else:
            await _emit(output, self._summary(), fold_nodes(self._up()) + "\n", as_json=words.json)
        return 0

    def _up(self) -> list[int]:
        return [node for node in self._cluster.members if find_state(self._cluster, node) == UP]

    def _summary(self) -> Mapping[str, object]:
        cluster = self._cluster
        return {
            "name": cluster.name, "node": cluster.node, "view": cluster.view,
            "init_node": cluster.init_node, "members": list(cluster.members), "up": self._up(),
            "pending_events": cluster.pending_events,
        }  # fmt: skip

    async def name(self, request: Request, output: Output) -> int:
        """Print the cluster's name."""
        if words := await parse(_plain_parser("clustername", "Print the cluster's name."),
                                request, output):  # fmt: skip
            name = self._cluster.name
            await _emit(output, {"name": name}, f"{name}\n", as_json=words.json)
        return 0

    async def number(self, request: Request, output: Output) -> int:
        """Print this node's number."""
        if words := await parse(_plain_parser("clusternode_num", "Print this node's number."),
                                request, output):  # fmt: skip
            node = self._cluster.node
            await _emit(output, {"node": node}, f"{node}\n", as_json=words.json)
        return 0

    async def available(self, request: Request, output: Output) -> int:
        """Print 1 if a node is up, else 0."""
        words = await parse(_node_parser(
            "clusternode_avail", "Print 1 and exit with 0 if NODE is UP, else 0 and 1."
        ), request, output)  # fmt: skip
        if words is None:
            return 0
        node = parse_node(words.node)
        is_up = find_state(self._cluster, node) == UP
        await _emit(output, {"node": node, "available": is_up}, f"{int(is_up)}\n",
                    as_json=words.json)  # fmt: skip
        return 0 if is_up else 1

    async def state(self, request: Request, output: Output) -> int:
        """Print a node's state."""
        words = await parse(_node_parser(
            "clusternode_getstate", f"Print the state of NODE: {', '.join(STATES)}."
        ), request, output)  # fmt: skip
        if words:
            node = parse_node(words.node)
            state = find_state(self._cluster, node)
            await _emit(output, {"node": node, "state": state}, f"{state}\n", as_json=words.json)
        return 0

    async def set_state(self, request: Request, output: Output) -> int:
        """Change a node's state."""
        if words := await parse(_set_parser(), request, output):
            await change_state(
                self._cluster, request.uid, words.node, words.state, "clusternode_setstate"
            )
        return 0


async def _emit(output: Output, value: object, text: str, *, as_json: bool) -> None:
    await output.write(_as_json(value) if as_json else text)


# Made once: that takes a node longer than all the rest of an answer.
@functools.cache
def _plain_parser(name: str, description: str) -> Parser:
    parser = Parser(name, description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


@functools.cache
def _node_parser(name: str, description: str) -> Parser:
    parser = Parser(name, description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("node", metavar="NODE", help="number of the node")
    return parser


@functools.cache
def _cluster_parser() -> Parser:
    parser = Parser("cluster", "Print which nodes are up, as 1-3,7.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    more = parser.add_mutually_exclusive_group()
    more.add_argument(
        "-v", dest="verbose", action="store_true", help="show all nodes, those that are lost, too"
    )
    more.add_argument("-V", metavar="NODE", help="show all that is known of NODE")
    return parser


@functools.cache
def _set_parser() -> Parser:
    parser = Parser("clusternode_setstate", "Change the state of NODE; for root.")
    parser.add_argument("node", metavar="NODE", help="number of the node")
    parser.add_argument("state", metavar="STATE", help=f"one of {', '.join(STATES)}")
    return parser
