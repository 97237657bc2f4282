"""Runs the tools a build needs: no shell, no survivors, errors that name what to install."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host.build.plan import full_disk
from ssi.host.paths import cache_dir
from ssi.host.uml.process import group_members, reap_group

PACKAGES = {
    "ar": "binutils", "apt-cache": "apt", "apt-config": "apt", "apt-get": "apt", "bc": "bc",
    "bison": "bison", "dpkg-deb": "dpkg", "flex": "flex", "gcc": "gcc", "ld": "binutils",
    "make": "make", "mmdebstrap": "mmdebstrap", "newuidmap": "uidmap", "patch": "patch",
    "perl": "perl", "setpriv": "util-linux", "strip": "binutils", "tar": "tar", "xz": "xz-utils",
}  # fmt: skip
"""Which Debian package brings a tool."""

POLITE_S = 10.0
TAIL_LINES = 12
FULL = "No space left on device"


def system_path() -> str:
    """Return the PATH for tools: a normal user's often lacks the sbin folders."""
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def find_tool(name: str) -> str | None:
    """Return the path of the tool `name`, None when it is not installed."""
    for folder in system_path().split(":"):
        path = Path(folder or ".") / name
        if path.is_file() and os.access(path, os.X_OK):
            return os.fspath(path)
    return None


def require_tools(*names: str) -> None:
    """Raise BuildError naming all of the tools that are missing, and their packages."""
    missing = [name for name in names if not find_tool(name)]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise BuildError(
            f"not installed: {', '.join(missing)}", hint=f"apt-get install {' '.join(packages)}"
        )


def _end(process: subprocess.Popen[str]) -> None:
    """End what is left of the group of `process`; first so that tools can clean up behind them."""
    deadline = time.monotonic() + POLITE_S
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        while group_members(process.pid):
            if number != signal.SIGKILL and time.monotonic() > deadline:
                break
            process.poll()
            reap_group(process.pid)
            time.sleep(0.01)  # the end of a group is told to nobody
    process.wait()


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leave only when the process group of `process` is empty, on Ctrl-C and errors too."""
    try:
        yield process
    except BaseException:
        _end(process)
        raise
    else:
        process.wait()
        if group_members(process.pid):
            _end(process)
    finally:
        if process.stdout:
            process.stdout.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A tool's command line and surroundings."""

    argv: Sequence[str | Path]
    cwd: Path | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    log: Path | None = None
    stdin: Path = Path(os.devnull)

    def environment(self) -> dict[str, str]:
        """Return the whole environment: ours, in English, with the changes wished for."""
        return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": system_path(), **self.env}


def run(command: Command, hear: Callable[[str], None] = lambda _: None) -> str:
    """Run `command`, giving each line it prints to `hear`; return all that it printed.

    Raises BuildError with its last lines when it fails.
    """
    name = Path(command.argv[0]).name
    if "/" not in os.fspath(command.argv[0]):
        require_tools(os.fspath(command.argv[0]))
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(command.log.open("w")) if command.log else None
        stdin = stack.enter_context(command.stdin.open())
        process = stack.enter_context(running(subprocess.Popen(
            [os.fspath(word) for word in command.argv], cwd=command.cwd, env=command.environment(),
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )))  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if log:
                log.write(line)
            hear(line.rstrip("\n"))
    if process.returncode:
        raise _failure(name, process.returncode, lines, command.log)
    return "".join(lines)


def _failure(name: str, status: int, lines: Sequence[str], log: Path | None) -> BuildError:
    if any(FULL in line for line in lines[-200:]):
        return full_disk(cache_dir())
    how = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
    tail = "".join(f"\n  {line.rstrip()}" for line in lines[-TAIL_LINES:])
    hint = f"all of it is in {log}" if log else None
    return BuildError(f"{name} {how}{':' if tail else ''}{tail}", hint=hint)
