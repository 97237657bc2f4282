#!/usr/bin/env python3
"""Our switch against a kernel bridge with taps: bytes/s and round trip between two UML nodes.

The two sides take turns, because a machine's speed changes by the minute; what counts is the ratio
of a round. The bridge is measured twice: as taps usually are (frames of 1500 bytes, segmentation
offload) and with frames as large as ours. It lives in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1] / "src"))

from ssi.common import addresses
from ssi.host.build.artifacts import find_artifacts
from ssi.host.net.switch import Switch

NODE_DEADLINE_S = 60
TARGET = 0.8


class Figures(NamedTuple):
    """What one boot of two nodes measured."""

    bytes_per_s: float
    round_trip_us: float


class Bench(NamedTuple):
    """What all boots have in common."""

    kernel: Path
    initrd: Path
    folder: Path
    seconds: int


# ---- nodes ----


def make_initrd(folder: Path) -> Path:
    """Return an initramfs whose /init is netbench, in the newc format and without any tool."""
    program = folder / "netbench"
    source = Path(__file__).with_name("netbench.c")
    subprocess.run(
        [
            "cc",
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            source,
            "-o",
            program,
        ],
        check=True,
    )
    archive = folder / "initrd"
    archive.write_bytes(
        cpio_entry("dev", 0o040755)
        # The kernel opens it as standard output of /init.
        + cpio_entry("dev/console", 0o020600, device=(5, 1))
        + cpio_entry("init", 0o100755, program.read_bytes())
        + cpio_entry("TRAILER!!!", 0)
    )
    return archive


def cpio_entry(
    name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """Return one member of a newc archive."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


@contextlib.asynccontextmanager
async def running_node(
    bench: Bench, node: int, wire: str, *, peer: int = 0, prefix: Sequence[str] = (), fd: int = -1
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Boot one node; its whole process group is gone afterwards."""
    argv = [
        *prefix,
        os.fspath(bench.kernel),
        "mem=128M", f"umid=bench{os.getpid()}-{node}", f"uml_dir={bench.folder}",
        f"initrd={bench.initrd}", "con=null", "con0=null,fd:1", "ssl=null", "quiet",
        "seccomp=on", "noreboot", "panic=-1", wire,
        f"node={node}", f"peer={peer}", f"seconds={bench.seconds}",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=[fd] if fd >= 0 else [],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def wait_word(process: asyncio.subprocess.Process, word: str) -> list[str]:
    """Return the words of the line that begins with `word`."""
    assert process.stdout  # it was opened with a pipe
    seen = []
    async with asyncio.timeout(NODE_DEADLINE_S):
        while line := (await process.stdout.readline()).decode(errors="replace"):
            if line.startswith(word):
                return line.split()
            seen.append(line.strip())
    raise SystemExit(f"a node ended before it said {word}: {' / '.join(seen[-3:])}")


async def figures(client: asyncio.subprocess.Process) -> Figures:
    """Return what the measuring node prints."""
    _, bytes_per_s, round_trip_us = await wait_word(client, "RESULT")
    return Figures(float(bytes_per_s), float(round_trip_us))


# ---- sides ----


async def measure_switch(bench: Bench) -> Figures:
    """Measure over native/switch.c, with the settings that clusters have."""
    async with Switch.running() as switch, contextlib.AsyncExitStack() as stack:
        clients = []
        for node, peer in ((2, 0), (1, 2)):
            with await switch.attach(node) as wire:
                fd = wire.fileno()
                argument = addresses.wire_argument(node, fd)
                booted = running_node(bench, node, argument, peer=peer, fd=fd)
                clients.append(await stack.enter_async_context(booted))
            if not peer:
                await wait_word(clients[0], "READY")
        return await figures(clients[1])


async def measure_bridge(bench: Bench, prefix: Sequence[str], mtu: int) -> Figures:
    """Measure over taps on a kernel bridge, in the namespace that `prefix` enters."""
    for tap in ("tap1", "tap2"):
        argv = [*prefix, "ip", "link", "set", tap, "mtu", str(mtu)]
        await asyncio.to_thread(subprocess.run, argv, check=True)
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for node, peer in ((2, 0), (1, 2)):
            mac = addresses.node_mac(node)
            # gro=1: with less, the driver drops every segment the other side left whole.
            argument = f"vec0:transport=tap,ifname=tap{node},depth=64,gro=1,mtu={mtu},mac={mac}"
            booted = running_node(bench, node, argument, peer=peer, prefix=prefix)
            clients.append(await stack.enter_async_context(booted))
            if not peer:
                await wait_word(clients[0], "READY")
        return await figures(clients[1])


BRIDGE = """
set -e
ip link add br0 type bridge
ip link set br0 up
for tap in tap1 tap2; do
    ip tuntap add $tap mode tap vnet_hdr
    ip link set $tap master br0 up
done
echo ready
exec sleep infinity
"""


@contextlib.contextmanager
def bridge() -> Iterator[list[str] | None]:
    """A namespace with a bridge and two taps: the command that enters it, or None."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        print("no /dev/net/tun for this user: without the bridge (try as root)", file=sys.stderr)
        yield None
        return
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", BRIDGE],
        stdout=subprocess.PIPE, start_new_session=True,
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout  # it was opened with a pipe
            if holder.stdout.readline() == b"ready\n":
                enter = ["nsenter", f"--target={holder.pid}", "--user", "--net"]
                yield [*enter, "--preserve-credentials"]
            else:
                print("no namespace with a bridge: without it", file=sys.stderr)
                yield None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


# ---- report ----


def show(rounds: list[dict[str, Figures]]) -> bool:
    """Print medians and median ratios; return whether the target is met against every bridge."""
    met = True
    print(f"{'':22}{'MB/s':>8}{'us/round trip':>15}{'switch/it':>11}{'its trip/ours':>15}")
    for side in rounds[0]:
        rate = statistics.median(r[side].bytes_per_s for r in rounds)
        trip = statistics.median(r[side].round_trip_us for r in rounds)
        ratio = statistics.median(r["switch"].bytes_per_s / r[side].bytes_per_s for r in rounds)
        trips = statistics.median(r[side].round_trip_us / r["switch"].round_trip_us for r in rounds)
        ratios = "" if side == "switch" else f"{ratio:11.2f}{trips:15.2f}"
        print(f"{side:22}{rate / 1e6:8.0f}{trip:15.0f}{ratios}")
        met = met and ratio >= TARGET
    return met


async def run_rounds(bench: Bench, rounds: int, prefix: Sequence[str] | None) -> bool:
    """Measure all sides `rounds` times in turn."""
    done = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        result = {"switch": await measure_switch(bench)}
        for mtu in (1500, addresses.MTU) if prefix else ():
            result[f"bridge, mtu {mtu}"] = await measure_bridge(bench, prefix or (), mtu)
        done.append(result)
    return show(done)


def main() -> int:
    """Return 0 when the switch carries at least TARGET of what the bridge does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", type=Path, help="a UML kernel (default: the one built)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each stream")
    args = parser.parse_args()
    kernel = args.kernel or find_artifacts().kernel
    if kernel is None:
        raise SystemExit("there is no kernel: run `ssi build kernel`, or give --kernel")
    with tempfile.TemporaryDirectory(prefix="ssi-bench-") as text, bridge() as prefix:
        folder = Path(text)
        bench = Bench(kernel.resolve(), make_initrd(folder), folder, args.seconds)
        return 0 if asyncio.run(run_rounds(bench, args.rounds, prefix)) else 1


if __name__ == "__main__":
    sys.exit(main())
