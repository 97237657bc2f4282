"""A virtual node's command line, and what its kernel notifies."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.addresses import node_mac
from ssi.host.uml.cmdline import NodeSpec, NodeWires, uml_argv
from ssi.host.uml.notify import HEADER, MAGIC, Kind, Notification, NotifySocket, parse_notification

SPEC = NodeSpec(
    node=11, kernel=Path("/k/linux"), ramdisk=Path("/k/ramdisk"), root=Path("/s/root.img"),
    swap=Path("/s/swap_11"), memory_mib=160, umid="n11-7-1", uml_dir=Path("/r/uml"),
    extra=("ssi.token_ms=1000",),
)  # fmt: skip
WIRES = NodeWires(console=(5, 8), line=6, fence=9, network=7, notify=Path("/r/uml/n11.notify"))


def test_command_line_says_what_the_node_is_made_of() -> None:
    assert uml_argv(SPEC, WIRES) == [
        "/k/linux", "mem=160M", "umid=n11-7-1", "uml_dir=/r/uml", "initrd=/k/ramdisk",
        "ubd0c=/s/root.img", "ubd1=/s/swap_11",
        "vec0:transport=fd,fd=7,depth=64,gro=0,mtu=32000,mac=02:00:00:00:00:0b",
        "con=null", "con0=fd:5,fd:8", "ssl=null", "ssl0=fd:6", "ssl1=fd:9",
        "mconsole=notify:/r/uml/n11.notify",
        "seccomp=on", "panic=-1", "noreboot", "quiet", "ssi.node=11", "ssi.token_ms=1000",
    ]  # fmt: skip


def test_addresses_differ_and_are_locally_administered() -> None:
    addresses = {node_mac(node) for node in range(1, 128)}
    assert len(addresses) == 127
    assert all(int(address[:2], 16) & 3 == 2 for address in addresses)


@pytest.mark.parametrize("kind", Kind)
def test_reads_a_notification(kind: Kind) -> None:
    datagram = HEADER.pack(MAGIC, 2, kind.value, 6) + b"ready\n" + b"\0" * 506
    assert parse_notification(datagram) == Notification(kind, "ready")


@pytest.mark.parametrize(
    "datagram",
    [b"", b"x" * 15, HEADER.pack(0, 2, 1, 0), HEADER.pack(MAGIC, 2, 9, 0),
     HEADER.pack(MAGIC, 2, -1, 0)],
)  # fmt: skip
def test_refuses_what_is_no_notification(datagram: bytes) -> None:
    assert parse_notification(datagram) is None


@given(st.binary(max_size=600), st.integers(0, 2**32 - 1))
def test_any_data_is_read(data: bytes, length: int) -> None:
    read = parse_notification(HEADER.pack(MAGIC, 2, Kind.USER.value, length) + data)
    assert read is not None
    assert len(read.text.encode()) <= 3 * 512


@given(st.binary(max_size=600))
def test_any_datagram_is_read_or_refused(datagram: bytes) -> None:
    parse_notification(datagram)


def test_a_socket_hears_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "notify"

    async def hear_one() -> Notification:
        heard: asyncio.Future[Notification] = asyncio.get_running_loop().create_future()
        notify = NotifySocket(path)
        notify.hear = heard.set_result
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as kernel:
            kernel.sendto(b"nonsense", str(path))
            kernel.sendto(HEADER.pack(MAGIC, 2, Kind.PANIC.value, 4) + b"oops", str(path))
        try:
            async with asyncio.timeout(5):
                return await heard
        finally:
            notify.close()

    assert asyncio.run(hear_one()) == Notification(Kind.PANIC, "oops")
    assert not path.exists()
