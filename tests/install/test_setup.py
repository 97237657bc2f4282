"""`make setup`: asks for root only for what is missing, and says what for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ssi.host.packages import LIST
from ssi.host.paths import TOP

SCRIPT = TOP / "tools/install-packages"

TOOLS = {
    # Knows all packages but these.
    "dpkg-query": 'for p; do :; done; case $p in bc|xterm|flex) echo "not-installed";; '
    '*) printf installed;; esac',
    "apt-get": 'echo "apt-get $*" >>"$LOG"',
    "id": 'echo "$FAKE_UID"',
}  # fmt: skip


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder with programs that only write down what they are asked for."""
    for name, script in TOOLS.items():
        put(tmp_path / name, script)
    return tmp_path


def put(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(tools: Path, *, uid: int, path: str = "/usr/bin:/bin") -> tuple[int, str, list[str]]:
    log = tools / "log"
    environment = {"PATH": f"{tools}:{path}", "LOG": str(log), "FAKE_UID": str(uid)}
    done = subprocess.run(["sh", SCRIPT, LIST], check=False, text=True, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    asked = log.read_text().splitlines() if log.exists() else []
    return done.returncode, done.stdout, asked


def test_root_installs_what_is_missing_and_says_why(tools: Path) -> None:
    status, said, asked = run(tools, uid=0)
    assert status == 0
    assert len(asked) == 2
    assert asked[0].endswith(" update")
    assert asked[1].endswith("install -y --no-install-recommends flex bc")
    assert "the kernel computes its time constants with it" in said
    # A matter of taste is nobody's need.
    assert "xterm" not in said
    assert "sudo" not in said


def test_another_user_is_told_what_sudo_is_for(tools: Path) -> None:
    put(tools / "sudo", 'echo "sudo $*" >>"$LOG"; exec "$@"')
    status, said, asked = run(tools, uid=1000)
    assert status == 0
    assert "sudo is used for one thing" in said
    assert [line.split()[0] for line in asked] == ["sudo", "apt-get", "sudo", "apt-get"]


def test_without_sudo_the_command_for_root_is_told(tools: Path) -> None:
    only = tools / "only"
    only.mkdir()
    for name in ("awk", "sh", "env"):
        (only / name).symlink_to(f"/usr/bin/{name}")
    status, said, asked = run(tools, uid=1000, path=str(only))
    assert status == 1
    assert said.endswith("As root, run: apt-get install flex bc\n")
    assert asked == []


def test_nothing_is_said_when_nothing_is_missing(tools: Path) -> None:
    put(tools / "dpkg-query", "printf installed")
    assert run(tools, uid=1000) == (0, "", [])


def test_another_distribution_is_sent_to_the_doctor(tools: Path) -> None:
    (tools / "dpkg-query").unlink()
    only = tools / "only"
    only.mkdir()
    (only / "sh").symlink_to("/usr/bin/sh")
    status, said, _ = run(tools, uid=1000, path=str(only))
    assert status == 0
    assert "ssi doctor" in said


def test_requirements_are_those_of_the_project() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", TOP / "tools/requirements.py", TOP / "pyproject.toml", "dev"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    names = [line.partition(">")[0] for line in done.stdout.splitlines()]
    assert {"rich", "shtab", "pytest", "mypy"} <= set(names)
    assert os.linesep.join(names).islower()
