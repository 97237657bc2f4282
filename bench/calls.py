#!/usr/bin/env python3
"""System calls under the filter against the same without it, and a kill of a foreign PID.

The same program runs in one node's ramdisk, where there is no filter, and in its userland, in
turns. A kill of a process on another node is set against a bare TCP echo between the two nodes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.echo import ECHO, start_echo
from bench.setting import median_ratio, print_row, running, say

from ssi.host import native
from support.clusters import Cluster

NAMES = {
    "getpid": "getpid", "read": "read of 64 bytes", "open": "open and close",
    "fork": "fork, exit, wait", "own": "kill of oneself",
}  # fmt: skip

Figures = dict[str, float]


def measure(cluster: Cluster, count: int, pid: int, *, ramdisk: bool) -> Figures:
    """Run the program in node 1; return nanoseconds by call."""
    where = ["--ramdisk"] if ramdisk else []
    path = "/tmp/calls" if ramdisk else "/usr/local/bin/calls"
    words = ["exec", "-c", str(cluster.number), *where, "1", "--", path, str(count), str(pid)]
    lines = [line.split() for line in cluster.ssi(*words).splitlines()]
    return {name: float(took) for name, took in lines}


def install(cluster: Cluster) -> None:
    """Put the program into node 1's ramdisk, and on the root."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "calls"
        native.compile_program(Path(__file__).with_name("calls.c"), program, ["-static"])
        for where, path in (["--ramdisk"], "/tmp/calls"), ([], "/usr/local/bin/calls"):
            words = ["exec", "-c", str(cluster.number), *where, "1", "--"]
            script = f"cat >{path} && chmod 755 {path}"
            cluster.ssi(*words, "sh", "-c", script, given=program.read_bytes())


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=200, help="calls of a kind in a round")
    args = parser.parse_args()
    bare: list[Figures] = []
    filtered: list[Figures] = []
    echoes: list[float] = []
    with running(2) as cluster:
        install(cluster)
        server = start_echo(cluster)
        pid = int(cluster.run(2, "env", "SSI_PROC=local", "pgrep", "-x", "agetty"))
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            bare.append(measure(cluster, args.times, 0, ramdisk=True))
            filtered.append(measure(cluster, args.times, pid, ramdisk=False))
            echoes.append(float(cluster.python(1, ECHO, str(args.times))))
        server.kill()
    print_row("", ["no filter us", "filter us", "ratio"])
    for key, name in NAMES.items():
        without, under = ([each[key] for each in rounds] for rounds in (bare, filtered))
        middle = (statistics.median(figures) / 1000 for figures in (without, under))
        ratio = median_ratio(under, without)
        print_row(name, [*(f"{figure:.2f}" for figure in middle), f"{ratio:.3f}"])
    kills = [each["kill"] for each in filtered]
    print_row("", ["us", "of echo"])
    print_row("TCP echo between the nodes", [f"{statistics.median(echoes) / 1000:.0f}", "1"])
    print_row(
        "kill of a process elsewhere",
        [f"{statistics.median(kills) / 1000:.0f}", f"{median_ratio(kills, echoes):.1f}"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
