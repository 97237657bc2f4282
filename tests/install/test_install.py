"""`make install`: an installation that needs nothing of the checkout, and goes without a trace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.host.paths import TOP

COMMANDS = {"ssi", "ssi-start", "ssi-add", "ssi-rm", "ssi-stop", "ssi-ls"}


def make(target: str, prefix: Path, **variables: str) -> None:
    words = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", "-C", str(TOP), target, f"PREFIX={prefix}", *words], check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def run(command: Path, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    return subprocess.run([command, *words], env=environment, check=False, capture_output=True,
                          text=True, cwd="/")  # fmt: skip


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("installed") / "usr"
    make("install", folder)
    yield folder
    shutil.rmtree(folder)


def test_commands_are_there_and_run(prefix: Path, tmp_path: Path) -> None:
    assert {path.name for path in (prefix / "bin").iterdir()} == COMMANDS
    listed = run(prefix / "bin/ssi-ls", home=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    helped = run(prefix / "bin/ssi-start", "--help", home=tmp_path)
    assert helped.stdout.startswith("usage: ssi start ")


def test_nothing_leads_back_to_the_checkout(prefix: Path) -> None:
    for path in prefix.rglob("*"):
        if path.is_symlink():
            assert not path.resolve().is_relative_to(TOP), path
        elif path.is_file() and path.suffix != ".pyc":
            assert f"{TOP}/".encode() not in path.read_bytes(), path


def test_everybody_may_read_and_nobody_else_write(prefix: Path) -> None:
    for path in prefix.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            wanted = 0o555 if path.is_dir() else 0o444
            assert mode & wanted == wanted, path
            assert not mode & 0o022, path


def test_all_that_the_program_looks_for_is_there(prefix: Path) -> None:
    library = prefix / "lib/ssi"
    for folder in ("src", "image", "native", "bin"):
        wanted = {name for name in list_files(TOP / folder) if "__pycache__" not in name}
        assert wanted <= list_files(library / folder)


def test_a_second_time_is_no_harm_and_removes_what_is_gone(prefix: Path) -> None:
    stale = prefix / "lib/ssi/src/ssi/cli/teleport.py"
    stale.touch()
    make("install", prefix)
    assert not stale.exists()


def test_destdir_stands_before_everything_and_is_named_nowhere(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    make("install", Path("/opt/ssi"), DESTDIR=str(stage))
    assert {path.name for path in (stage / "opt/ssi/bin").iterdir()} == COMMANDS
    assert [path.name for path in stage.iterdir()] == ["opt"]
    moved = tmp_path / "moved"
    stage.rename(moved)
    assert run(moved / "opt/ssi/bin/ssi", "ls", home=tmp_path).returncode == 0
    make("uninstall", Path("/opt/ssi"), DESTDIR=str(moved))
    assert list_files(moved) == set()


@pytest.mark.skipif(os.getuid() != 0, reason="trying out another user needs root")
def test_another_user_may_run_it(prefix: Path) -> None:
    parents = [folder for folder in prefix.parents if folder.stat().st_uid == 0]
    closed = [folder for folder in parents if not folder.stat().st_mode & 0o001]
    for folder in closed:
        folder.chmod(0o711)
    done = subprocess.run(
        [prefix / "bin/ssi", "--help"], user="nobody", group="nogroup", extra_groups=[],
        check=False, capture_output=True, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
