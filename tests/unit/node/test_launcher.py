"""The launcher: what it starts, what it keeps, and what does not harm it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ssi.host import native
from ssi.host.paths import NATIVE
from ssi.node.launcher import LISTENER, Launcher, Program
from support.clusters import is_root

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "WORD": "two words"}
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher, compiled."""
    output = tmp_path_factory.mktemp("launcher") / "launcher"
    native.compile_program(NATIVE / "launcher.c", output, native.WARNINGS)
    return output


def can_connect(path: Path) -> bool:
    """Tell whether somebody listens there; that the file exists is not enough."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        return connection.connect_ex(os.fspath(path)) == 0


@pytest.fixture
def path(program: Path, tmp_path: Path) -> Iterator[Path]:
    """The socket of a running launcher."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare: apt-get install util-linux")
    path = tmp_path / "socket"
    # As its user, it is root in a namespace with users of its own.
    own = [] if is_root() else ["--user", "--map-root-user", "--map-auto"]
    words = ["unshare", *own, "--mount", "--kill-child", "--", os.fspath(program)]
    process = subprocess.Popen([*words, "1", "/proc/self/ns/mnt", os.fspath(path)])
    deadline = time.monotonic() + WITHIN_S
    while not can_connect(path):
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield path
    process.kill()
    process.wait()


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Launcher]:
    """A daemon's side."""
    launcher = Launcher(1, path)
    running = asyncio.create_task(launcher.run())
    await launcher.wait_connected()
    try:
        yield launcher
    finally:
        running.cancel()
        launcher.close()


def play(path: Path, scene: Callable[[Launcher], Awaitable[None]]) -> None:
    """Run `scene` with a daemon's side."""

    async def run() -> None:
        async with asyncio.timeout(WITHIN_S), connected(path) as launcher:
            await scene(launcher)

    asyncio.run(run())


async def run_shell(launcher: Launcher, script: str, **wishes: object) -> tuple[str, int]:
    """Run a script; return what it printed, and its wait status."""
    read_end, write_end = os.pipe()
    key = f"shell-{time.monotonic_ns()}"
    program = Program(["sh", "-c", script], ENVIRONMENT, **wishes)  # type: ignore[arg-type]
    try:
        await launcher.start(key, program, [read_end, write_end, write_end])
    finally:
        os.close(write_end)
    status = await launcher.wait(key)
    launcher.forget(key)
    said = os.read(read_end, 65536)  # all that a small script has left in the pipe
    os.close(read_end)
    return said.decode(), status


def test_what_is_started_is_as_it_was_wished(path: Path, tmp_path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        script = (
            'echo "$WORD"; umask; pwd; nice; ls /proc/self/fd | wc -l; ps -o sid= -p $$; echo $$'
        )
        said, status = await run_shell(
            launcher, script, umask=0o027, cwd=os.fspath(tmp_path), nice=3
        )
        *words, session, pid = said.split("\n")[:-1]
        # The fourth descriptor is the folder that ls reads.
        assert words == ["two words", "0027", os.fspath(tmp_path), "3", "4"]
        assert session.strip() == pid
        assert status == 0
        assert await run_shell(launcher, "exit 7") == ("", 7 << 8)
        assert (await run_shell(launcher, "kill -9 $$"))[1] == signal.SIGKILL

    play(path, scene)


def test_signals_are_as_fresh_processes_have_them(path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        said, _ = await run_shell(launcher, "exec cat /proc/self/status")
        lines = [line.split() for line in said.splitlines()]
        signals = {line[0]: line[1] for line in lines if line[0].startswith("Sig")}
        assert {signals[key] for key in ("SigBlk:", "SigIgn:", "SigCgt:")} == {"0" * 16}

    play(path, scene)


def test_what_cannot_be_started_says_why(path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        for program, number, what in (
            (Program(["/nonexistent"], {}), errno.ENOENT, "/nonexistent"),
            (Program(["/etc/passwd"], {}), errno.EACCES, "/etc/passwd"),
            (Program(["/bin/true"], {}, cwd="/nonexistent"), errno.ENOENT, "/nonexistent"),
        ):
            with pytest.raises(OSError, match=what) as caught:
                await launcher.start("bad", program, [0, 1, 2])
            assert caught.value.errno == number
            assert launcher.keys == set()

    play(path, scene)


def test_the_next_daemon_hears_of_everything(path: Path) -> None:
    async def first(launcher: Launcher) -> None:
        await launcher.start("ends", Program(["false"], ENVIRONMENT), [0, 1, 2])
        await launcher.wait("ends")
        await launcher.start("runs", Program(["sleep", "1000"], ENVIRONMENT), [0, 1, 2])

    async def second(launcher: Launcher) -> None:
        assert launcher.keys == {"ends", "runs"}
        assert await launcher.wait("ends") == 1 << 8
        pid = launcher.pid_of("runs")
        assert pid
        # It is not started a second time.
        assert await launcher.start("runs", Program(["false"], ENVIRONMENT), [0, 1, 2]) == pid
        os.kill(pid, signal.SIGTERM)
        assert await launcher.wait("runs") == signal.SIGTERM
        launcher.forget("runs")
        launcher.forget("ends")

    async def third(launcher: Launcher) -> None:
        assert launcher.keys == set()

    for scene in (first, second, third):
        play(path, scene)


def test_nonsense_ends_the_connection_and_nothing_else(path: Path) -> None:
    for nonsense in (b"", b"x", b"\0" * 68, b"\xff" * 4096, b"\x01\0\0\0" + b"k" * 64):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
            daemon.connect(os.fspath(path))
            daemon.send(nonsense)

    async def scene(launcher: Launcher) -> None:
        assert await run_shell(launcher, "echo fine") == ("fine\n", 0)

    play(path, scene)


def test_the_filter_tells_local_from_foreign(path: Path) -> None:
    """Nobody listens here: what is held would wait for ever, what is local does not."""
    last = (2 << 15) - 1

    async def scene(launcher: Launcher) -> None:
        script = f"kill -0 $$ && echo own; kill -0 {last} 2>/dev/null || echo none; kill -0 1"
        assert (await run_shell(launcher, script))[0].split()[:2] == ["own", "none"]

    play(path, scene)


def test_what_it_keeps_is_handed_to_the_next_daemon(path: Path) -> None:
    async def keep(launcher: Launcher) -> None:
        os.close(launcher.kept.pop(LISTENER))
        for word in (b"old", b"new"):
            read_end, write_end = os.pipe()
            os.write(write_end, word)
            launcher.keep("pipe", read_end)
            os.close(read_end)
            os.close(write_end)

    async def find(launcher: Launcher) -> None:
        assert set(launcher.kept) == {LISTENER, "pipe"}
        assert os.read(launcher.kept["pipe"], 10) == b"new"

    play(path, keep)
    play(path, find)


def test_stopping_and_going_on_is_told_and_remembered(path: Path) -> None:
    ends = os.pipe()

    async def stop(launcher: Launcher) -> None:
        said: asyncio.Queue[int] = asyncio.Queue()
        launcher.on_change = lambda _key, status: said.put_nowait(status)
        program = Program(["sh", "-c", "read x; exit 3"], ENVIRONMENT)
        os.kill(await launcher.start("it", program, [ends[0]]), signal.SIGSTOP)
        assert os.WSTOPSIG(await said.get()) == signal.SIGSTOP

    async def go_on(launcher: Launcher) -> None:
        said: asyncio.Queue[int] = asyncio.Queue()
        launcher.on_change = lambda _key, status: said.put_nowait(status)
        launcher.close()
        await launcher.wait_connected()
        assert os.WSTOPSIG(await said.get()) == signal.SIGSTOP
        os.kill(launcher.pid_of("it") or 0, signal.SIGCONT)
        assert os.WIFCONTINUED(await said.get())
        os.write(ends[1], b"\n")
        assert os.waitstatus_to_exitcode(await said.get()) == 3

    play(path, stop)
    play(path, go_on)
    for end in ends:
        os.close(end)


def test_a_stand_in_is_a_parent_in_a_session(path: Path, tmp_path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        place = tmp_path / "stand-in"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(place))
            listener.listen()
            pid = await launcher.start("stand-in", Program([], {}), [listener.fileno()])
        stand_in = Launcher(1, place)
        await stand_in.connect()
        assert stand_in.pid == pid
        assert not stand_in.kept
        said, _ = await run_shell(
            stand_in, "echo $PPID; ps -o sid=,pgid= -p $$; echo $$", session=False, group=0
        )
        parent, session, group, own = said.split()
        assert (parent, session, group) == (str(pid), str(pid), own)
        said, _ = await run_shell(stand_in, "ps -o pgid= -p $$", session=False, group=pid)
        assert said.split() == [str(pid)]
        stand_in.end()
        assert await launcher.wait("stand-in") == 0

    play(path, scene)


def test_the_new_process_is_as_its_wishes_say(path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        limits = [resource.getrlimit(number) for number in range(16)]
        limits[resource.RLIMIT_NOFILE] = (50, 60)
        said, _ = await run_shell(
            launcher, "ulimit -n; exec cat /proc/self/status", limits=limits, ignored=1 << 1,
            blocked=1 << 9, no_new_privileges=True,
        )  # fmt: skip
        first, *lines = said.splitlines()
        fields = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
        assert first == "50"
        assert int(fields["SigIgn"], 16) == 1 << 1
        assert int(fields["SigBlk"], 16) == 1 << 9
        assert fields["NoNewPrivs"] == "1"

    play(path, scene)


def test_descriptors_have_their_numbers_and_no_others_are_open(path: Path) -> None:
    async def scene(launcher: Launcher) -> None:
        read_end, write_end = os.pipe()
        program = Program(["sh", "-c", "ls /proc/self/fd >&7"], ENVIRONMENT)
        await launcher.start("numbers", program, [write_end, write_end], [7, 12])
        os.close(write_end)
        assert os.waitstatus_to_exitcode(await launcher.wait("numbers")) == 0
        said = os.read(read_end, 1000).split()
        os.close(read_end)
        # ls has the pipe as its output, and reads the folder.
        assert said == [b"0", b"1", b"12", b"7"]

    play(path, scene)
