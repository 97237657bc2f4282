"""A bare TCP echo between two nodes: what others are set against."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.clusters import Cluster

SERVE = """
import socket
server = socket.create_server(("192.168.50.2", 332))
print("ready", flush=True)
while True:
    line, _ = server.accept()
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := line.recv(64):
        line.sendall(data)
"""

ECHO = """
import socket, sys, time
line = socket.create_connection(("192.168.50.2", 332))
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
took = []
for _ in range(int(sys.argv[1])):
    start = time.perf_counter()
    line.sendall(b"x" * 64)
    line.recv(64)
    took.append(time.perf_counter() - start)
print(sorted(took)[len(took) // 2] * 1e9)
"""
"""Run on another node with a number of times: prints the median in nanoseconds."""


def start_echo(cluster: Cluster) -> subprocess.Popen[bytes]:
    """Serve the echo on node 2."""
    server = cluster.start_python(2, SERVE)
    assert server.stdout
    server.stdout.readline()
    return server
