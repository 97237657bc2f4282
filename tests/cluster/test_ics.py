"""The port on which the nodes' daemons talk: who is no daemon is refused, and does no harm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.clusters import Cluster, kill_daemon, wait_until

STRANGER = """
import json, random, socket, ssl

order = json.loads(ORDER)

def connect():
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    line.settimeout(30)
    if order.get("reserved", True):
        while True:
            try:
                line.bind(("", random.randrange(512, 1024)))
                break
            except PermissionError:
                break
            except OSError:
                pass
    line.connect(("192.168.50.%d" % order["to"], 329))
    return line

def secure(line):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    key = bytes.fromhex(order["key"])
    if key:
        context.set_psk_client_callback(lambda hint: ("node1", key))
    return context.wrap_socket(line)

said = []
try:
    line = connect()
    if "key" in order:
        line = secure(line)
    for text in order["lines"]:
        line.sendall(text.encode() + b"\\n")
    reader = line.makefile("rb")
    for _ in order["lines"]:
        got = reader.readline()
        if not got:
            break
        said.append(json.loads(got))
except (OSError, ValueError) as error:
    said.append(type(error).__name__)
print(json.dumps(said))
"""


def ask(cluster: Cluster, *, lines: list[str], uid: int = 0, **order: Any) -> list[Any]:  # noqa: ANN401
    """Have a program on node 1 say `lines` to the daemon of node 2; return what came back."""
    script = f"ORDER = {json.dumps({'to': 2, 'lines': lines, **order})!r}\n{STRANGER}"
    if uid:
        script = f"import os\nos.setuid({uid})\n{script}"
    return list(json.loads(cluster.python(1, script)))


def log(cluster: Cluster, node: int = 2) -> str:
    """Return what the daemon of `node` has logged."""
    words = "exec", "-c", str(cluster.number), "--ramdisk", str(node), "--"
    return cluster.ssi(*words, "cat", "/run/ssi/ssid.log")


def hello(at: Cluster, **fields: object) -> str:
    """Return the hello of node 1, with other fields than it should have."""
    boot = at.run(1, "cat", "/proc/sys/kernel/random/boot_id").strip()
    right = {"is": "hello", "version": 1, "cluster": "ssi", "node": 1, "boot": boot}
    return json.dumps({**right, **fields})


CALL = json.dumps({"is": "call", "id": 1, "name": "ping", "alone": True, "body": {}})
ANSWER = {"is": "answer", "id": 1, "body": {}}


def check_well(cluster: Cluster, key: str) -> None:
    """See that a daemon with the key still gets its answers."""
    said = ask(cluster, lines=[hello(cluster), CALL], key=key)
    assert [message["is"] for message in said] == ["hello", "answer"]
    assert said[1] == ANSWER


@pytest.fixture
def key(trio: Cluster) -> str:
    """The key of the cluster, as it is kept on the host."""
    path = trio.ssi.person.home / f"state/ssi/{trio.number}/key"
    assert path.stat().st_mode & 0o777 == 0o600
    key = path.read_bytes()
    assert len(key) == 32
    return key.hex()


@pytest.mark.parametrize(
    "order",
    [
        {"lines": ["garbage", "{}", ""]},
        {"lines": ["x" * 300_000]},
        {"lines": ["{}"], "key": ""},
        {"lines": ["{}"], "key": "11" * 32},
        {"lines": ["{}"], "reserved": False},
        {"lines": ["{}"], "uid": 1000},
    ],
    ids=["garbage", "long", "no key", "wrong key", "port of anybody", "normal user"],
)
def test_who_has_no_key_is_refused(trio: Cluster, key: str, order: dict[str, Any]) -> None:
    said = ask(trio, **order)
    assert not any(isinstance(message, dict) for message in said), said
    wait_until(lambda: "refused from 192.168.50.1: " in log(trio), "it is logged")
    assert key not in log(trio)
    check_well(trio, key)
    assert set(trio.nodes()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 2}, "it speaks version 2, and we 1"),
        ({"cluster": "other"}, "it is of cluster 'other', and we of 'ssi'"),
        ({"node": 3}, "it says that it is node3"),
        ({"node": 9}, "it says that it is node9"),
        ({"boot": "another"}, "this life of node1 is not in the view"),
    ],
)
def test_who_has_the_key_and_is_nobody_we_know_is_refused(
    trio: Cluster, key: str, fields: dict[str, Any], why: str
) -> None:
    said = ask(trio, lines=[hello(trio, **fields), CALL], key=key)
    assert said == [{"is": "refused", "why": why}]
    check_well(trio, key)


def test_a_daemon_that_was_killed_talks_again(trio: Cluster, key: str) -> None:
    kill_daemon(trio, 2)

    def is_well() -> bool:
        return ANSWER in ask(trio, lines=[hello(trio), CALL], key=key)

    wait_until(is_well, "it has the key again, and the view")
