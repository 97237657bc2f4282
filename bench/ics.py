#!/usr/bin/env python3
"""An empty question between two nodes' daemons against a bare TCP echo between the same nodes.

Both ends are programs of their own in the ramdisks, of the daemons' own code, with a key and a port
of their own. The kinds take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import median_ratio, print_row, running, say

SERVER, CLIENT = 2, 1

COMMON = """
import asyncio, json, socket, sys, time
sys.path.insert(0, "/usr/lib/ssi")
from ssi.common.addresses import node_address
from ssi.common.wire import put_bytes
from ssi.node.ics.ics import Ics
from ssi.node.ics.places import Places
from ssi.node.state.view import Node, NodeState, View

PORT, ECHO = 330, 331
VIEW = View(nodes={n: Node(NodeState.UP, "bench", 0.0) for n in (1, 2)})

def begin(node):
    ics = Ics(node, "bench", "bench", places=Places(port=PORT))
    ics.set_members(VIEW)
    ics.hear_key({"key": put_bytes(b"b" * 32)})
    return ics
"""

SERVE = """
async def echo(reader, writer):
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := await reader.read(4096):
        writer.write(data)
    writer.close()

async def main():
    await asyncio.start_server(echo, node_address(2), ECHO)
    task = asyncio.create_task(begin(2).run())
    await asyncio.sleep(0)
    print("ready", flush=True)
    await task
asyncio.run(main())
"""

ASK = """
rounds, times = map(int, sys.argv[1:])

async def measure(once):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        await once()
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2] * 1e6

async def main():
    ics = begin(1)
    task = asyncio.create_task(ics.run())
    reader, writer = await asyncio.open_connection(node_address(2), ECHO)
    line = socket.create_connection((node_address(2), ECHO))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def ask():
        await ics.ask(2, "ping", within_s=10)
    async def stream():
        writer.write(b"x" * 64)
        await reader.readexactly(64)
    async def bare():
        line.sendall(b"x" * 64)
        line.recv(64)
    async def own():
        await ics.ask(1, "ping", within_s=10)
    kinds = {"ask": ask, "asyncio": stream, "bare": bare, "own": own}
    for once in kinds.values():
        await measure(once)
    print(json.dumps([{name: await measure(once) for name, once in kinds.items()}
                      for _ in range(rounds)]), flush=True)
    task.cancel()
asyncio.run(main())
"""


def show(rounds: list[dict[str, float]]) -> None:
    """Print medians, and medians of the rounds' ratios."""
    print_row("", ["us", "of bare"])
    bare = [each["bare"] for each in rounds]
    for kind, name in {
        "bare": "TCP echo of 64 bytes, bare",
        "asyncio": "the same in asyncio's streams",
        "ask": "empty question to another node",
        "own": "empty question to itself",
    }.items():
        took = [each[kind] for each in rounds]
        print_row(name, [f"{statistics.median(took):.0f}", f"{median_ratio(took, bare):.2f}"])


def main() -> int:
    """Run the rounds on a cluster of two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=500, help="questions of a kind in a round")
    args = parser.parse_args()
    say("booting two nodes")
    with running(2) as cluster:
        words = ["ssi", "exec", "-c", str(cluster.number), "--ramdisk"]
        start = cluster.ssi.person.start
        python = ["--", "python3", "-ISc"]
        server = start(
            [*words, str(SERVER), *python, COMMON + SERVE],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout
        server.stdout.readline()
        client = start(
            [*words, str(CLIENT), *python, COMMON + ASK, str(args.rounds), str(args.times)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert client.stdout
        found = client.stdout.read()
        if not found:
            raise SystemExit("the client said nothing")
        show(json.loads(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
