"""Windows for the consoles of nodes: an xterm or a tmux window each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from ssi.cli.output import talk
from ssi.common.errors import UsageError
from ssi.host.paths import TOP

PASSED_ON = ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")
"""Say where the cluster is. A tmux window has the environment of its server instead of ours."""

FAILS_WITHIN_S = 0.3
"""An xterm that finds no display has ended by then."""


def _obstacle(kind: str) -> str | None:
    """Return why windows of `kind` are not possible here, None when they are."""
    variable = {"xterm": "DISPLAY", "tmux": "TMUX"}[kind]
    if not os.environ.get(variable):
        return "DISPLAY is not set" if kind == "xterm" else "this is not inside tmux"
    if not shutil.which(kind):
        return f"{kind} is not installed"
    return None


def _choose(choice: str) -> str | None:
    if choice == "auto":
        return next((kind for kind in ("xterm", "tmux") if not _obstacle(kind)), None)
    return None if choice == "none" else choice


def check(choice: str) -> None:
    """Raise UsageError when windows of a kind were asked for that are not possible."""
    if choice in {"xterm", "tmux"} and (obstacle := _obstacle(choice)):
        raise UsageError(
            f"--console {choice}: {obstacle}",
            hint="leave it out, and attach with `ssi console NODE`",
        )


def console_argv(cluster: int, node: int) -> list[str]:
    """Return the command that shows the console of `node`."""
    return [os.fspath(TOP / "bin" / "ssi"), "console", "-c", str(cluster), str(node)]


def xterm_argv(cluster: int, node: int) -> list[str]:
    """Return the command that opens an xterm for `node`."""
    return ["xterm", "-T", f"node{node} of cluster {cluster}", "-e", *console_argv(cluster, node)]


def tmux_argv(cluster: int, node: int) -> list[str]:
    """Return the command that opens a tmux window for `node`."""
    passed = [f"-e{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
    return ["tmux", "new-window", "-d", "-n", f"node{node}", *passed, *console_argv(cluster, node)]


def open_windows(cluster: int, nodes: Iterable[int], choice: str) -> None:
    """Open a window for each of `nodes`. What goes wrong is told, and is no error."""
    kind = _choose(choice)
    if kind is None:
        return
    open_one = _open_xterm if kind == "xterm" else _open_tmux
    for node in nodes:
        if failure := open_one(cluster, node):
            talk(f"no window for the console of node{node}: {failure}")
            return


def _open_xterm(cluster: int, node: int) -> str | None:
    # Its own session, and nothing of ours: it outlives this command and ends with the console.
    try:
        process = subprocess.Popen(
            xterm_argv(cluster, node), start_new_session=True, cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        status = process.wait(FAILS_WITHIN_S)
    except OSError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return None
    return f"xterm ended with status {status}"


def _open_tmux(cluster: int, node: int) -> str | None:
    try:
        done = subprocess.run(
            tmux_argv(cluster, node), check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or "tmux failed" if done.returncode else None
