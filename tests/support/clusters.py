"""Clusters under test: `ssi` as a person types it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssi.host.disk import copy_disk
from support.person import Person

COMMAND_S = 240

TOKEN_MS = 2000
"""The token time of clusters under test, twice the usual one: with two of them on two processors,
and what else the machine does, a node that was not run for a second is not dead."""

MANY = 16
"""More nodes have a longer token time anyway."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Kernel, ramdisk and root, readable for the person."""

    kernel: Path
    ramdisk: Path
    root: Path

    @property
    def options(self) -> list[str]:
        """They as `ssi start` wants them."""
        return ["-k", str(self.kernel), "-i", str(self.ramdisk), "-r", str(self.root)]


def copy_images(images: Images, folder: Path) -> Images:
    """Copy `images` to `folder`, where everybody can read them."""
    folder.mkdir(exist_ok=True)
    copies = Images(folder / "linux", folder / "ramdisk", folder / "root.img")
    for source, target in zip(
        (images.kernel, images.ramdisk, images.root),
        (copies.kernel, copies.ramdisk, copies.root),
        strict=True,
    ):
        copy_disk(source, target)
        target.chmod(0o755)
    return copies


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


class Ssi:
    """Runs `ssi` as the person."""

    def __init__(self, person: Person, images: Images) -> None:
        self.person = person
        self.images = images
        self.has_faults = False
        """Whether the network of some cluster may have faults."""
        self.running: list[Cluster] = []
        """Those that were started and not stopped."""

    def try_(self, *words: str, given: bytes | None = None, within_s: float = COMMAND_S) -> Result:
        """Run ``ssi WORDS``; return how it ended."""
        self.has_faults |= words[:1] == ("net",)
        done = subprocess.run(
            [*self.person.prefix, "ssi", *words], input=given or b"", capture_output=True,
            env=self.person.environment, cwd=self.person.home, timeout=within_s, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def __call__(self, *words: str, given: bytes | None = None) -> str:
        """Run ``ssi WORDS``, which must succeed; return what it printed."""
        result = self.try_(*words, given=given)
        assert result.status == 0, f"ssi {' '.join(words)}: {result}"
        return result.out

    def json(self, *words: str) -> Any:  # noqa: ANN401
        """Run ``ssi WORDS --json``; return its result."""
        return json.loads(self(*words, "--json"))


class Cluster:
    """A running cluster."""

    def __init__(self, ssi: Ssi, number: int, count: int) -> None:
        self.ssi = ssi
        self.number = number
        self.count = count
        """The nodes it was started with."""
        self.logs = ssi.person.home / f"state/ssi/{number}/log"

    def try_run(self, node: int, *argv: str, **options: Any) -> Result:  # noqa: ANN401
        """Run `argv` in `node`; return how it ended."""
        return self.ssi.try_("exec", "-c", str(self.number), str(node), "--", *argv, **options)

    def run(self, node: int, *argv: str, given: bytes | None = None) -> str:
        """Run `argv` in `node`, where it must succeed; return what it printed."""
        result = self.try_run(node, *argv, given=given)
        assert result.status == 0, f"node{node}: {argv}: {result}"
        return result.out

    def python(self, node: int, script: str, *args: str) -> str:
        """Run the Python `script` in `node`; return what it printed."""
        return self.run(node, "python3", "-", *args, given=script.encode())

    def start_python(self, node: int, script: str, *args: str) -> subprocess.Popen[bytes]:
        """Start the Python `script` in `node`; its output is a pipe."""
        words = ["ssi", "exec", "-c", str(self.number), str(node), "--", "python3", "-c", script]
        return self.ssi.person.start(
            [*words, *args], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def add(self, *nodes: int) -> None:
        """Boot `nodes`."""
        self.ssi("add", str(self.number), *map(str, nodes))

    def crash(self, *nodes: int) -> None:
        """Crash `nodes`."""
        self.ssi("rm", str(self.number), *map(str, nodes))

    def nodes(self) -> dict[int, dict[str, Any]]:
        """Return the state of the nodes that are up."""
        clusters = {c["id"]: c for c in self.ssi.json("ls")}
        return {node["node"]: node for node in clusters[self.number]["nodes"]}

    def restore(self, *nodes: int) -> None:
        """Have exactly `nodes` up, whatever a test did."""
        if self.ssi.has_faults:
            self.ssi("net", "-c", str(self.number), "heal")
            self.ssi.has_faults = False
        if self.sees_all(*nodes):
            return
        if extra := set(self.nodes()) - set(nodes):
            self.crash(*extra)
        if missing := set(nodes) - set(self.nodes()):
            self.add(*missing)
        wait_until(lambda: self.sees_all(*nodes), f"all of {nodes} see each other: {self.nodes()}")

    def sees_all(self, *nodes: int) -> bool:
        """Tell whether all of `nodes`, and nobody else, are in each of their rings."""
        states = self.nodes()
        return set(states) == set(nodes) and all(
            state["ring"] == sorted(nodes) for state in states.values()
        )


@contextlib.contextmanager
def started(ssi: Ssi, count: int, *words: str) -> Iterator[Cluster]:
    """Run a cluster of its own; afterwards nothing of it is left."""
    if count <= MANY:
        words = ("--token", str(TOKEN_MS), *words)
    number = ssi.json("start", str(count), "--new", *ssi.images.options, *words)["id"]
    cluster = Cluster(ssi, number, count)
    ssi.running.append(cluster)
    try:
        yield cluster
    finally:
        ssi.running.remove(cluster)
        if any(c["id"] == number for c in ssi.json("ls")):
            ssi("stop", str(number))
        ssi("clean", "--kept", str(number))


def wait_until(true: Callable[[], object], what: str, *, within_s: float = 60) -> None:
    """Wait until `true()` holds: for what no event tells a person outside either."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)


FIND_DAEMON = """\
for process in /proc/[0-9]*; do
    words=$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)
    case $words in "/usr/bin/python3 "*ssi.node.main*) daemon=${process#/proc/} ;; esac
done
"""


def run_in_ramdisk(cluster: Cluster, node: int, script: str) -> Result:
    """Run a shell's script of `node`'s own, which has nothing of the root."""
    words = ("exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script)
    return cluster.ssi.try_(*words)


def kill_daemon(cluster: Cluster, node: int) -> None:
    """Kill the daemon of `node`; the command that does it is lost with it."""
    run_in_ramdisk(cluster, node, f"{FIND_DAEMON} kill -9 $daemon")


def set_fault(cluster: Cluster, node: int, fault: str) -> None:
    """Have something die there at a point of the next move (src/ssi/node/faults.py)."""
    done = run_in_ramdisk(cluster, node, f"echo {fault} >/run/ssi/public/fault")
    assert done.status == 0, done


def stop_daemon(
    cluster: Cluster, node: int, for_s: int, *, then: str = "CONT"
) -> subprocess.Popen[bytes]:
    """Stop the daemon of `node` for so long; the command is heard of no sooner than that.

    `then` is what signal it gets.
    """
    script = f"{FIND_DAEMON} (sleep {for_s}; kill -{then} $daemon) & kill -STOP $daemon; wait"
    words = ["ssi", "exec", "-c", str(cluster.number), "--ramdisk", str(node), "--"]
    return cluster.ssi.person.start([*words, "sh", "-c", script], stdin=subprocess.DEVNULL)


def answers(cluster: Cluster, node: int) -> bool:
    """Tell whether the daemon of `node` runs a command within a few seconds."""
    try:
        return cluster.try_run(node, "true", within_s=3).status == 0
    except subprocess.TimeoutExpired:
        return False


def is_root() -> bool:
    """Tell whether the tests run as root."""
    return os.getuid() == 0
