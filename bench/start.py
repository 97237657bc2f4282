#!/usr/bin/env python3
"""Seconds from `ssi start N` until all is up, and until every console has a login prompt.

Compared with one bare UML kernel that mounts a copy of the same root alone and runs the same getty.
All take turns, because a machine's speed changes by the minute; what counts is the ratio of a
round. Each cluster has its root already: the copy that the first start makes is timed apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import (
    NO_WINDOWS,
    find_images,
    median_ratio,
    place_of,
    print_row,
    running,
    say,
)

from ssi.common import wire
from ssi.host.build.cpio import make_file, write_archive
from ssi.host.cluster.client import connect
from ssi.host.cluster.spec import ClusterPlace
from ssi.host.disk import copy_disk, make_blank
from ssi.host.uml.process import group_members
from support.clusters import Cluster, Images

PROMPT = b"login:"
MOUNTED = b"bare-boot: mounted"
DEADLINE_S = 120
MEMORY = "mem=160M"  # as `ssi start` gives a node


class Start(NamedTuple):
    """Seconds since the start."""

    up: float
    login: float


# ---- a cluster ----


async def _wait_prompt(place: ClusterPlace, node: int) -> None:
    async with connect(place) as line:
        await line.send({"do": "console", "node": node, "past": True})
        said = b""
        async for message in line.messages():
            wire.raise_error(message)
            if message.get("is") == "console":
                data = wire.get_bytes(message, "data")
                said += data
                line.post({"is": "seen", "bytes": len(data)})
            if PROMPT in said:
                return
    raise SystemExit(f"node{node} has ended before it had a login prompt")


async def _wait_prompts(place: ClusterPlace, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        for node in range(1, count + 1):
            group.create_task(_wait_prompt(place, node))


def start_cluster(cluster: Cluster, count: int) -> Start:
    """Start the stopped `cluster`, time it, stop it."""
    options = (*cluster.ssi.images.options, *NO_WINDOWS)
    begin = time.monotonic()
    cluster.ssi("start", str(count), "-c", str(cluster.number), *options)
    up = time.monotonic() - begin
    asyncio.run(_wait_prompts(place_of(cluster), count))
    login = time.monotonic() - begin
    cluster.ssi("stop", str(cluster.number))
    return Start(up, login)


# ---- the bare kernel ----


def make_ramdisk(images: Images, folder: Path) -> Path:
    """Return the nodes' ramdisk with bare-boot added; the kernel takes archives in a row."""
    ramdisk = folder / "ramdisk"
    shutil.copyfile(images.ramdisk, ramdisk)
    script = Path(__file__).with_name("bare-boot")
    with ramdisk.open("ab") as file:
        file.write(bytes(-file.tell() % 4))
        write_archive([make_file("sbin/bare-boot", script.read_bytes, executable=True)], file)
    return ramdisk


@contextlib.contextmanager
def _bare_kernel(images: Images, ramdisk: Path, folder: Path) -> Iterator[socket.socket]:
    """Run the kernel; yields its console."""
    ours, theirs = socket.socketpair()
    argv = [
        os.fspath(images.kernel), MEMORY, "umid=bare", f"uml_dir={folder}",
        f"initrd={ramdisk}", "rdinit=/sbin/bare-boot",
        f"ubd0={folder / 'root.img'}", f"ubd1={folder / 'swap'}",
        "con=null", f"con0=fd:{theirs.fileno()}", "ssl=null",
        "seccomp=on", "panic=-1", "noreboot", "quiet",
    ]  # fmt: skip
    with ours, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=(theirs.fileno(),), start_new_session=True,
        )  # fmt: skip
        theirs.close()
        try:
            yield ours
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while group_members(process.pid):
                time.sleep(0.01)  # not our children: nothing tells us


def start_bare(images: Images, ramdisk: Path, folder: Path) -> Start:
    """Boot the bare kernel on a fresh copy of the root, time it, end it."""
    copy_disk(images.root, folder / "root.img")
    make_blank(folder / "swap", 64 << 20)
    with (folder / "root.img").open("rb") as copy:
        os.fsync(copy.fileno())  # or it would be written while the kernel boots
    said, mounted = b"", 0.0
    begin = time.monotonic()
    with _bare_kernel(images, ramdisk, folder) as console:
        console.settimeout(DEADLINE_S)
        while PROMPT not in said:
            data = console.recv(4096)
            if not data:
                raise SystemExit(f"the bare kernel has ended: {said.decode(errors='replace')}")
            said += data
            if MOUNTED in said and not mounted:
                mounted = time.monotonic() - begin
        return Start(mounted, time.monotonic() - begin)


# ---- report ----


def show(bare: Sequence[Start], clusters: dict[int, list[Start]], copy_s: float) -> None:
    """Print medians and median ratios."""
    print(f"{len(bare)} rounds in turn, medians in seconds; up: every node has mounted the root")
    print_row("", ("up", "login", "up/bare", "login/bare"))
    named = {f"ssi start {count}": starts for count, starts in clusters.items()}
    for name, starts in [("bare UML", bare), *named.items()]:
        ups, logins = [s.up for s in starts], [s.login for s in starts]
        ratios = (
            median_ratio(ups, [s.up for s in bare]),
            median_ratio(logins, [s.login for s in bare]),
        )
        figures = (statistics.median(ups), statistics.median(logins), *ratios)
        print_row(name, (f"{figure:.2f}" for figure in figures))
    print_row("copy of the root, first start only", (f"{copy_s:.2f}",))


def time_copy(images: Images, folder: Path) -> float:
    """Return the seconds that a copy of the root takes."""
    begin = time.monotonic()
    copy_disk(images.root, folder / "root.img")
    return time.monotonic() - begin


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 15])
    args = parser.parse_args()
    images = find_images()
    bare: list[Start] = []
    clusters: dict[int, list[Start]] = {count: [] for count in args.nodes}
    # Where the clusters' roots are, too: not in RAM, as /tmp may be.
    with running(1) as cluster, tempfile.TemporaryDirectory(dir=place_of(cluster).state) as text:
        folder = Path(text)
        cluster.ssi("stop", str(cluster.number))
        copy_s = time_copy(images, folder)
        ramdisk = make_ramdisk(images, folder)
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            bare.append(start_bare(images, ramdisk, folder))
            for count, starts in clusters.items():
                starts.append(start_cluster(cluster, count))
    show(bare, clusters, copy_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
