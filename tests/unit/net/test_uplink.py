"""The uplink: real passt processes, with the test as the node."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ssi.common.errors import UsageError
from ssi.host.net.switch import Port, PortKind
from ssi.host.net.uplink import NoUplink, PortTaken, Published, passt_argv, uplinked
from support.wires import GATEWAY, arp_request, mac, receive, switched

needs_passt = pytest.mark.skipif(not shutil.which("passt"), reason="apt-get install passt")


BROKEN = """#!/bin/sh
echo 'Failed to send 9 bytes to syslog
no namespace' >&2
"""


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def passts() -> set[str]:
    """The process IDs of our children but the switch: however passt is started, those are they."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123
        return {pid for pid in file.read().split() if not comm(pid).startswith("switch")}


def comm(pid: str) -> str:
    with open(f"/proc/{pid}/comm", encoding="ascii") as file:  # noqa: PTH123
        return file.read()


@needs_passt
def test_the_gateway_answers_each_node_through_its_own_passt() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires), uplinked(switch, 1), uplinked(switch, 2):
            assert len(passts()) == 2
            for node in (1, 2):
                wires[node].send(arp_request(mac(node), "192.168.50.254"))
                answer = await receive(wires[node])
                assert answer[:12] == mac(node) + GATEWAY
                assert answer[28:32] == socket.inet_aton("192.168.50.254")
        assert not passts()

    run(test())


@needs_passt
def test_a_published_port_leads_to_the_node() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = Published("127.0.0.1", free.getsockname()[1], 80)
        async with switched(3) as (switch, wires), uplinked(switch, 3, [port]):
            with socket.create_connection((port.address, port.host_port), 5):
                syn = await receive(wires[3])
                assert syn[30:34] == socket.inet_aton("192.168.50.3")
                assert int.from_bytes(syn[36:38], "big") == 80

    run(test())


@needs_passt
def test_a_port_in_use_is_one_clear_line() -> None:
    async def test() -> None:
        async with switched(3) as (switch, _):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = Published("127.0.0.1", taken.getsockname()[1], 80)
                with pytest.raises(PortTaken, match=str(port)):
                    async with uplinked(switch, 3, [port]):
                        pass
        assert not passts()

    run(test())


@needs_passt
def test_the_death_of_passt_is_an_event_and_the_node_goes_on() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires), uplinked(switch, 1):
            (pid,) = passts()
            os.kill(int(pid), signal.SIGKILL)
            assert await switch.wait_closed() == Port(PortKind.UPLINK, 1)
            wires[1].send(mac(2) + mac(1) + b"\x88\xb5")
            assert await receive(wires[2])

    run(test())


@needs_passt
def test_passt_ends_with_the_switch() -> None:
    async def test() -> None:
        async with switched(1) as (switch, _), uplinked(switch, 1):
            (pid,) = passts()
            watched = os.pidfd_open(int(pid))
            os.kill(switch.pid, signal.SIGKILL)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(watched, ended.set)
            async with asyncio.timeout(10):
                await ended.wait()
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)

    run(test())


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with switched(1) as (switch, _):
            monkeypatch.setenv("PATH", "/nonexistent")
            with pytest.raises(NoUplink, match="passt is not installed"):
                async with uplinked(switch, 1):
                    pass

    run(test())


def test_a_passt_that_cannot_run_is_no_uplink_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with switched(1) as (switch, _):
            broken = tmp_path / "passt"
            broken.write_text(
                "#!/bin/sh\necho 'Failed to send 9 bytes to syslog\nno namespace' >&2\n"
            )
            broken.chmod(0o755)
            monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
            with pytest.raises(NoUplink, match="no uplink: passt: no namespace"):
                async with uplinked(switch, 1):
                    pass

    run(test())


def test_the_command_line() -> None:
    argv = passt_argv("passt", 5, 9, [Published("127.0.0.1", 8080, 80)])
    words = " ".join(argv)
    assert "--fd 9" in words
    assert "--address 192.168.50.5" in words
    assert words.endswith("--tcp-ports 127.0.0.1/8080:80")


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080", Published("127.0.0.1", 8080, 8080)),
        ("8080:80", Published("127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80", Published("0.0.0.0", 8080, 80)),
        ("127.0.0.2:22", Published("127.0.0.2", 22, 22)),
    ],
)
def test_reads_published_ports(text: str, port: Published) -> None:
    assert Published.from_text(text) == port


BAD_PORTS = ["", "x", "0", "65536", "1:0", "1.2.3:80", "1.2.3.400:80", "1:2:3", ":80"]


@pytest.mark.parametrize("text", BAD_PORTS)
def test_refuses_other_ports(text: str) -> None:
    with pytest.raises(UsageError):
        Published.from_text(text)
