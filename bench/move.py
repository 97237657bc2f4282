#!/usr/bin/env python3
"""Moves of a process between two nodes, beside CRIU alone on one node and a plain TCP copy.

For each size: a move as `migrate` makes it, the time in which the process does not run, as it sees
that itself, and `criu dump` + `criu restore` of the same program on node 1, with images in memory
and with the options of a move. The memory of a large process follows it; so each is also moved with
`migrate -w`, which has it wait for that. The page rate is what node 2's daemon notes of such a
move. All take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import median_ratio, print_row, running, say

from ssi.host import native
from ssi.node.migration import criu
from ssi.node.root import USERLAND
from support.clusters import Cluster

SIZES = (0, 10, 100)
NAMES = {0: "200 KB"}
PAGE = 4096
PROGRAM = "/usr/local/bin/bench-move"
COPIED_MIB = 100
REST_S, REST_MIB = 1, 80
"""Between two moves, and for how much memory that has to follow one second more."""

START = """
import subprocess, sys, time
from pathlib import Path
told = Path(sys.argv[-1])
told.unlink(missing_ok=True)
nowhere = subprocess.DEVNULL
process = subprocess.Popen(
    sys.argv[1:], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True, cwd="/",
)
while not told.exists() or not told.read_text():
    time.sleep(0.01)
print(process.pid)
"""

# Says how long it took to go to node 2, and home, with all memory at once and then without, and how
# long the process stood still.
MOVE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
pid, told, rest = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def ask():
    known = told.read_text().count("\\n") if told.exists() else 0
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while not told.exists() or told.read_text().count("\\n") == known:
        if time.monotonic() > deadline:
            raise SystemExit(f"{pid} does not answer")
        time.sleep(0.01)
    return float(told.read_text().split()[-1])
ask()
moves = []
for words in ["-w", "2"], ["-w", "1"], ["2"], ["1"]:
    start = time.perf_counter()
    subprocess.run(["migrate", *words, str(pid)], check=True)
    took = time.perf_counter() - start
    moves.append((took, ask()))
    time.sleep(rest)
print(json.dumps(moves))
"""

# In the ramdisk: there is no filter, which CRIU could not read.
BARE = """
import ctypes, json, os, shutil, subprocess, sys, time
pid, userland, program, environment, options = json.loads(sys.argv[1])
folder = "/run/bench"
shutil.rmtree(folder, ignore_errors=True)
os.mkdir(folder)
images = os.open(folder, os.O_RDONLY)
def run(space, *words):
    space = os.open(space, os.O_RDONLY)
    def enter():
        os.setns(space, 0)
        os.chdir("/")
    start = time.perf_counter()
    subprocess.run(
        [program, *words, "--images-dir", f"/proc/self/fd/{images}", *options], env=environment,
        check=True, pass_fds=[images], preexec_fn=enter, stderr=subprocess.DEVNULL,
    )
    took = time.perf_counter() - start
    os.close(space)
    return took
took = run(f"/proc/{pid}/ns/mnt", "dump", "--tree", str(pid), "--network-lock=skip")
# Its parent has to have seen its end, or its number is not free.
while os.path.exists(f"/proc/{pid}"):
    time.sleep(0.01)
took += run(userland, "restore", "--restore-detached", "--auto-dedup")
shutil.rmtree(folder)
print(took)
"""

# What comes is thrown away, or put into memory that has been used before.
RECEIVE = """
import socket, sys
server = socket.create_server(("192.168.50.2", 333))
print("ready", flush=True)
buffer, memory = bytearray(1 << 20), bytearray(b"x") * (int(sys.argv[1]) << 20)
while True:
    line, _ = server.accept()
    to = memoryview(buffer if line.recv(1) == b"-" else memory)
    line.send(b"+")
    at = 0
    while size := line.recv_into(to[at : at + (1 << 20)]):
        at = (at + size) % len(to)
    line.close()
"""

# The same piece again and again, or memory of that size.
SEND = """
import socket, sys, time
mib, word = int(sys.argv[1]), sys.argv[2].encode()
data = memoryview(bytearray(b"x") * ((1 if word == b"-" else mib) << 20))
line = socket.create_connection(("192.168.50.2", 333))
line.send(word)
line.recv(1)
start = time.perf_counter()
for _ in range((mib << 20) // len(data)):
    line.sendall(data)
line.shutdown(socket.SHUT_WR)
line.recv(1)
print(time.perf_counter() - start)
"""

MOVES = ("whole there", "whole home", "there", "home")

Figures = dict[str, list[float]]


def in_ramdisk(cluster: Cluster, script: str, argument: object) -> str:
    """Run Python in node 1's ramdisk; return what it printed."""
    words = ["exec", "-c", str(cluster.number), "--ramdisk", "1", "--", "python3", "-c", script]
    return cluster.ssi(*words, json.dumps(argument))


def install(cluster: Cluster) -> None:
    """Put the program on the root."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "move"
        native.compile_program(Path(__file__).with_name("move.c"), program, ["-static"])
        script = f"cat >{PROGRAM} && chmod 755 {PROGRAM}"
        cluster.run(1, "sh", "-c", script, given=program.read_bytes())


def start(cluster: Cluster, mib: int, name: str) -> tuple[int, str]:
    """Start it on node 1; return its PID, and the file in which it says how it fares."""
    told = f"/var/tmp/{name}-{mib}"
    return int(cluster.python(1, START, PROGRAM, str(mib), told)), told


def measure_bare(cluster: Cluster, pid: int) -> float:
    """Dump and restore a process on node 1; return how long CRIU took."""
    options = [word for word in criu.COMMON if word not in {"--libdir", criu.FOLDER}]
    environment = criu.environment("")
    del environment[criu.VARIABLE]
    words = [pid, os.fspath(USERLAND), criu.PROGRAM, environment, options]
    return float(in_ramdisk(cluster, BARE, words))


def read_rates(cluster: Cluster) -> tuple[float, float]:
    """Return how fast the last pages came that went to node 2, in MB/s.

    From the first page on, and with the time in which the dump reads what there is.
    """
    said = cluster.ssi("logs", "-c", str(cluster.number), "-n", "400", "2")
    found = re.findall(r"(\d+) pages in ([\d.]+) s, the first after ([\d.]+) s", said)
    pages, took, read = map(float, found[-1])
    size = pages * PAGE / 1e6
    return size / (took - read), size / took


def run_round(cluster: Cluster, mib: int) -> Figures:
    """Measure one size once."""
    moved, told = start(cluster, mib, "moved")
    rest = str(REST_S + mib / REST_MIB)
    moves = dict(
        zip(MOVES, json.loads(cluster.python(1, MOVE, str(moved), told, rest)), strict=True)
    )
    sent, rate = read_rates(cluster)
    cluster.run(1, "kill", "-9", str(moved))
    bare, _ = start(cluster, mib, "bare")
    alone = measure_bare(cluster, bare)
    cluster.run(1, "kill", "-9", str(bare))
    stream, copy = (
        COPIED_MIB * 2**20 / 1e6 / float(cluster.python(1, SEND, str(COPIED_MIB), word))
        for word in "-+"
    )
    return {
        **{name: [took] for name, (took, _) in moves.items()},
        **{f"{name}, frozen": [frozen] for name, (_, frozen) in moves.items()},
        "bare": [alone], "sent": [sent], "rate": [rate], "stream": [stream], "copy": [copy],
    }  # fmt: skip


def show(mib: int, figures: Figures) -> None:
    """Print the table of one size."""
    print_row(NAMES.get(mib, f"{mib} MB"), ("ms", "max", "of bare"))
    for name in "bare", *(f"{way}{what}" for way in MOVES for what in ("", ", frozen")):
        each = figures[name]
        shown = (f"{statistics.median(each) * 1e3:.0f}", f"{max(each) * 1e3:.0f}")
        print_row(f"  {name}", (*shown, f"{median_ratio(each, figures['bare']):.2f}"))


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--huge", action="store_true", help="also 1 GB: nodes of 3 GB")
    args = parser.parse_args()
    sizes = (*SIZES, 1024) if args.huge else SIZES
    found: dict[int, Figures] = {mib: {} for mib in sizes}
    with running(2, "-m", "3072" if args.huge else "768") as cluster:
        install(cluster)
        receiver = cluster.start_python(2, RECEIVE, str(COPIED_MIB))
        assert receiver.stdout
        receiver.stdout.readline()
        # What CRIU finds out about a kernel is known after the first move.
        run_round(cluster, 0)
        for number in range(args.rounds):
            for mib in sizes:
                say(f"round {number + 1} of {args.rounds}, {mib} MB")
                for name, each in run_round(cluster, mib).items():
                    found[mib].setdefault(name, []).extend(each)
        receiver.kill()
    for mib in sizes:
        show(mib, found[mib])
    small, large = (found[mib] for mib in sizes[1:3])
    print_row(f"frozen, {sizes[2]} MB by {sizes[1]} MB", ("ratio",))
    for way in MOVES:
        name = f"{way}, frozen"
        print_row(f"  {way}", (f"{median_ratio(large[name], small[name]):.2f}",))
    print_row("", ("MB/s", "of copy", "of stream"))
    for mib in sizes[2:]:
        rates = found[mib]
        for name, what in (
            ("copy", "plain TCP copy, memory to memory"), ("stream", "TCP stream, thrown away"),
            ("sent", f"pages of {mib} MB"), ("rate", "  and read"),
        ):  # fmt: skip
            rate = rates[name]
            ratios = (f"{median_ratio(rate, rates[other]):.2f}" for other in ("copy", "stream"))
            print_row(what, (f"{statistics.median(rate):.0f}", *ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
