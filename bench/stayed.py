#!/usr/bin/env python3
"""Reads and writes a second on a terminal and a pipe that a process has left behind.

The process and its parent, who has the other ends, are on node 1; then the process moves to node 2.
Each figure is of 64 bytes at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import print_row, running, say

PROGRAM = """
import json, os, pty, sys, threading, time, tty
import ssi.api
SIZE, COUNT = 64, int(sys.argv[1])
master, slave = pty.openpty()
tty.setraw(slave)
up, down = os.pipe(), os.pipe()
if os.fork():
    for fd in (slave, up[1], down[0]):
        os.close(fd)
    def drain(fd):
        while os.read(fd, 65536):
            pass
    def fill(fd):
        try:
            while True:
                os.write(fd, bytes(SIZE))
        except BrokenPipeError:
            pass
    for work, fd in ((drain, master), (fill, master), (drain, up[0]), (fill, down[1])):
        threading.Thread(target=work, args=(fd,), daemon=True).start()
    os.waitpid(-1, 0)
    os._exit(0)
for fd in (master, up[0], down[1]):
    os.close(fd)

def rate(call):
    began = time.monotonic()
    for _ in range(COUNT):
        call()
    return COUNT / (time.monotonic() - began)

def measure():
    return {
        "terminal, write": rate(lambda: os.write(slave, bytes(SIZE))),
        "terminal, read": rate(lambda: os.read(slave, SIZE)),
        "pipe, write": rate(lambda: os.write(up[1], bytes(SIZE))),
        "pipe, read": rate(lambda: os.read(down[0], SIZE)),
    }

home = measure()
ssi.api.migrate(2)
print(json.dumps([home, measure()]), flush=True)
os._exit(0)
"""


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=300, help="reads or writes in a round")
    args = parser.parse_args()
    rounds: list[list[dict[str, float]]] = []
    with running(2) as cluster:
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            rounds.append(json.loads(cluster.python(1, PROGRAM, str(args.times))))
    print_row("in a second", ["at home", "away", "away / home"])
    for name in rounds[0][0]:
        home, away = ([one[index][name] for one in rounds] for index in (0, 1))
        ratio = statistics.median(there / here for here, there in zip(home, away, strict=True))
        middle = (f"{statistics.median(figures):.0f}" for figures in (home, away))
        print_row(name, [*middle, f"{ratio:.3f}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
