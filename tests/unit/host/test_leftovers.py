"""What a crash left goes; what somebody uses, or what is not ours, stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssi.common.errors import SsiError
from ssi.host.cluster.launch import locked
from ssi.host.cluster.leftovers import find_orphans, forget_kept, remove_leftovers
from ssi.host.cluster.spec import ClusterPlace

PLACE = ClusterPlace(10001)
SLEEP = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    short = tmp_path_factory.mktemp("x")  # sockets have short paths
    monkeypatch.setattr("ssi.host.cluster.spec.runtime_dir", lambda: short / "run")
    monkeypatch.setattr("ssi.host.cluster.spec.state_dir", lambda: short / "state")


def make(place: ClusterPlace, *, groups: str = "") -> None:
    place.runtime.mkdir(parents=True)
    place.logs.mkdir(parents=True)
    place.root.write_text("the root")
    place.lock.touch()
    place.groups.write_text(groups)


def remove(*, force: bool = False) -> list[str]:
    return [removed.what for removed in remove_leftovers(force=force)]


@contextmanager
def process(*words: str, name: str | None = None, session: bool = True) -> Iterator[int]:
    """Run a process that looks like a node's kernel, or like nothing of ours; yields its PID."""
    script = SLEEP
    if name:  # PR_SET_NAME
        script = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0); print(); {SLEEP}"
    script = "import sys; print(flush=True); " + script
    running = subprocess.Popen(
        [sys.executable, "-c", script, *words], start_new_session=session, stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    try:
        running.stdout.readline()
        yield running.pid
    finally:
        running.kill()
        running.communicate()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def uml_word(place: ClusterPlace) -> str:
    return f"uml_dir={place.runtime}/uml"


def test_a_crashed_cluster_loses_its_processes_and_sockets_and_keeps_its_root() -> None:
    with process("mem=160M", uml_word(PLACE)) as pid:
        make(PLACE, groups=f"{pid}\n999999999\n")
        removed = remove()
        assert not is_alive(pid)
    assert removed == [f"process group {pid} of a node", f"run-time folder {PLACE.runtime}"]
    assert not PLACE.runtime.exists()
    assert PLACE.root.read_text() == "the root"
    assert remove() == []


def test_a_running_cluster_is_left_alone() -> None:
    with process(uml_word(PLACE)) as pid:
        make(PLACE, groups=f"{pid}\n")
        with locked(PLACE):
            assert remove() == []
        assert is_alive(pid)
        assert PLACE.runtime.exists()


def test_a_cluster_that_answers_is_left_alone_even_without_its_lock() -> None:
    make(PLACE)
    PLACE.lock.unlink()
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(PLACE.control))
        control.listen()
        assert remove() == []
    assert PLACE.runtime.exists()
    assert remove()


@pytest.mark.parametrize("words", [[], ["uml_dir=/somewhere/else/uml"]])
def test_a_group_of_the_same_number_that_is_somebody_elses_lives(words: list[str]) -> None:
    with process(*words) as pid:
        make(PLACE, groups=f"{pid}\n")
        assert remove() == [f"run-time folder {PLACE.runtime}"]
        assert is_alive(pid)


def test_a_process_that_leads_no_session_lives() -> None:
    with process(uml_word(PLACE), session=False) as pid:
        make(PLACE, groups=f"{pid}\n1\n0\n-1\n")
        assert find_orphans(PLACE) == set()
        remove()
        assert is_alive(pid)


def test_a_group_of_another_running_cluster_lives() -> None:
    other = ClusterPlace(10002)
    with process(uml_word(PLACE)) as pid:
        make(PLACE, groups=f"{pid}\n")
        make(other, groups=f"{pid}\n")
        with locked(other):
            remove()
            assert is_alive(pid)


def test_stubs_whose_kernel_is_dead_are_ended() -> None:
    script = (
        "import ctypes, os, sys\n"
        "if os.fork() == 0:\n"
        "    ctypes.CDLL(None).prctl(15, b'uml-userspace', 0, 0, 0)\n"
        "    print(os.getpid(), flush=True)\n"
        "    import time; time.sleep(600)\n"
        "os._exit(0)\n"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert kernel.stdout is not None
    stub = int(kernel.stdout.readline())
    try:
        kernel.wait(timeout=30)
        make(PLACE, groups=f"{kernel.pid}\n")
        assert f"process group {kernel.pid} of a node" in remove()
    finally:
        if Path(f"/proc/{stub}").exists() and is_alive(stub):
            os.kill(stub, signal.SIGKILL)
        kernel.stdout.close()


def test_unfinished_files_and_starts_go() -> None:
    make(PLACE)
    (PLACE.state / "root.img.partial").touch()
    began = ClusterPlace(10002)
    began.logs.mkdir(parents=True)
    (began.state / "root.img.partial").touch()
    remove()
    assert not list(PLACE.state.glob("*.partial"))
    assert PLACE.root.exists()
    assert not began.state.exists()


def test_a_copy_under_way_is_left_alone() -> None:
    PLACE.logs.mkdir(parents=True)
    (PLACE.state / "root.img.partial").touch()
    with locked(PLACE):
        assert remove() == []
    assert (PLACE.state / "root.img.partial").exists()


def test_kept_roots_are_forgotten_on_request() -> None:
    other = ClusterPlace(10002)
    make(PLACE)
    make(other)
    assert list(forget_kept(10001))
    assert not PLACE.state.exists()
    assert other.state.exists()
    assert list(forget_kept(None))
    assert not other.state.exists()


def test_the_root_of_a_running_cluster_is_not_forgotten() -> None:
    make(PLACE)
    with locked(PLACE):
        assert list(forget_kept(None)) == []
        with pytest.raises(SsiError, match="is running"):
            list(forget_kept(10001))
    assert PLACE.root.exists()


def test_a_cluster_that_kept_nothing_is_an_error() -> None:
    with pytest.raises(SsiError, match="kept nothing"):
        list(forget_kept(10005))


def test_force_ends_a_supervisor_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.host.cluster.leftovers.ANSWERS_WITHIN_S", 0.3)
    make(PLACE)
    with locked(PLACE) as lock:
        words = ["-c", SLEEP, "-m", "ssi.host.cluster.guard", "10001", str(lock)]
        hung = subprocess.Popen([sys.executable, *words], pass_fds=[lock])
    try:
        assert remove() == []
        assert remove(force=True) == [
            f"supervisor process {hung.pid}, which did not answer",
            f"run-time folder {PLACE.runtime}",
        ]
        assert hung.wait(timeout=10) == -signal.SIGKILL
    finally:
        hung.kill()
        hung.wait()


def test_force_leaves_others_who_hold_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.host.cluster.leftovers.ANSWERS_WITHIN_S", 0.1)
    make(PLACE)
    with locked(PLACE):
        assert remove(force=True) == []
    assert PLACE.runtime.exists()
