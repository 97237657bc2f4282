"""Ports of the host that lead to nodes."""

from __future__ import annotations

import shutil
import socket
import urllib.request

import pytest

from support.clusters import Ssi, started

pytestmark = pytest.mark.skipif(not shutil.which("passt"), reason="apt-get install passt")


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_published_port_leads_to_its_node(ssi: Ssi) -> None:
    ports = {1: free_port(), 2: free_port()}
    options = [word for n, port in ports.items() for word in ("-p", f"{port}:8000@{n}")]
    with started(ssi, 2, *options) as cluster:
        for node, port in ports.items():
            cluster.run(node, "sh", "-c", "mkdir /run/www; hostname >/run/www/name")
            server = cluster.start_python(node, """
import functools, http.server
serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/run/www")
with http.server.HTTPServer(("", 8000), serve) as server:
    print("listening", flush=True)
    server.handle_request()
""")  # fmt: skip
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/name", timeout=30) as answer:
                assert answer.read() == f"node{node}\n".encode()
            assert server.wait(timeout=30) == 0
