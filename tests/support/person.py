"""The person whom the cluster tests are: a normal user, also when the tests run as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssi.host.paths import TOP

NAME = f"ssi-test-{os.getpid()}"


class Person:
    """A user with a home of his own, who runs commands from an installation he can read."""

    def __init__(self, home: Path, top: Path, uid: int | None) -> None:
        self.home = home
        self.top = top
        self.uid = uid
        self._started: list[subprocess.Popen[bytes]] = []
        """None: it is us."""

    @property
    def environment(self) -> dict[str, str]:
        """His environment, and nothing of ours."""
        return {
            "HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "xterm-256color",
            "PATH": f"{self.top}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "XDG_STATE_HOME": str(self.home / "state"), "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
        }  # fmt: skip

    @property
    def prefix(self) -> list[str]:
        """The words before a command that make him run it."""
        # Whoever started us in the background had us ignore Ctrl-C, and that is inherited.
        listening = ["env", "--default-signal=INT,QUIT"]
        if self.uid is None:
            return listening
        ids = f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"
        return [*listening, "setpriv", *ids, "--inh-caps=-all", "--no-new-privs", "--"]

    def start(self, argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        """Start `argv` as him; it ends with the test at the latest."""
        process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [*self.prefix, *argv], env=self.environment, cwd=self.home, **options
        )
        self._started.append(process)
        return process

    def settle(self) -> None:
        """End what a test has started and not ended."""
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
                pipe.close()
        self._started.clear()

    def processes(self) -> dict[int, str]:
        """Return his processes (or those of his clusters, when he is us): PID to command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                status = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                mine = (entry.stat().st_uid == self.uid) if self.uid else str(self.home) in words
            except OSError:
                continue
            if mine and status not in "ZX":
                found[int(entry.name)] = words
        return found

    def wait_alone(self, *, within_s: float = 10) -> dict[int, str]:
        """Wait until none of his processes is left; return those that are."""
        deadline = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def _readable_top(home: Path) -> Path:
    """Return an installation that he can read: the checkout, or a copy of it."""
    probe = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
             str(TOP / ".venv/bin/python"), "-c", "import rich"]  # fmt: skip
    if subprocess.run(probe, capture_output=True, cwd="/", check=False).returncode == 0:
        return TOP
    top = home / "installation"
    for folder in ("bin", "src", "native", "image", ".venv"):
        shutil.copytree(TOP / folder, top / folder, symlinks=True)
    return top


@contextlib.contextmanager
def normal_user(home: Path) -> Iterator[Person]:
    """Yield the person; afterwards his account, if we made one, and his processes are gone."""
    if os.getuid() != 0:
        home.mkdir(mode=0o755, exist_ok=True)
        yield Person(home, TOP, None)
        return
    with contextlib.suppress(KeyError):
        pwd.getpwnam(NAME)
        subprocess.run(["userdel", NAME], check=True, capture_output=True)
    # useradd gives him a range of subordinate users, which building a root needs.
    subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", str(home), NAME],
        check=True, capture_output=True,
    )  # fmt: skip
    uid = pwd.getpwnam(NAME).pw_uid
    home.mkdir(mode=0o755, exist_ok=True)
    person = Person(home, _readable_top(home), uid)
    for folder in (home, home / "run"):
        folder.mkdir(mode=0o755, exist_ok=True)
        os.chown(folder, uid, uid)
    (home / "run").chmod(0o700)
    try:
        yield person
    finally:
        for pid in person.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        person.wait_alone()
        subprocess.run(["userdel", NAME], check=False, capture_output=True)
