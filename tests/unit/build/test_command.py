"""Running tools: what they say, what is missing, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from ssi.common.errors import BuildError
from ssi.host.build.command import Command, require_tools, run
from ssi.host.uml.process import group_members


def test_lines_are_heard(tmp_path: Path) -> None:
    heard: list[str] = []
    command = Command(["sh", "-c", "echo a; echo b >&2"], log=tmp_path / "log")
    assert run(command, heard.append) == "a\nb\n"
    assert heard == ["a", "b"]
    assert (tmp_path / "log").read_text() == "a\nb\n"


def test_failure_shows_the_end() -> None:
    with pytest.raises(BuildError, match=r"sh failed with status 3:\n  why$"):
        run(Command(["sh", "-c", "echo why; exit 3"]))


def test_full_disk_is_recognised() -> None:
    with pytest.raises(BuildError, match="no room left"):
        run(Command(["sh", "-c", "echo 'write: No space left on device'; exit 1"]))


def test_missing_tools_name_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.host.build.command.system_path", lambda: "/nowhere")
    with pytest.raises(BuildError, match="not installed: xz, newuidmap") as caught:
        require_tools("xz", "newuidmap")
    assert caught.value.hint == "apt-get install uidmap xz-utils"


@pytest.mark.parametrize("script", ["sleep 600 & echo $$; wait", "sleep 600 & echo $$; exit 0"])
def test_nothing_is_left_behind(script: str) -> None:
    groups: list[int] = []

    def interrupt(line: str) -> None:
        groups.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Command(["sh", "-c", script]), interrupt)
    assert groups
    assert group_members(groups[0]) == []


def test_a_signal_while_it_is_quiet() -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(Command(["sleep", "600"]))
    timer.join()
