#!/usr/bin/env python3
"""`ps -ef` of a cluster against as many processes of one node, with and without our /proc.

Three nodes run a third of the processes each, or the first runs all of them; in turns. For the
local figure ps sees the kernel's own /proc, in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import median_ratio, print_row, running, say

from support.clusters import Cluster

NODES = (1, 2, 3)

# Waits for its end with so many children.
CROWD = """
import subprocess, sys
crowd = [subprocess.Popen(["sleep", "3600"]) for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
for each in crowd:
    each.kill()
"""

TIME = """
import statistics, subprocess, sys, time
took = []
for _ in range(int(sys.argv[1]) + 1):
    start = time.perf_counter()
    lines = subprocess.run(["ps", "-ef"], stdout=subprocess.PIPE, check=True).stdout.count(b"\\n")
    took.append(time.perf_counter() - start)
    time.sleep(0.3)  # what was told lately is not asked for again
print(statistics.median(took[1:]) * 1e3, took[0] * 1e3, lines - 1)
"""

OWN = 'mount --bind /run/ssi/proc /proc && exec python3 -c "$0" "$@"'


@contextlib.contextmanager
def crowd(cluster: Cluster, node: int, count: int) -> Iterator[None]:
    """Have `count` more processes on a node."""
    words = ["ssi", "exec", "-c", str(cluster.number), str(node), "--", "python3", "-c", CROWD]
    process = cluster.ssi.person.start([*words, str(count)], stdin=-1, stdout=-1)
    assert process.stdout
    assert process.stdin
    process.stdout.readline()
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


def measure(cluster: Cluster, times: int, *, own: bool) -> Sequence[float]:
    """Return milliseconds of a ps in node 1, those of the first, and how many it showed."""
    words = ["python3", "-c", TIME]
    if own:
        words = ["unshare", "-m", "sh", "-c", OWN, TIME]
    return [float(word) for word in cluster.run(1, *words, str(times)).split()]


def main() -> int:
    """Run the rounds on a cluster of three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=10, help="calls in a round")
    parser.add_argument("--processes", type=int, default=90)
    args = parser.parse_args()
    figures: dict[str, list[Sequence[float]]] = {"cluster": [], "through": [], "own": []}
    with running(3) as cluster:
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            with contextlib.ExitStack() as stack:
                for node in NODES:
                    stack.enter_context(crowd(cluster, node, args.processes // 3))
                figures["cluster"].append(measure(cluster, args.times, own=False))
                alone = measure(cluster, 1, own=True)[2]
            # As many as the cluster has shown, on one node.
            more = round(figures["cluster"][-1][2] - alone) + args.processes // 3
            with crowd(cluster, 1, more):
                figures["own"].append(measure(cluster, args.times, own=True))
                figures["through"].append(measure(cluster, args.times, own=False))
    own = [each[0] for each in figures["own"]]
    print_row("", ["ms", "first, ms", "processes", "ratio"])
    for key, name in (
        ("own", "one node, kernel's /proc"), ("through", "one node, our /proc"),
        ("cluster", "three nodes"),
    ):  # fmt: skip
        middle, first, shown = (
            statistics.median(each[i] for each in figures[key]) for i in range(3)
        )
        ratio = median_ratio([each[0] for each in figures[key]], own)
        print_row(name, [f"{middle:.1f}", f"{first:.1f}", f"{shown:.0f}", f"{ratio:.2f}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
