"""Artifacts: when they are made again, why, and what an interruption leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssi.common.errors import BuildError
from ssi.host.build.options import Report, Silence
from ssi.host.build.plan import Artifact, ensure, explain_stale, staged
from ssi.host.paths import TOP


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ssi"


class Made:
    """Counts what is built."""

    def __init__(self) -> None:
        self.times = 0
        self.fail: BaseException | None = None
        self.text = "made"

    def __call__(self, work: Path, _: Report) -> Path:
        self.times += 1
        (work / "half").write_text("kept for the next time")
        path = work / "file"
        path.write_text(self.text)
        if self.fail:
            raise self.fail
        return path


def artifact(
    build: Callable[[Path, Report], Path], *needs: Artifact, name: str = "thing", **inputs: str
) -> Artifact:
    return Artifact(name, f"{name}/file", inputs, build, needs)


def test_is_made_once() -> None:
    build = Made()
    for _ in range(2):
        assert ensure(artifact(build, a="1"), Silence()).read_text() == "made"
    assert build.times == 1


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [({"a": "2"}, "a changed"), ({"a": "1", "b": "1"}, "b is new"), ({}, "a is gone")],
)
def test_says_why(inputs: dict[str, str], reason: str) -> None:
    build = Made()
    assert explain_stale(artifact(build, a="1")) == "not built yet"
    ensure(artifact(build, a="1"), Silence())
    assert explain_stale(artifact(build, a="1")) is None
    assert explain_stale(artifact(build, **inputs)) == reason
    ensure(artifact(build, **inputs), Silence())
    assert build.times == 2


def test_what_it_needs_counts_by_contents() -> None:
    inner, outer = Made(), Made()

    def plan(version: str) -> Artifact:
        return artifact(outer, artifact(inner, name="part", v=version), name="whole")

    ensure(plan("1"), Silence())
    ensure(plan("2"), Silence())
    assert (inner.times, outer.times) == (2, 1), "the part came out the same"
    inner.text = "another"
    assert explain_stale(plan("3")) == "part changed"
    ensure(plan("3"), Silence())
    assert (inner.times, outer.times) == (3, 2)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), BuildError("no")])
def test_an_interrupted_build_publishes_nothing(interruption: BaseException) -> None:
    build = Made()
    ensure(artifact(build, a="1"), Silence())
    build.fail, build.text = interruption, "broken"
    with pytest.raises(type(interruption)):
        ensure(artifact(build, a="2"), Silence())
    found = artifact(build, a="2")
    assert found.path.read_text() == "made"
    assert explain_stale(found) == "a changed"
    assert (found.work / "half").exists(), "the next build goes on with it"


def test_full_disk_has_a_remedy() -> None:
    build = Made()
    build.fail = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(BuildError, match="no room left") as caught:
        ensure(artifact(build), Silence())
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_unreadable_record_means_stale() -> None:
    build = Made()
    made = artifact(build)
    ensure(made, Silence())
    for text in ("", "[]", "{}", '{"format": 1, "inputs": [], "contents": ""}'):
        made.record.write_text(text)
        assert explain_stale(made) == "unknown what it was built from"


BUILD = """
from ssi.host.build.options import Silence
from ssi.host.build.plan import Artifact, ensure

def append(work, report):
    log = work / "log"
    with log.open("a") as file:
        file.write("built\\n")
    path = work / "file"
    path.write_text(log.read_text())
    return path

print(ensure(Artifact("thing", "thing/file", {}, append), Silence()).read_text(), end="")
"""


def test_two_at_once_build_once(cache: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(TOP / "src"), "XDG_CACHE_HOME": str(cache.parent)}
    argv = [sys.executable, "-c", BUILD]
    processes = [
        subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == ["built\n"] * 3


def test_staged_keeps_the_old_one_until_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), staged(path) as partial:
        partial.with_name("missing").rename(partial)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"
    with staged(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
