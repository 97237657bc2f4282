#!/usr/bin/env python3
"""Unix sockets inside one node, in the SSI session and outside; between nodes beside TCP.

Outside is the ramdisk, which the filter and the daemon have nothing to do with. Between nodes the
server is on node 2 and the client on node 1. All take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import median_ratio, print_row, running, say

from support.clusters import Cluster

SOCKET = "/root/bench"
ADDRESS = "192.168.50.2"
KINDS = ("connect, us", "round trip of 64 bytes, us", "MB/s")

# What a server and a client have in common: where they meet.
MEET = """
import json, os, socket, sys, time
where, mib, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tcp = where[0] != "/"
place = (where, 334) if tcp else where

def prepare(line):
    if tcp:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line

def listen():
    if tcp:
        return socket.create_server(place, backlog=1000)
    if os.path.exists(where):
        os.unlink(where)
    server = socket.socket(socket.AF_UNIX)
    server.bind(where)
    server.listen(1000)
    return server

def serve(server):
    for _ in range(times):
        server.accept()[0].close()
    line = prepare(server.accept()[0])
    for _ in range(times):
        line.sendall(line.recv(64))
    left, room = mib * 2**20, bytearray(65536)
    while left:
        left -= line.recv_into(room)
    line.sendall(b"x")

def connect():
    line = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
    line.connect(place)
    return prepare(line)

def ask():
    opened, asked = [], []
    for _ in range(times):
        start = time.perf_counter()
        line = connect()
        opened.append(time.perf_counter() - start)
        line.close()
    line, word, piece = connect(), b"x" * 64, bytes(65536)
    for _ in range(times):
        start = time.perf_counter()
        line.sendall(word)
        line.recv(64)
        asked.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(mib * 16):
        line.sendall(piece)
    line.recv(1)
    rate = mib * 2**20 / 1e6 / (time.perf_counter() - start)
    return [*(sorted(some)[times // 2] * 1e6 for some in (opened, asked)), rate]
"""

SERVE = (
    MEET
    + """
server = listen()
print("ready", flush=True)
serve(server)
"""
)

ASK = (
    MEET
    + """
print(json.dumps(ask()))
"""
)

BOTH = (
    MEET
    + """
server = listen()
if os.fork():
    print(json.dumps(ask()))
    os.wait()
else:
    serve(server)
"""
)


def measure_inside(cluster: Cluster, mib: int, times: int, *, ramdisk: bool) -> list[float]:
    """Return the figures of KINDS, measured in node 1."""
    where = ["--ramdisk"] if ramdisk else []
    name = f"/sysroot{SOCKET}" if ramdisk else SOCKET
    words = ["exec", "-c", str(cluster.number), *where, "1", "--", "python3", "-c", BOTH]
    found: list[float] = json.loads(cluster.ssi(*words, name, str(mib), str(times)))
    return found


def measure_between(cluster: Cluster, where: str, mib: int, times: int) -> list[float]:
    """Return the figures of KINDS between two nodes."""
    words = (where, str(mib), str(times))
    serving = cluster.start_python(2, SERVE, *words)
    assert serving.stdout
    serving.stdout.readline()
    found: list[float] = json.loads(cluster.python(1, ASK, *words))
    assert serving.wait() == 0
    return found


def print_table(
    title: str, heads: list[str], ours: list[list[float]], theirs: list[list[float]]
) -> None:
    """Print medians and ratios of rounds."""
    print_row(title, heads)
    for at, kind in enumerate(KINDS):
        one, other = [each[at] for each in ours], [each[at] for each in theirs]
        figures = (statistics.median(one), statistics.median(other), median_ratio(one, other))
        print_row(kind, [f"{figure:.3g}" for figure in figures])
    print()


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64, help="inside a node")
    parser.add_argument("--between", type=int, default=16, help="MiB between nodes")
    parser.add_argument("--times", type=int, default=200, help="round trips in a round")
    args = parser.parse_args()
    rounds: dict[str, list[list[float]]] = {"session": [], "outside": [], "unix": [], "tcp": []}
    with running(2, "-m", "256") as cluster:
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            for name, ramdisk in (("outside", True), ("session", False)):
                found = measure_inside(cluster, args.mib, args.times, ramdisk=ramdisk)
                rounds[name].append(found)
            for name, where in (("unix", SOCKET), ("tcp", ADDRESS)):
                found = measure_between(cluster, where, args.between, args.times // 4)
                rounds[name].append(found)
    heads = ["session", "outside", "ratio"]
    print_table("inside one node", heads, rounds["session"], rounds["outside"])
    print_table("between nodes", ["Unix", "TCP", "ratio"], rounds["unix"], rounds["tcp"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
