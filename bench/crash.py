#!/usr/bin/env python3
"""A node dies while every node appends and fsyncs under flock: how long the others stand still.

Each record that a writer has acknowledged must be in the file afterwards; the exit status is 1 when
one is not. Counted is from the moment the host is asked to kill the node (`ssi rm`) to the end of a
survivor's longest pause: until corosync misses the dead one, some writes still go through.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import place_of, print_row, running, say

from ssi.host.cluster.client import ask
from support.clusters import Cluster, wait_until
from support.journal import Writer, check_records, start_writers, wait_for_records

NODES = (1, 2, 3)
BEFORE = 50
"""Records of each writer before the crash."""
AFTER = 50
"""Records of each survivor after the dead one has left the ring."""


class Round(NamedTuple):
    """What one crash cost."""

    victim: int
    resumed_s: dict[int, float]
    """By survivor: from the crash to the first write after the pause."""
    pause_s: dict[int, float]
    acknowledged: int
    lost: list[str]
    rejoin_s: float


def find_pause(writer: Writer, crash: float) -> tuple[float, float]:
    """Return the length and the end of the writer's longest pause that was not over at `crash`."""
    times = [at for at, _ in writer.records]
    return max((b - a, b) for a, b in itertools.pairwise(times) if b > crash)


def crash_one(cluster: Cluster, victim: int) -> Round:
    """Crash `victim` under load, check every record, boot it again."""
    cluster.run(1, "rm", "-f", "/root/journal")
    survivors = [node for node in NODES if node != victim]
    writers = start_writers(cluster, NODES)
    wait_for_records(writers, each=BEFORE)
    crash = time.monotonic()
    ask(place_of(cluster), {"do": "rm", "nodes": [victim]})
    wait_until(lambda: cluster.sees_all(*survivors), "the survivors miss the dead node")
    seen = {node: len(writers[node].records) for node in survivors}
    wait_for_records(writers, more_than=seen, by=AFTER, nodes=survivors)
    pauses = {node: find_pause(writers[node], crash) for node in survivors}
    lost = check_records(cluster, writers, reader=survivors[0])
    begin = time.monotonic()
    cluster.add(victim)
    rejoin_s = time.monotonic() - begin
    wait_until(lambda: cluster.sees_all(*NODES), "all see each other")
    return Round(
        victim,
        {node: end - crash for node, (_, end) in pauses.items()},
        {node: length for node, (length, _) in pauses.items()},
        sum(len(writer.records) for writer in writers.values()),
        lost,
        rejoin_s,
    )


def show(rounds: list[Round]) -> None:
    """Print the rounds together."""
    resumed = [max(one.resumed_s.values()) for one in rounds]
    pauses = [max(one.pause_s.values()) for one in rounds]
    print(f"{len(rounds)} crashes of one of three nodes; seconds, the slower survivor's")
    print_row("", ("median", "max"))
    for name, figures in (
        ("crash to next acknowledged write", resumed),
        ("longest pause between two writes", pauses),
        ("`ssi add` of the dead node", [one.rejoin_s for one in rounds]),
    ):
        print_row(name, (f"{statistics.median(figures):.2f}", f"{max(figures):.2f}"))
    lost = sum(len(one.lost) for one in rounds)
    print(f"acknowledged writes: {sum(one.acknowledged for one in rounds)}; lost: {lost}")
    for one in rounds:
        if one.lost:
            print(f"lost with node{one.victim}: {' '.join(one.lost[:20])}")


def main() -> int:
    """Measure and report; 1 when an acknowledged write was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = []
    with running(len(NODES)) as cluster:
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            rounds.append(crash_one(cluster, NODES[number % len(NODES)]))
    show(rounds)
    return int(any(one.lost for one in rounds))


if __name__ == "__main__":
    sys.exit(main())
