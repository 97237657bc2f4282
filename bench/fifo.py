#!/usr/bin/env python3
"""FIFOs and pipes inside one node, in the SSI session and outside; a FIFO between nodes beside TCP.

Outside is the ramdisk, which the filter and the daemon have nothing to do with. Between nodes, what
node 1 writes is read on node 2, and the same over a plain TCP connection. All take turns.
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

FIFO = "/root/bench"
KINDS = ("pipe, MB/s", "pipe, round trip, us", "FIFO, MB/s", "FIFO, round trip, us", "open, us")

# The copier and its child pass so many MiB in pieces of 64 KiB, and then a byte there and back.
INSIDE = """
import json, os, sys, time
mib, times, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
# Once, as the two places differ in how memory is given back.
piece, room = bytes(65536), bytearray(65536)

def pipe():
    return os.pipe()

def fifo(name):
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    return reader, os.open(name, os.O_WRONLY)

def passing(there, back):
    start = time.perf_counter()
    for _ in range(mib * 16):
        os.write(there[1], piece)
    os.read(back[0], 1)
    rate = mib * 2**20 / 1e6 / (time.perf_counter() - start)
    took = []
    for _ in range(times):
        start = time.perf_counter()
        os.write(there[1], b"x")
        os.read(back[0], 1)
        took.append(time.perf_counter() - start)
    return [rate, sorted(took)[times // 2] * 1e6]

def child(there, back):
    left = mib * 2**20
    while left:
        left -= os.readv(there[0], [room])
    os.write(back[1], b"x")
    for _ in range(times):
        os.read(there[0], 1)
        os.write(back[1], b"x")

found = []
opens = []
for make in (lambda name: pipe(), fifo):
    there, back = map(make, names)
    if os.fork():
        found += passing(there, back)
        os.wait()
    else:
        child(there, back)
        os._exit(0)
    for fd in (*there, *back):
        os.close(fd)
held = os.open(names[0], os.O_RDWR)
for _ in range(times):
    start = time.perf_counter()
    os.close(os.open(names[0], os.O_RDWR))
    opens.append(time.perf_counter() - start)
print(json.dumps([*found, sorted(opens)[times // 2] * 1e6]))
"""

READ = """
import os, sys
print("ready", flush=True)
fd = os.open(sys.argv[1], os.O_RDONLY)
while os.read(fd, 1 << 20):
    pass
"""

WRITE = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY)
size, piece = int(sys.argv[2]), bytes(int(sys.argv[3]))
start = time.perf_counter()
for _ in range(size // len(piece)):
    os.write(fd, piece)
os.close(fd)
print(size / 1e6 / (time.perf_counter() - start))
"""

RECEIVE = """
import socket
server = socket.create_server(("192.168.50.2", 333))
print("ready", flush=True)
line, _ = server.accept()
while line.recv(1 << 20):
    pass
line.sendall(b"x")
"""

SEND = """
import socket, sys, time
line = socket.create_connection(("192.168.50.2", 333))
size, piece = int(sys.argv[1]), bytes(int(sys.argv[2]))
start = time.perf_counter()
for _ in range(size // len(piece)):
    line.sendall(piece)
line.shutdown(socket.SHUT_WR)
line.recv(1)
print(size / 1e6 / (time.perf_counter() - start))
"""

ANSWER = """
import os, sys
there, back = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY)
while data := os.read(there, 64):
    os.write(back, data)
"""

ASK = """
import os, sys, time
there, back = os.open(sys.argv[1], os.O_WRONLY), os.open(sys.argv[2], os.O_RDONLY)
took = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    os.write(there, b"x" * 64)
    os.read(back, 64)
    took.append(time.perf_counter() - start)
print(sorted(took)[len(took) // 2] * 1e9)
"""


def measure_inside(cluster: Cluster, mib: int, times: int, *, ramdisk: bool) -> list[float]:
    """Return the figures of KINDS, measured in node 1."""
    where = ["--ramdisk"] if ramdisk else []
    top = "/sysroot" if ramdisk else ""
    names = [f"{top}{FIFO}1", f"{top}{FIFO}2"]
    words = ["exec", "-c", str(cluster.number), *where, "1", "--", "python3", "-c", INSIDE]
    found: list[float] = json.loads(cluster.ssi(*words, str(mib), str(times), *names))
    return found


def copy(cluster: Cluster, reader: tuple[str, ...], writer: tuple[str, ...]) -> float:
    """Run a script with its words on node 2, and another on node 1; return what that one prints."""
    receiving = cluster.start_python(2, *reader)
    assert receiving.stdout
    receiving.stdout.readline()
    rate = float(cluster.python(1, *writer))
    assert receiving.wait() == 0
    return rate


def ask(cluster: Cluster, times: int) -> float:
    """Return how long a question and its answer take by two FIFOs, in seconds."""
    names = (f"{FIFO}1", f"{FIFO}2")
    answering = cluster.start_python(2, ANSWER, *names)
    took = float(cluster.python(1, ASK, *names, str(times))) / 1e9
    assert answering.wait() == 0
    return took


def print_inside(inside: list[list[float]], outside: list[list[float]]) -> None:
    """Print what one node says of itself."""
    print_row("inside one node", ["session", "outside", "ratio"])
    for at, kind in enumerate(KINDS):
        ours, theirs = [each[at] for each in inside], [each[at] for each in outside]
        figures = (statistics.median(ours), statistics.median(theirs), median_ratio(ours, theirs))
        print_row(kind, [f"{figure:.3g}" for figure in figures])


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64, help="inside a node")
    parser.add_argument("--between", type=int, default=8, help="MiB between nodes")
    parser.add_argument("--times", type=int, default=200, help="round trips in a round")
    args = parser.parse_args()
    inside: list[list[float]] = []
    outside: list[list[float]] = []
    rates: dict[str, dict[str, list[float]]] = {}
    asked: list[float] = []
    echoes: list[float] = []
    with running(2, "-m", "256") as cluster:
        cluster.run(1, "mkfifo", f"{FIFO}1", f"{FIFO}2")
        server = start_echo(cluster)
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            outside.append(measure_inside(cluster, args.mib, args.times, ramdisk=True))
            inside.append(measure_inside(cluster, args.mib, args.times, ramdisk=False))
            for piece, size in ((65536, args.between << 20), (4096, args.between << 17)):
                words = (str(size), str(piece))
                kinds = rates.setdefault(f"pieces of {piece}, MB/s", {"fifo": [], "tcp": []})
                fifo = copy(cluster, (READ, f"{FIFO}1"), (WRITE, f"{FIFO}1", *words))
                kinds["fifo"].append(fifo)
                kinds["tcp"].append(copy(cluster, (RECEIVE,), (SEND, *words)))
            asked.append(ask(cluster, args.times))
            echoes.append(float(cluster.python(1, ECHO, str(args.times))) / 1e9)
        server.kill()
    print_inside(inside, outside)
    print()
    print_row("between nodes", ["FIFO", "TCP", "ratio"])
    for name, both in rates.items():
        ratio = median_ratio(both["fifo"], both["tcp"])
        figures = (statistics.median(both["fifo"]), statistics.median(both["tcp"]), ratio)
        print_row(name, [f"{figure:.3g}" for figure in figures])
    ratio = median_ratio(asked, echoes)
    figures = (statistics.median(asked) * 1e3, statistics.median(echoes) * 1e3, ratio)
    print_row("question and answer, ms", [f"{figure:.3g}" for figure in figures])
    return 0


if __name__ == "__main__":
    sys.exit(main())
