"""A node's way out to the host's network: one passt process, plugged into the switch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import IO, Self

from ssi.common import addresses
from ssi.common.errors import SsiError, UsageError
from ssi.common.nodes import parse_node
from ssi.host.net.switch import Switch, SwitchLost

START_DEADLINE_S = 10
LOOPBACK = "127.0.0.1"


class NoUplink(SsiError):
    """The nodes have no way out: passt is missing, or it cannot run here. They can do without."""

    code = "no-uplink"


class PortTaken(SsiError):
    """A port of the host that was to be published is in use, or not ours to use."""

    code = "port-taken"


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A TCP port of the host that leads to a port of a node."""

    address: str
    host_port: int
    node_port: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read ``[ADDRESS:]PORT[:NODEPORT]``; without an address only this host may connect."""
        matched = re.fullmatch(r"(?:(\d+\.\d+\.\d+\.\d+):)?(\d+)(?::(\d+))?", text, re.ASCII)
        try:
            if not matched:
                raise ValueError
            address = str(ipaddress.IPv4Address(matched[1] or LOOPBACK))
        except ValueError:
            raise UsageError(
                f"{text!r} is not a port to publish", hint="write 8080:80 or 0.0.0.0:8080:80"
            ) from None
        ports = int(matched[2]), int(matched[3] or matched[2])
        for port in ports:
            if not 1 <= port <= 65535:
                raise UsageError(f"{text!r}: {port} is not a port", hint="ports are 1 to 65535")
        return cls(address, *ports)

    def __str__(self) -> str:
        return f"{self.address}:{self.host_port}"


def parse_published(text: str) -> tuple[int, Published]:
    """Read ``[ADDRESS:]PORT[:NODEPORT][@NODE]``: a port, and the node it leads to, else node 1."""
    port, _, node = text.partition("@")
    return (parse_node(node) if node else 1), Published.from_text(port)


def find_passt() -> str:
    """Return the path of passt, or raise NoUplink."""
    passt = shutil.which("passt")
    if not passt:
        raise NoUplink("no uplink: passt is not installed", hint="apt-get install passt")
    return passt


def passt_argv(passt: str, node: int, fd: int, ports: Sequence[Published]) -> list[str]:
    """Return the command line of the passt that serves `node` over the connected socket `fd`.

    Only options that both Debian 12 (2023) and 13 (2025) have.
    """
    argv = [
        passt,
        "--foreground", "--quiet", "--ipv4-only",
        # Its end is passt's end: nothing is left when the switch dies, however that comes about.
        "--fd", str(fd),
        "--address", addresses.node_address(node), "--netmask", str(addresses.PREFIX_LENGTH),
        "--gateway", addresses.GATEWAY, "--mac-addr", addresses.GATEWAY_MAC,
        "--mtu", str(addresses.MTU),
        # Nodes have fixed addresses. No mapping of the gateway: to passt that means the host's
        # loopback, where services listen that trust whoever gets there.
        "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--no-map-gw",
        "--dns-forward", addresses.NAME_SERVER,
    ]  # fmt: skip
    for port in ports:
        argv += ["--tcp-ports", f"{port.address}/{port.host_port}:{port.node_port}"]
    return argv


@contextlib.asynccontextmanager
async def uplinked(
    switch: Switch, node: int, ports: Sequence[Published] = ()
) -> AsyncIterator[None]:
    """Give `node` a way out while inside. Raises NoUplink or PortTaken.

    No parent-death signal: the kernel clears it when passt enters its user namespace.
    """
    passt = find_passt()
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as log:
        with theirs:
            argv = passt_argv(passt, node, theirs.fileno(), ports)
            process = await asyncio.create_subprocess_exec(
                *argv,
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                # Not a terminal, or the older passt writes its errors to the system log only.
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        try:
            await _wait_ready(ours, node, log, ports)
            await switch.attach_uplink(node, ours)
            yield
        finally:
            await _end(process)
            # Its closing is no event to anyone who left this block.
            with contextlib.suppress(SwitchLost):
                await switch.detach_uplink(node)


async def _wait_ready(
    stream: socket.socket, node: int, log: IO[bytes], ports: Sequence[Published]
) -> None:
    """Return once passt, asked for the gateway, has answered: by then its ports are bound."""
    question = _arp_question(node)
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            await loop.sock_sendall(stream, len(question).to_bytes(4, "big") + question)
            length = int.from_bytes(await _read_exactly(stream, 4), "big")
            await _read_exactly(stream, length)
    except TimeoutError:
        raise NoUplink(f"no uplink: passt did not answer in {START_DEADLINE_S} s") from None
    except (OSError, EOFError):
        raise _explain(log, ports) from None


async def _read_exactly(stream: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = await asyncio.get_running_loop().sock_recv(stream, count - len(got))
        if not part:
            raise EOFError
        got += part
    return got


def _arp_question(node: int) -> bytes:
    mac = bytes.fromhex(addresses.node_mac(node).replace(":", ""))
    sender = mac + socket.inet_aton(addresses.node_address(node))
    head = b"\xff" * 6 + mac + bytes.fromhex("0806" + "0001080006040001")
    return head + sender + bytes(6) + socket.inet_aton(addresses.GATEWAY)


def _explain(log: IO[bytes], ports: Sequence[Published]) -> SsiError:
    """Return the error that passt's last words mean."""
    log.seek(0)
    lines = [
        line.strip()
        for line in log.read().decode(errors="replace").splitlines()
        if line.strip() and not line.startswith("Failed to send")  # to a system log nobody runs
    ]
    why = lines[-1] if lines else "it ended without a word"
    for port in ports:
        if "bind" in why and f"{port.address}/{port.host_port}:" in why:
            hint = (
                "ports below 1024 need root" if port.host_port < 1024 else "ss -tlnp shows by whom"
            )
            return PortTaken(f"port {port} of this host is in use, or may not be used", hint=hint)
    hint = "does this system allow user namespaces? try: unshare -Ur true"
    return NoUplink(f"no uplink: passt: {why}", hint=hint)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
