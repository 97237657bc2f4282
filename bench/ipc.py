#!/usr/bin/env python3
"""System V IPC and POSIX queues in a node, in the SSI session and outside; between nodes, TCP.

Outside is the ramdisk, which the filter and the daemon have nothing to do with. Between nodes, a
process of node 1 uses objects of node 2, and the two ask each other by two queues, beside a plain
TCP round trip. All take turns.
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

KEY = 0x77AA
INSIDE_KINDS = (
    "semop", "semop, SEM_UNDO", "semctl GETVAL", "msgsnd and msgrcv", "semaphores, there and back",
    "queues, there and back", "private queue, made and removed", "queue with a key, the same",
    "msgget of one that is there",
    "mq_send and mq_receive", "mq_open, mq_unlink",
)  # fmt: skip
BETWEEN_KINDS = (
    "semop",
    "semop, SEM_UNDO",
    "semctl GETVAL",
    "msgsnd and msgrcv",
    "mq_send and mq_receive",
)

COMMON = """
import ctypes, json, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.msgsnd.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
libc.semop.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
room, large = ctypes.create_string_buffer(256), ctypes.create_string_buffer(8192)
text = struct.pack("=q", 1) + bytes(64)
up, down = struct.pack("=Hhh", 0, 1, 0), struct.pack("=Hhh", 0, -1, 0)
lock, unlock = struct.pack("=Hhh", 0, -1, 0o10000), struct.pack("=Hhh", 0, 1, 0o10000)
there, back = struct.pack("=Hhh", 1, -1, 0), struct.pack("=Hhh", 2, -1, 0)
go, come = struct.pack("=Hhh", 1, 1, 0), struct.pack("=Hhh", 2, 1, 0)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def measure(times, action):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2] * 1e6

def send(queue):
    check(libc.msgsnd(queue, text, 64, 0))

def receive(queue):
    check(libc.msgrcv(queue, room, ctypes.c_size_t(248), ctypes.c_long(0), 0))

NAME = b"/ssi.bench"

def open_queue(name):
    return check(libc.mq_open(name, 0o102, 0o600, None))

def post(queue):
    check(libc.mq_send(queue, room, ctypes.c_size_t(64), 0))

def fetch(queue):
    check(libc.mq_receive(queue, large, ctypes.c_size_t(8192), None))

def by_queue(queue):
    post(queue)
    fetch(queue)

def calls(times, semaphores, queue):
    def both(first, second):
        check(libc.semop(semaphores, first, 1))
        check(libc.semop(semaphores, second, 1))
    def message():
        send(queue)
        receive(queue)
    return [
        measure(times, lambda: both(up, down)) / 2, measure(times, lambda: both(unlock, lock)) / 2,
        measure(times, lambda: check(libc.semctl(semaphores, 0, 12, 0))), measure(times, message),
    ]
"""

INSIDE = f"""{COMMON}
times, key = int(sys.argv[1]), int(sys.argv[2])
semaphores = check(libc.semget(0, 3, 0o1600))
queues = [check(libc.msgget(0, 0o1600)) for _ in range(2)]
found = calls(times, semaphores, queues[0])
if not (child := os.fork()):
    for _ in range(times):
        check(libc.semop(semaphores, there, 1))
        check(libc.semop(semaphores, come, 1))
    for _ in range(times):
        receive(queues[0])
        send(queues[1])
    os._exit(0)
def by_semaphores():
    check(libc.semop(semaphores, go, 1))
    check(libc.semop(semaphores, back, 1))
def by_queues():
    send(queues[0])
    receive(queues[1])
found += [measure(times, by_semaphores), measure(times, by_queues)]
os.waitpid(child, 0)
def make(key):
    check(libc.msgctl(check(libc.msgget(key, 0o1600)), 0, None))
few = max(20, times // 20)
found += [measure(few, lambda: make(0)), measure(few, lambda: make(key))]
keyed = check(libc.msgget(key, 0o1600))
found.append(measure(few, lambda: check(libc.msgget(key, 0))))
def make_queue():
    queue = open_queue(NAME)
    check(libc.mq_unlink(NAME))
    os.close(queue)
queue = open_queue(NAME)
found.append(measure(times, lambda: by_queue(queue)))
check(libc.mq_unlink(NAME))
found.append(measure(few, make_queue))
for queue in (*queues, keyed):
    check(libc.msgctl(queue, 0, None))
check(libc.semctl(semaphores, 0, 0, 0))
print(json.dumps(found))
"""

BETWEEN = f"""{COMMON}
times, key = int(sys.argv[1]), int(sys.argv[2])
semaphores = check(libc.semget(key, 3, 0))
there, back = [check(libc.msgget(key + n, 0)) for n in range(2)]
found = calls(times, semaphores, there)
queue = open_queue(NAME)
found.append(measure(times, lambda: by_queue(queue)))
def ask():
    send(there)
    receive(back)
check(libc.semop(semaphores, go, 1))
found.append(measure(times, ask))
check(libc.semop(semaphores, go, 1))
print(json.dumps(found))
"""

ANSWER = f"""{COMMON}
times, key = int(sys.argv[1]), int(sys.argv[2])
semaphores = check(libc.semget(key, 3, 0o1600))
queues = [check(libc.msgget(key + n, 0o1600)) for n in range(2)]
open_queue(NAME)
print("ready", flush=True)
wait = struct.pack("=Hhh", 1, -1, 0)
check(libc.semop(semaphores, wait, 1))
for _ in range(times):
    receive(queues[0])
    send(queues[1])
check(libc.semop(semaphores, wait, 1))
check(libc.mq_unlink(NAME))
for queue in queues:
    check(libc.msgctl(queue, 0, None))
check(libc.semctl(semaphores, 0, 0, 0))
"""


def measure_inside(cluster: Cluster, times: int, *, ramdisk: bool) -> list[float]:
    """Return the figures of INSIDE_KINDS in microseconds, measured in node 1."""
    where = ["--ramdisk"] if ramdisk else []
    words = ["exec", "-c", str(cluster.number), *where, "1", "--", "python3", "-c", INSIDE]
    found: list[float] = json.loads(cluster.ssi(*words, str(times), str(KEY)))
    return found


def measure_between(cluster: Cluster, times: int) -> list[float]:
    """Return the figures of BETWEEN_KINDS, and of a question and its answer, in microseconds."""
    answering = cluster.start_python(2, ANSWER, str(times), str(KEY))
    assert answering.stdout
    answering.stdout.readline()
    found: list[float] = json.loads(cluster.python(1, BETWEEN, str(times), str(KEY)))
    assert answering.wait() == 0
    return found


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=2000, help="calls in a round inside a node")
    parser.add_argument("--between", type=int, default=200, help="calls between nodes")
    args = parser.parse_args()
    inside: list[list[float]] = []
    outside: list[list[float]] = []
    between: list[list[float]] = []
    echoes: list[float] = []
    with running(2, "-m", "256") as cluster:
        server = start_echo(cluster)
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            outside.append(measure_inside(cluster, args.times, ramdisk=True))
            inside.append(measure_inside(cluster, args.times, ramdisk=False))
            between.append(measure_between(cluster, args.between))
            echoes.append(float(cluster.python(1, ECHO, str(args.between))) / 1e3)
        server.kill()
    print_row("inside one node, us", ["session", "outside", "ratio"])
    for at, kind in enumerate(INSIDE_KINDS):
        ours, theirs = [each[at] for each in inside], [each[at] for each in outside]
        figures = (statistics.median(ours), statistics.median(theirs), median_ratio(ours, theirs))
        print_row(kind, [f"{figure:.3g}" for figure in figures])
    print()
    print_row("between nodes, us", ["here", "TCP", "ratio"])
    for at, kind in enumerate((*BETWEEN_KINDS, "question and answer by queues")):
        ours = [each[at] for each in between]
        figures = (statistics.median(ours), statistics.median(echoes), median_ratio(ours, echoes))
        print_row(kind, [f"{figure:.3g}" for figure in figures])
    return 0


if __name__ == "__main__":
    sys.exit(main())
