#!/usr/bin/env python3
"""Shows what a cluster does: three nodes, one root, a process that moves, a crash.

Each command is shown as a person would type it, with what it really said and how long it took. What
is claimed is checked: the exit status is 1 as soon as something is not so. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

SSI = Path(__file__).resolve().parents[1] / "bin/ssi"
WITHIN_S = 180
ENDS_WITHIN_S = 30
FILE = "/root/greetings"
SHOWN = "/root/shown"
RECORDS_S = 2
STARTED = re.compile(r"Cluster (\d+) has been started")


class DemoError(Exception):
    """Something that is claimed is not so."""


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[str]) -> str:
    """Have a command that is interrupted clean up after itself; return what it has said."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=ENDS_WITHIN_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


class Demo:
    """One showing."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._number = ""
        """The cluster's, while there is one."""
        self._begin = time.monotonic()
        # In tmux or under X, `ssi start` would open a window a node.
        self._environment = {k: v for k, v in os.environ.items() if k not in {"TMUX", "DISPLAY"}}

    def _run(self, *words: str) -> tuple[int, str]:
        # A process group of its own: a Ctrl-C reaches us alone, and we end it in order.
        with subprocess.Popen(
            [SSI, *words], env=self._environment, text=True, process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            output = ""
            try:
                output, _ = process.communicate(timeout=WITHIN_S)
            except subprocess.TimeoutExpired as error:
                raise DemoError(f"ssi {words[0]} did not end in {WITHIN_S} s") from error
            finally:
                if process.returncode is None:
                    output = _end(process)
                if started := STARTED.search(output):
                    self._number = started[1]
        return process.returncode, output

    def ssi(self, *words: str) -> str:
        """Show and run ``ssi WORDS``, which must succeed; return what it said."""
        self._console.print(Text(f"  $ ssi {shlex.join(words)}", style="bold cyan"))
        begin = time.monotonic()
        status, output = self._run(*words)
        took_s = time.monotonic() - begin
        for line in output.strip("\n").splitlines():
            self._console.print(Text(f"  {line}"))
        self._console.print(Text(f"  ({took_s:.1f} s)", style="dim"))
        if status != 0:
            raise DemoError(f"ssi {words[0]} has failed with status {status}")
        return output

    def node(self, node: int, *argv: str) -> str:
        """Run `argv` in a node."""
        return self.ssi("exec", "-c", self._number, str(node), "--", *argv)

    def members(self, node: int) -> list[int]:
        """Show who is a member as `node` sees it."""
        words = "exec", "-c", self._number, "--ramdisk", str(node), "--", "corosync-quorumtool"
        said = self.ssi(*words, "-l")
        return [int(number) for number in re.findall(r"^ +(\d+) +\d+ +node", said, re.MULTILINE)]

    def title(self, text: str) -> None:
        """Begin a part."""
        self._console.print(Text(f"\n{text}", style="bold"))

    def check(self, true: bool, claim: str) -> None:  # noqa: FBT001 - as assert has it
        """Say `claim`, which must be so."""
        if not true:
            raise DemoError(f"it is not so that {claim}")
        self._console.print(Text(f"  ✓ {claim}", style="green"))

    def run(self) -> None:
        """Show it all."""
        self.title("Three Linux kernels boot and become one cluster")
        self.ssi("start", "3", "--new")
        self.check(self.members(1) == [1, 2, 3], "all three are members")

        self.title("They share one root")
        self.node(1, "sh", "-c", f"echo written on node1 >{FILE}")
        for node in (2, 3):
            said = self.node(node, "cat", FILE)
            self.check(said == "written on node1\n", f"node{node} reads what node1 wrote")

        self.run_movement()

        self.title("A power failure hits node3, which was the last to write")
        self.node(3, "sh", "-c", f"echo written on node3 >>{FILE} && sync {FILE}")
        self.ssi("rm", self._number, "3")
        # Its lock on the file died with node3: this waits until its death was noticed and
        # confirmed, and its journal replayed.
        begin = time.monotonic()
        self.node(1, "sh", "-c", f"echo written on node1 meanwhile >>{FILE} && sync {FILE}")
        self.check(True, f"node1 goes on writing {time.monotonic() - begin:.1f} s after the crash")
        said = self.node(2, "cat", FILE)
        wanted = "written on node1\nwritten on node3\nwritten on node1 meanwhile\n"
        self.check(said == wanted, "nothing was lost, as node2 sees it")
        self.check(self.members(2) == [1, 2], "node3 is no member any more")

        self.title("node3 comes back")
        self.ssi("add", self._number, "3")
        self.check(self.node(3, "cat", FILE) == wanted, "it sees what was written meanwhile")
        self.check(self.members(3) == [1, 2, 3], "all three are members again")

        self.title("The end")
        self.ssi("stop", self._number)
        self.ssi("clean", "--kept", self._number)
        _, left = self._run("ls", "--all", "--json")
        self.check(f'"id": {self._number},' not in left, "nothing is left behind")
        self._number = ""
        took_s = time.monotonic() - self._begin
        self._console.print(f"\nThat took {took_s:.0f} s. Now it is your turn: bin/ssi start")

    def run_movement(self) -> None:
        """Show process movement."""
        self.title("A process moves, and goes on as if nothing had happened")
        script = f"cd /root/dbdemo && setsid ./dbdemo alphabet </dev/null >{SHOWN} 2>&1 & echo $!"
        pid = self.node(1, "sh", "-c", script).strip()
        for node in (2, 3):
            time.sleep(RECORDS_S)
            self.node(1, "migrate", str(node), pid)
            said = self.node(1, "where_pid", pid)
            self.check(said == f"{node}\n", f"it is on node{node} now")
        time.sleep(RECORDS_S)
        said = self.node(1, "cat", SHOWN)
        self.node(1, "kill", pid)
        lines = [line.split() for line in said.splitlines()]
        self.check({line[1] for line in lines} == {"1:", "2:", "3:"}, "it has worked on all three")
        letters = [line[2][0] for line in lines]
        in_order = letters == [chr(ord("A") + number) for number in range(len(letters))]
        self.check(in_order, "no record was lost, and none came twice")

    def clean_up(self) -> None:
        """Remove the cluster, if there is one; not to be interrupted."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self._number:
            self._run("stop", self._number, "--timeout", "5")
            self._run("clean", "--kept", self._number)

    @contextlib.contextmanager
    def cleaned_up(self) -> Iterator[None]:
        """Leave nothing behind, whatever happens."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            yield
        finally:
            self.clean_up()


def main() -> int:
    """Show it; return 1 when a claim is not so."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ✓
    demo = Demo()
    try:
        with demo.cleaned_up():
            demo.run()
    except DemoError as error:
        sys.stderr.write(f"\nThe demo has failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nThe demo was interrupted; it has cleaned up.\n")
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
