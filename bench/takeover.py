#!/usr/bin/env python3
"""The init node dies: how long until all others have a view without it, and its service runs again.

A node is dead for the others when the host has confirmed it, which is as soon as its process has
ended; corosync misses it only after its token timeout. A program on each survivor waits for the
transition (ssi.api); the service notes when it starts. The clocks of virtual nodes are the host's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import place_of, print_row, running, say

from ssi.host.cluster.client import ask
from support.clusters import Cluster, wait_until

NODES = (1, 2, 3)
SERVICE = """\
#!/bin/sh
echo "$SSI_NODE $(date +%s.%N)" >>/var/tmp/starts
exec sleep 1000000
"""

# Says when each member that comes or goes is noticed.
WATCH = """\
import time, ssi.api
with ssi.api.Events(ssi.api.membership().transition) as events:
    print("watching", flush=True)
    for moved in events:
        print(moved.node, time.time(), flush=True)
"""


class Round(NamedTuple):
    """What one death of the init node cost, in seconds."""

    view_s: float
    """From the confirmed death until the last survivor knows."""
    takeover_s: float
    """From the confirmed death to the start of the service."""
    after_view_s: float
    """From the first survivor's knowing to the start of the service."""
    join_s: float
    """From `ssi add` until the others know of the new member."""


def start_watch(cluster: Cluster, node: int) -> subprocess.Popen[bytes]:
    """Start WATCH in `node`; return when it watches."""
    process = cluster.start_python(node, WATCH)
    assert process.stdout
    assert process.stdout.readline().strip() == b"watching"
    return process


def next_time(process: subprocess.Popen[bytes]) -> float:
    """Return when the next transition was noticed there."""
    assert process.stdout
    return float(process.stdout.readline().split()[1])


def read_starts(cluster: Cluster, node: int) -> list[tuple[int, float]]:
    """Return where and when the service was started."""
    lines = cluster.run(node, "cat", "/var/tmp/starts").splitlines()
    return [(int(where), float(moment)) for where, moment in map(str.split, lines)]


def measure(cluster: Cluster) -> Round:
    """Kill the init node, and boot it again."""
    rows = cluster.nodes()
    victim = int(rows[1]["init_node"])
    survivors = [node for node in NODES if node != victim]
    watches = {node: start_watch(cluster, node) for node in survivors}
    known = len(read_starts(cluster, survivors[0]))
    ask(place_of(cluster), {"do": "rm", "nodes": [victim]})
    dead = time.time()
    seen = [next_time(watch) for watch in watches.values()]
    wait_until(lambda: len(read_starts(cluster, survivors[0])) > known, "the service runs again")
    where, started = read_starts(cluster, survivors[0])[-1]
    assert where == survivors[0], f"it runs on node{where}"
    begin = time.time()
    cluster.add(victim)
    joined = [next_time(watch) for watch in watches.values()]
    for watch in watches.values():
        watch.kill()
    return Round(max(seen) - dead, started - dead, started - min(seen), max(joined) - begin)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = []
    with running(len(NODES)) as cluster:
        path = "/usr/local/sbin/bench-service"
        cluster.run(1, "sh", "-c", 'cat >"$0" && chmod 755 "$0"', path, given=SERVICE.encode())
        cluster.run(1, "tee", "-a", "/etc/inittab.ssi", given=f"be:3:respawn:{path}\n".encode())
        cluster.run(1, "telinit", "q")
        cluster.run(1, "sh", "-c", "until [ -s /var/tmp/starts ]; do sleep 0.1; done")
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            rounds.append(measure(cluster))
    print(f"{args.rounds} deaths of the init node of three; seconds")
    print_row("", ("median", "max"))
    for name, figures in (
        ("confirmed death to the last's view", [one.view_s for one in rounds]),
        ("confirmed death to service", [one.takeover_s for one in rounds]),
        ("first view to service", [one.after_view_s for one in rounds]),
        ("`ssi add` to the others' view", [one.join_s for one in rounds]),
    ):
        print_row(name, (f"{statistics.median(figures):.2f}", f"{max(figures):.2f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
