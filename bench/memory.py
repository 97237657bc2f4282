#!/usr/bin/env python3
"""Memory and semaphores that processes share: in and outside the SSI session, and between nodes.

Outside is the ramdisk, where /dev/shm is a tmpfs and nobody hears of a wake. Between nodes two
players take turns, each waiting for a semaphore of his own; two others look at a word of a System V
segment until it is their turn; beside it a TCP echo. All take turns.
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

from ssi.host.paths import TOP
from support.clusters import Cluster

KINDS = (
    "semaphore there and back, us", "post that nobody waits for, us", "first write, MB/s",
    "write again, MB/s", "make and remove, us", "segment made, attached, removed, us",
    "segment with a key, the same, us", "shmat and shmdt, us", "segment, first write, MB/s",
)  # fmt: skip
PLAYER = (TOP / "tests/programs/semaphores.py").read_text()

INSIDE = """
import ctypes, json, mmap, os, sys, time
mib, times = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.sem_open.restype = ctypes.c_void_p
libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_uint]
libc.sem_wait.argtypes = libc.sem_post.argtypes = [ctypes.c_void_p]

def median(work):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2]

there, back = (libc.sem_open(name, os.O_CREAT, 0o600, 0) for name in (b"/bench0", b"/bench1"))
pid = os.fork()
if not pid:
    for _ in range(times):
        libc.sem_wait(there)
        libc.sem_post(back)
    os._exit(0)

def turn():
    libc.sem_post(there)
    libc.sem_wait(back)

found = [median(turn) * 1e6]
os.waitpid(pid, 0)
found.append(median(lambda: libc.sem_post(there)) * 1e6)
for name in (b"/bench0", b"/bench1"):
    libc.sem_unlink(name)
path = "/dev/shm/bench"
piece = bytes(1 << 20)
with open(path, "w+b") as file:
    os.unlink(path)
    file.truncate(mib << 20)
    memory = mmap.mmap(file.fileno(), mib << 20)
for _ in range(2):
    start = time.perf_counter()
    for at in range(mib):
        memory[at << 20 : at + 1 << 20] = piece
    found.append(mib * 2**20 / 1e6 / (time.perf_counter() - start))

def make():
    os.close(os.open(path, os.O_CREAT | os.O_RDWR))
    os.unlink(path)

found.append(median(make) * 1e6)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]

def get(key, size=4096):
    return libc.shmget(ctypes.c_int(key), ctypes.c_size_t(size), 0o1600)

def attach(segment):
    at = libc.shmat(segment, None, 0)
    ctypes.memset(at, 1, 8)
    libc.shmdt(at)

def use(key):
    segment = get(key)
    attach(segment)
    libc.shmctl(segment, 0, None)

found += [median(lambda: use(0)) * 1e6, median(lambda: use(0x5e9)) * 1e6]
segment = get(0)
found.append(median(lambda: attach(segment)) * 1e6)
libc.shmctl(segment, 0, None)
segment = get(0, mib << 20)
at = libc.shmat(segment, None, 0)
start = time.perf_counter()
ctypes.memset(at, 1, mib << 20)
found.append(mib * 2**20 / 1e6 / (time.perf_counter() - start))
libc.shmctl(segment, 0, None)
print(json.dumps(found))
"""

TURNS = """
import ctypes, sys, time
who, turns = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0x5ea, ctypes.c_size_t(4096), 0o1600)
word = ctypes.c_int.from_address(libc.shmat(segment, None, 0))
def take(turn):
    while word.value < turn:
        time.sleep(0)
    word.value = turn + 1
take(who)
start = time.perf_counter()
for turn in range(1, turns + 1):
    take(2 * turn + who)
took = (time.perf_counter() - start) / turns
libc.shmctl(segment, 0, None)
print(took)
"""


def take_turns(cluster: Cluster, turns: int) -> float:
    """Return how long a turn and its answer take by a word of a segment, in seconds."""
    other = cluster.start_python(2, TURNS, "1", str(turns))
    took = float(cluster.python(1, TURNS, "0", str(turns)))
    assert other.wait() == 0
    return took


def measure_inside(cluster: Cluster, mib: int, times: int, *, ramdisk: bool) -> list[float]:
    """Return the figures of KINDS, measured in node 1."""
    where = ["--ramdisk"] if ramdisk else []
    words = ["exec", "-c", str(cluster.number), *where, "1", "--", "python3", "-c", INSIDE]
    found: list[float] = json.loads(cluster.ssi(*words, str(mib), str(times)))
    return found


def play(cluster: Cluster, turns: int) -> float:
    """Return how long a turn and its answer take between nodes 1 and 2, in seconds."""
    other = cluster.start_python(2, PLAYER, "play", "bench", "1", str(turns))
    took = float(cluster.python(1, PLAYER, "play", "bench", "0", str(turns)).split()[1])
    assert other.wait() == 0
    return took


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--times", type=int, default=200, help="calls in a round")
    args = parser.parse_args()
    inside: list[list[float]] = []
    outside: list[list[float]] = []
    turns: list[float] = []
    words: list[float] = []
    echoes: list[float] = []
    with running(2, "-m", "256") as cluster:
        server = start_echo(cluster)
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            outside.append(measure_inside(cluster, args.mib, args.times, ramdisk=True))
            inside.append(measure_inside(cluster, args.mib, args.times, ramdisk=False))
            turns.append(play(cluster, args.times // 4))
            words.append(take_turns(cluster, args.times // 4))
            echoes.append(float(cluster.python(1, ECHO, str(args.times))) / 1e9)
        server.kill()
    print_row("inside one node", ["session", "outside", "ratio"])
    for at, kind in enumerate(KINDS):
        ours, theirs = [each[at] for each in inside], [each[at] for each in outside]
        figures = (statistics.median(ours), statistics.median(theirs), median_ratio(ours, theirs))
        print_row(kind, [f"{figure:.3g}" for figure in figures])
    print()
    print_row("between nodes, there and back", ["ms", "TCP", "ratio"])
    for name, took in (("semaphore", turns), ("word of a segment", words)):
        ratio = median_ratio(took, echoes)
        figures = (statistics.median(took) * 1e3, statistics.median(echoes) * 1e3, ratio)
        print_row(name, [f"{figure:.3g}" for figure in figures])
    return 0


if __name__ == "__main__":
    sys.exit(main())
