#!/usr/bin/env python3
"""A command on another node: onnode against ssh, and against a bare TCP echo between the nodes.

ssh has its key and knows the host; each time it opens a connection, as onnode makes a process. The
kinds take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.echo import ECHO, start_echo
from bench.setting import median_ratio, print_row, running, say

from support.clusters import Cluster

SSH = ("ssh", "-p", "2222", "-o", "BatchMode=yes", "192.168.50.2")
COMMANDS = {
    "true": ("/bin/true",),
    "onnode 2 true": ("onnode", "2", "/bin/true"),
    "ssh node2 true": (*SSH, "/bin/true"),
}

MEASURE = """
import json, subprocess, sys, time
times, commands = int(sys.argv[1]), json.loads(sys.argv[2])
took = {name: [] for name in commands}
for _ in range(times):
    for name, words in commands.items():
        start = time.perf_counter()
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        took[name].append(time.perf_counter() - start)
print(json.dumps({name: sorted(each)[len(each) // 2] for name, each in took.items()}))
"""

SET_UP = """
mkdir -p -m 700 /root/.ssh /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
ssh-keygen -q -A
/usr/sbin/sshd -p 2222 -o ListenAddress=192.168.50.2 -o UsePAM=no
"""


def set_up_ssh(cluster: Cluster) -> None:
    """Have node 2 serve ssh, and node 1 know it."""
    cluster.run(2, "sh", "-ec", SET_UP)
    cluster.run(1, SSH[0], "-o", "StrictHostKeyChecking=accept-new", *SSH[1:], "true")


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=20, help="of each kind in a round")
    args = parser.parse_args()
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    echoes: list[float] = []
    with running(2) as cluster:
        set_up_ssh(cluster)
        server = start_echo(cluster)
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            said = cluster.python(1, MEASURE, str(args.times), json.dumps(COMMANDS))
            for name, median in json.loads(said).items():
                took[name].append(median)
            echoes.append(float(cluster.python(1, ECHO, str(args.times * 10))) / 1e9)
        server.kill()
    ssh = took["ssh node2 true"]
    print_row("", ["ms", "of echo", "of ssh"])
    print_row("TCP echo between the nodes", [f"{statistics.median(echoes) * 1e3:.2f}", "1", ""])
    for name, each in took.items():
        ratios = (median_ratio(each, echoes), median_ratio(each, ssh))
        print_row(
            name, [f"{statistics.median(each) * 1e3:.1f}", f"{ratios[0]:.0f}", f"{ratios[1]:.2f}"]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
