"""Windows for consoles: where they are possible, and never in the way of a start."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from ssi.cli import windows
from ssi.common.errors import UsageError
from support.tree import find_tool


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave the test a folder of programs, and nothing that makes windows possible."""
    for variable in ("DISPLAY", "TMUX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(windows, "FAILS_WITHIN_S", 5)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_nothing_is_opened_where_nothing_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    windows.check("auto")
    windows.open_windows(10001, [1], "auto")
    windows.open_windows(10001, [1], "none")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["xterm", "tmux"])
def test_asking_for_what_is_not_possible_is_refused(
    kind: str, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="not"):
        windows.check(kind)
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("TMUX", "/tmp/x,1,0")
    with pytest.raises(UsageError, match=f"{kind} is not installed"):
        windows.check(kind)
    put_tool(tools, kind, "")
    windows.check(kind)


def test_xterm_comes_before_tmux(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("TMUX", "/tmp/x,1,0")
    put_tool(tools, "tmux", "")
    assert windows._choose("auto") == "tmux"
    put_tool(tools, "xterm", "")
    assert windows._choose("auto") == "xterm"


def test_a_window_that_does_not_open_is_told_and_no_error(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISPLAY", ":9")
    put_tool(tools, "xterm", "exit 1")
    windows.open_windows(10001, [1, 2], "auto")
    assert capsys.readouterr().err.splitlines() == [
        "no window for the console of node1: xterm ended with status 1"
    ]
    (tools / "xterm").unlink()
    windows.open_windows(10001, [1], "xterm")
    assert "no window" in capsys.readouterr().err


def test_commands_show_the_console() -> None:
    assert windows.console_argv(10001, 2)[1:] == ["console", "-c", "10001", "2"]
    assert windows.xterm_argv(10001, 2)[:4] == ["xterm", "-T", "node2 of cluster 10001", "-e"]


def test_a_real_tmux_opens_a_window_that_ends_with_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    tmux = find_tool("tmux", "tmux")
    socket, said = tmp_path / "s", tmp_path / "said"
    base = [tmux, "-S", str(socket)]
    monkeypatch.setenv("XDG_STATE_HOME", "/state of mine")
    command = ["sh", "-c", f"echo $XDG_STATE_HOME >'{said}'; read line"]
    monkeypatch.setattr(windows, "console_argv", lambda *_: command)
    environment = {k: v for k, v in os.environ.items() if k not in {"TMUX", "XDG_STATE_HOME"}}
    subprocess.run([*base, "-f/dev/null", "new-session", "-d", "sleep 60"], check=True,
                   env=environment)  # fmt: skip
    try:
        monkeypatch.setenv("TMUX", f"{socket},1,0")
        windows.open_windows(10001, [7], "tmux")
        assert list_windows(base, 2)[1] == "node7"
        deadline = time.monotonic() + 10
        while not said.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        subprocess.run([*base, "send-keys", "-t", "node7", "Enter"], check=True)
        assert len(list_windows(base, 1)) == 1
        assert said.read_text() == "/state of mine\n"
    finally:
        subprocess.run([*base, "kill-server"], check=False)


def list_windows(base: list[str], count: int) -> list[str]:
    """Return the names of the windows as soon as there are `count`."""
    deadline = time.monotonic() + 10
    names: list[str] = []
    while time.monotonic() < deadline:
        words = [*base, "list-windows", "-F", "#W"]
        names = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        if len(names) == count:
            break
        time.sleep(0.02)
    return names
