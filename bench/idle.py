#!/usr/bin/env python3
"""What an idle node costs the host: memory, two ways, and processor time.

PSS is what the kernel charges the processes of a node's group; MemAvailable is the whole host's, so
what others do at the same time is in it. Both are read when they have come to rest.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import place_of, print_row, running, say

from ssi.host.uml.process import group_members
from support.clusters import Cluster

MIB = 1 << 20
SETTLED = 0.01
"""Two readings in a row that differ by less are at rest; three are asked for."""
SETTLES_WITHIN_S = 90


class Reading(NamedTuple):
    """What so many nodes cost."""

    nodes: int
    available: int
    pss: list[int]
    """Of each node."""
    own_pss: int
    """Of the cluster's supervisor, guard and switch, and the way out (passt) of each node."""
    cpu: list[float]
    """Of each node: processors."""
    own_cpu: float


def read_available() -> int:
    """Return the host's MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no MemAvailable in /proc/meminfo")


def sum_pss(pids: Iterable[int]) -> int:
    """Return the proportional set size of these processes together."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def sum_cpu(pids: Iterable[int]) -> float:
    """Return the processor seconds of these processes and of their dead children."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def find_own(cluster: Cluster) -> list[int]:
    """Return the processes that are the cluster's and no node's."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(os.fspath(place_of(cluster).control))
        size = struct.calcsize("3i")
        supervisor = struct.unpack(
            "3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )[0]
    guard = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
    nodes = {pid for node in cluster.nodes().values() for pid in group_members(node["pid"])}
    # A node's orphans are the supervisor's children, too.
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [guard, supervisor, *(int(pid) for pid in children if int(pid) not in nodes)]


def _near(old: int, new: int) -> bool:
    return abs(new - old) <= SETTLED * old


def wait_settled(groups: Iterable[int]) -> None:
    """Wait until the nodes' memory stays as it is."""
    groups = list(groups)
    readings: list[int] = []
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while time.monotonic() < deadline:
        readings.append(sum(sum_pss(group_members(group)) for group in groups))
        last = readings[-3:]
        if len(last) == 3 and _near(last[0], last[1]) and _near(last[1], last[2]):
            return
        time.sleep(1)
    raise SystemExit(f"the nodes' memory did not come to rest in {SETTLES_WITHIN_S} s")


def read_cluster(cluster: Cluster, seconds: float) -> Reading:
    """Read what the cluster costs while it does nothing."""
    groups = [node["pid"] for node in cluster.nodes().values()]
    own = find_own(cluster)
    wait_settled(groups)
    before = [sum_cpu(group_members(group)) for group in groups], sum_cpu(own)
    begin = time.monotonic()
    time.sleep(seconds)  # what is measured
    passed = time.monotonic() - begin
    after = [sum_cpu(group_members(group)) for group in groups], sum_cpu(own)
    return Reading(
        len(groups),
        read_available(),
        [sum_pss(group_members(group)) for group in groups],
        sum_pss(own),
        [(b - a) / passed for a, b in zip(before[0], after[0], strict=True)],
        (after[1] - before[1]) / passed,
    )


def show(readings: list[Reading], at_first: int, seconds: float) -> None:
    """Print what a node costs, by how many there are."""
    print(f"one boot each; idle over {seconds:g} s; MiB, and per cent of one processor")
    print_row("nodes", (str(one.nodes) for one in readings))
    rows = {
        "PSS of a node, median": [statistics.median(one.pss) / MIB for one in readings],
        "PSS of a node, largest": [max(one.pss) / MIB for one in readings],
        "MemAvailable less, by node": [
            (at_first - one.available) / one.nodes / MIB for one in readings
        ],
        "PSS of supervisor, switch, passt": [one.own_pss / MIB for one in readings],
        "CPU of a node, median": [statistics.median(one.cpu) * 100 for one in readings],
        "CPU of all nodes": [sum(one.cpu) * 100 for one in readings],
        "CPU of supervisor, switch, passt": [one.own_cpu * 100 for one in readings],
    }
    for name, figures in rows.items():
        print_row(name, (f"{figure:.1f}" for figure in figures))
    first, last = readings[0], readings[-1]
    if last.nodes > first.nodes:
        more = (first.available - last.available) / (last.nodes - first.nodes) / MIB
        print(
            f"from {first.nodes} to {last.nodes} nodes, MemAvailable less by node: {more:.1f} MiB"
        )


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 8], help="rising")
    parser.add_argument("--seconds", type=float, default=5, help="of idling")
    args = parser.parse_args()
    available, readings = read_available(), []
    with running(args.nodes[0]) as cluster:
        for count in args.nodes:
            say(f"{count} nodes")
            cluster.restore(*range(1, count + 1))
            readings.append(read_cluster(cluster, args.seconds))
    show(readings, available, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
