"""A person's terminal: what `ssi console` shows, and what is typed there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pexpect

from support.clusters import Cluster

APPEARS_S = 60
ROWS, COLUMNS = 30, 100
DETACH = "\x1d"
FIRST_PASSWORD = "root"
PASSWORD = "mole-hill-77"


class Terminal:
    """A terminal in which `ssi console NODE` runs."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        person = cluster.ssi.person
        words = [*person.prefix, "ssi", "console", "-c", str(cluster.number), str(node)]
        self._child: pexpect.spawn[bytes] = pexpect.spawn(
            words[0] if person.prefix else f"{person.top}/bin/ssi", words[1:],
            env=person.environment, cwd=str(person.home),
            timeout=APPEARS_S, dimensions=(ROWS, COLUMNS),
        )  # fmt: skip
        # Otherwise each thing typed waits for 50 ms.
        self._child.delaybeforesend = None
        self.expect("detaches")

    def type(self, text: str) -> None:
        """Type `text`; Enter is ``\\r``."""
        self._child.send(text)

    def expect(self, *patterns: str) -> int:
        """Wait until one of `patterns` appears; return which."""
        return self._child.expect(list(patterns))

    @property
    def found(self) -> str:
        """What the last `expect` has matched."""
        match: Any = self._child.match
        return str(match.group().decode())

    def run(self, line: str) -> str:
        """Have the shell run `line`; return what it printed."""
        # In two parts, so that the line itself is not taken for its output.
        self.type(f"{line}; printf '<%s>' en''d\r")
        self.expect("\x1b\\[\\?2004l\r")
        self.expect("<end>")
        return (self._child.before or b"").decode().replace("\r\n", "\n")

    def resize(self, rows: int, columns: int) -> None:
        """Make the window another size."""
        self._child.setwinsize(rows, columns)

    def log_in(self, password: str = PASSWORD, *, change_to: str | None = None) -> None:
        """Log in as root at a fresh prompt, up to the shell's."""
        self.expect("login: ")
        self.type("root\r")
        self.expect("Password: ")
        self.type(f"{password}\r")
        if change_to:
            self.expect("required to change your password")
            self.expect("Current password: ")
            self.type(f"{password}\r")
            for prompt in ("New password: ", "Retype new password: "):
                self.expect(prompt)
                self.type(f"{change_to}\r")
        self.expect(r"root@node\d+:~# ")

    def end(self) -> tuple[int | None, str]:
        """Wait until `ssi console` ends; return its exit status and its last words."""
        self._child.expect(pexpect.EOF)
        said = re.sub(r"\x1b\[[0-9;?]*\w", "", (self._child.before or b"").decode())
        self._child.close()
        return self._child.exitstatus, said

    def leave(self) -> None:
        """Detach."""
        self.type(DETACH)
        status, said = self.end()
        assert status == 0, said

    def close(self) -> None:
        """Close the window, whatever runs in it."""
        self._child.close(force=True)


@contextlib.contextmanager
def attached(cluster: Cluster, node: int) -> Iterator[Terminal]:
    """A terminal attached to the console of `node`."""
    terminal = Terminal(cluster, node)
    try:
        yield terminal
    finally:
        terminal.close()
