"""The processes of all nodes, as each node's daemon tells them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.host.cluster.client import ask
from ssi.host.cluster.remote import collect_output
from ssi.host.cluster.spec import ClusterPlace

WITHIN_S = 20.0
TABLE = ["/usr/lib/ssi/command", "api-processes"]
USERS = ["getent", "passwd"]
MAX_NUMBER = 2**63


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One of them."""

    pid: int
    ppid: int
    node: int
    user: str
    state: str
    time_s: float
    command: str


def parse_processes(text: bytes, node: int, users: Mapping[int, str]) -> list[Process]:
    """Return what the daemon of `node` has told, a process a line; raises ProtocolError."""
    found = []
    for message in map(wire.decode, text.splitlines()):
        uid = wire.get_int(message, "uid", 0, 2**32)
        found.append(Process(
            wire.get_int(message, "pid", 1, MAX_NUMBER),
            wire.get_int(message, "ppid", 0, MAX_NUMBER), node, users.get(uid, str(uid)),
            wire.get_text(message, "state"), wire.get_number(message, "time_s"),
            wire.get_text(message, "command"),
        ))  # fmt: skip
    return found


def parse_users(text: bytes) -> dict[int, str]:
    """Return names by user IDs from a passwd file; of two names, the first."""
    users: dict[int, str] = {}
    for line in text.decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit():
            users.setdefault(int(fields[2]), fields[0])
    return users


def list_ready(place: ClusterPlace) -> list[int]:
    """Return the nodes of a cluster that are up; raises SsiError if none is."""
    answer = ask(place, {"do": "status"})
    ready = [
        wire.get_int(node, "node", 1, 127)
        for node in wire.get_objects(answer, "nodes")
        if wire.get_text(node, "state") == "ready"
    ]
    if not ready:
        raise SsiError(f"no node of cluster {place.id} is up", hint="see `ssi ls -v`")
    return ready


def list_processes(
    place: ClusterPlace, *, everything: bool
) -> tuple[list[Process], dict[int, str]]:
    """Return the processes of all nodes, by PID, and why those nodes do not tell that do not.

    With `everything`, also what each node has for itself.
    """
    nodes = list_ready(place)
    tables, users = asyncio.run(_collect(place, nodes, [*TABLE, *["--all"] * everything]))
    names = next((parse_users(text) for text in users if isinstance(text, bytes)), {})
    found: list[Process] = []
    silent: dict[int, str] = {}
    for node, table in zip(nodes, tables, strict=True):
        if isinstance(table, bytes):
            found += parse_processes(table, node, names)
        else:
            silent[node] = str(table) or "it does not answer"
    return sorted(found, key=lambda process: (process.pid, process.node)), silent


async def _collect(
    place: ClusterPlace, nodes: Iterable[int], table: list[str]
) -> tuple[list[bytes | Exception], list[bytes | Exception]]:
    async def try_(node: int, argv: list[str]) -> bytes | Exception:
        try:
            async with asyncio.timeout(WITHIN_S):
                return await collect_output(place, node, argv)
        except (SsiError, TimeoutError) as error:
            return error

    tables = await asyncio.gather(*(try_(node, table) for node in nodes))
    # Not at the same time, or it would be among the processes.
    users = await asyncio.gather(*(try_(node, USERS) for node in list(nodes)[:1]))
    return tables, users
