"""The C side of the local socket, and ssi.api: against a real server."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssi import api
from ssi.common.errors import TimedOut, UsageError
from ssi.host import native
from ssi.host.build import compiled
from ssi.host.paths import NATIVE
from ssi.node.local import Output, Request, Signal
from support.local import Serving, SmallCluster, serving

PATIENCE_MS = 1500


async def tell(request: Request, output: Output) -> int:
    """Write what the request is."""
    await output.write(f"{request.argv} {request.cwd} {request.umask:o} {request.pid}\n")
    await output.write(repr(request.environment.get("SSI_TEST")))
    await output.error("on the other stream\n")
    return 42


async def onall(request: Request, output: Output) -> int:
    """Write what is given; say which signal came."""
    while given := await request.receive():
        if isinstance(given, Signal):
            await output.error(f"signal {given.number}\n")
            return 128 + given.number
        await output.write(given)
    return 5


class Programs:
    """Compiled for a folder of the test's."""

    def __init__(self, top: Path) -> None:
        self.folder = top / "ssi"
        self.top = top
        flags = (
            f'-DLOCAL_FOLDER="{self.folder}"', f"-DLOCAL_SERVER_UID={os.getuid()}",
            f"-DLOCAL_PATIENCE_MS={PATIENCE_MS}", *native.WARNINGS,
        )  # fmt: skip
        files = compiled.compile_products(top, flags)
        self.command = files[compiled.COMMAND]
        self.library = files["usr/lib/libssi.so.1"]
        for name in ("tell", "onall", "cluster", "clusternode_num", "clusternode_shutdown"):
            (top / name).symlink_to(self.command)

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401
        """Run a command."""
        argv = (f"{self.top}/{argv[0]}", *argv[1:])
        return subprocess.run(argv, capture_output=True, timeout=20, check=False, **options)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.top / argv[0], *argv[1:]], stdin=pipe, stdout=pipe, stderr=pipe
        )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def folder(programs: Programs) -> Iterator[Path]:
    yield programs.folder
    shutil.rmtree(programs.folder)


@pytest.fixture
def running(folder: Path) -> Iterator[Serving]:
    with serving(folder, tell=tell, onall=onall) as found:
        yield found


@pytest.mark.usefixtures("running")
def test_a_command_passes_on_who_and_where_it_is(programs: Programs, tmp_path: Path) -> None:
    done = programs.run("tell", "a", "b c", "", cwd=tmp_path, env={"SSI_TEST": "ü"}, umask=0o31)
    assert done.returncode == 42
    first, second = done.stdout.decode().splitlines()
    assert first.startswith(f"('{programs.top}/tell', 'a', 'b c', '') {tmp_path} 31 ")
    assert second == "'ü'"
    assert done.stderr == b"on the other stream\n"


@pytest.mark.usefixtures("running")
def test_a_command_is_also_called_by_its_first_word(programs: Programs) -> None:
    assert programs.run("command", "clusternode_num").stdout == b"1\n"


@pytest.mark.usefixtures("running")
def test_a_folder_that_is_gone(programs: Programs, tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0"'
    done = subprocess.run(
        ["sh", "-c", script, programs.top / "tell"], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"tell',)  22 " in done.stdout


@pytest.mark.usefixtures("running")
def test_input_is_relayed_both_ways(programs: Programs) -> None:
    data = os.urandom(2_000_000)
    done = programs.run("onall", input=data)
    assert (done.returncode, done.stderr) == (5, b"")
    assert done.stdout == data


@pytest.mark.usefixtures("running")
def test_without_standard_input(programs: Programs) -> None:
    done = subprocess.run(["sh", "-c", '"$0" <&-', programs.top / "onall"], check=False)
    assert done.returncode == 5


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_relayed(programs: Programs, number: int) -> None:
    with programs.start("onall") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert process.stderr
        assert process.stderr.read() == b"signal %d\n" % number


def test_a_signal_is_relayed_while_nobody_reads_the_output(
    programs: Programs, running: Serving
) -> None:
    ended = asyncio.Event()

    async def pour(request: Request, output: Output) -> int:
        async def write() -> None:
            while True:
                await output.write(b"x" * 10_000)

        pouring = asyncio.create_task(write())
        given = await request.receive()
        pouring.cancel()
        ended.set()
        return 0 if given == Signal(signal.SIGINT) else 1

    running.server.serve("onall", pour)
    with subprocess.Popen(
        [programs.top / "onall"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.read(1)
        time.sleep(0.2)  # until all on the way is full, which nothing tells
        process.send_signal(signal.SIGINT)
        running.wait(asyncio.wait_for(ended.wait(), 10))
        process.stdout.read()
        assert process.wait(10) == 0


@pytest.mark.usefixtures("running")
def test_ignored_signals_stay_ignored(programs: Programs) -> None:
    script = 'trap "" INT; exec "$0"'
    with subprocess.Popen(
        ["sh", "-c", script, programs.top / "onall"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.wait(10) == 5


def test_no_cluster(programs: Programs) -> None:
    done = programs.run("clusternode_num")
    assert done.returncode == 1
    assert b"no node of a cluster" in done.stderr


def test_who_is_not_the_daemon_is_told_nothing(
    tmp_path_factory: pytest.TempPathFactory, running: Serving
) -> None:
    flags = (f'-DLOCAL_FOLDER="{running.folder}"', f"-DLOCAL_SERVER_UID={os.getuid() + 1}")
    files = compiled.compile_products(tmp_path_factory.mktemp("other"), flags)
    done = subprocess.run(
        [files[compiled.COMMAND], "tell"], capture_output=True, check=False, timeout=10
    )
    assert (done.returncode, done.stdout) == (69, b"")
    assert b"is not the node daemon" in done.stderr


@pytest.mark.usefixtures("running")
def test_too_large_an_environment(programs: Programs) -> None:
    done = programs.run("tell", env={f"V{i}": "x" * 100_000 for i in range(3)})
    assert done.returncode == 1
    assert b"over 262144 bytes" in done.stderr


@pytest.mark.usefixtures("running")
def test_output_that_cannot_be_written(programs: Programs) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [programs.top / "cluster"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr


def test_a_daemon_that_is_not_there_yet_is_waited_for(programs: Programs, folder: Path) -> None:
    folder.mkdir()
    with programs.start("clusternode_shutdown") as process:
        time.sleep(0.1)
        with serving(folder, clusternode_shutdown=tell):
            assert process.wait(10) == 42
    before = time.monotonic()
    done = programs.run("tell")
    assert done.returncode == 69
    assert time.monotonic() - before > PATIENCE_MS / 1000
    assert b"does not answer" in done.stderr


@pytest.mark.parametrize(
    ("name", "status"), [("clusternode_shutdown", 69), ("clusternode_num", 42)]
)
def test_a_daemon_that_ends_is_asked_again_for_what_changes_nothing(
    programs: Programs, folder: Path, name: str, status: int
) -> None:
    asked = threading.Event()

    async def never(_request: Request, _output: Output) -> int:
        asked.set()
        await asyncio.sleep(600)
        return 0

    with serving(folder, None, **{name: never}):
        process = programs.start(name)
        assert asked.wait(10)
    with process, serving(folder, None, **{name: tell}):
        assert process.wait(10) == status
        assert process.stderr
        said = process.stderr.read()
    assert (b"has ended" in said) == (status == 69)


class TransInfo(ctypes.Structure):
    """cluster_transinfo_t."""

    _fields_ = (
        ("transid", ctypes.c_uint64), ("time_us", ctypes.c_int64), ("view", ctypes.c_uint64),
        ("node", ctypes.c_uint32), ("was", ctypes.c_uint), ("now", ctypes.c_uint),
        ("cause", ctypes.c_char * 64),
    )  # fmt: skip


class NodeInfo(ctypes.Structure):
    """clusternode_info_t."""

    _fields_ = (
        ("node", ctypes.c_uint32), ("state", ctypes.c_uint), ("member", ctypes.c_int),
        ("address", ctypes.c_char * 48), ("last", TransInfo),
    )  # fmt: skip


class SockAddr(ctypes.Structure):
    """sockaddr_in."""

    _fields_ = (
        ("family", ctypes.c_uint16), ("port", ctypes.c_uint16), ("address", ctypes.c_ubyte * 4),
        ("zero", ctypes.c_ubyte * 8),
    )  # fmt: skip


UP, SHUTDOWN, DOWN = 3, 4, 8
THIS, NEXT, PREV, FIRST, LAST = range(5)


@pytest.fixture(scope="module")
def library(programs: Programs) -> ctypes.CDLL:
    loaded = ctypes.CDLL(os.fspath(programs.library), use_errno=True)
    loaded.cluster_name.restype = ctypes.c_char_p
    loaded.cluster_events_open.argtypes = [ctypes.c_uint64]
    return loaded


def test_library_knows_who_is_there(library: ctypes.CDLL, running: Serving) -> None:
    running.call(lambda: running.cluster.move(2, "DOWN", "lost"))
    transid = ctypes.c_uint64()
    nodes = (ctypes.c_uint32 * 128)(*[99] * 128)
    assert library.cluster_membership(ctypes.byref(transid), 128, nodes) == 1
    assert (transid.value, nodes[0], nodes[1]) == (3, 1, 0)
    assert library.clusternode_num() == 1
    assert library.cluster_maxnodes() == 127
    assert library.cluster_name() == b"small"
    assert library.cluster_ssiconfig() == 1
    assert [library.clusternode_avail(node) for node in (1, 2, 3)] == [1, 0, 0]


@pytest.mark.usefixtures("running")
def test_library_refuses_what_is_wrong(library: ctypes.CDLL) -> None:
    number, info = ctypes.c_uint64(), NodeInfo()
    cases: list[tuple[Callable[[], object], int]] = [
        (lambda: library.clusternode_avail(0), errno.EINVAL),
        (lambda: library.ssi_migrate(0), errno.EINVAL),
        # Nobody has told this machine's /proc of nodes.
        (lambda: library.migrate(2), errno.ENOSYS),
        (lambda: library.clusternode_avail(128), errno.EINVAL),
        (lambda: library.clusternode_info(1, 0, ctypes.byref(info)), errno.EINVAL),
        (lambda: library.clusternode_info(1, 8, None), errno.EINVAL),
        (lambda: library.cluster_membership(ctypes.byref(number), 2, (ctypes.c_uint32 * 2)()),
         errno.ERANGE),
        (lambda: library.cluster_membership(ctypes.byref(number), 0, (ctypes.c_uint32 * 2)()),
         errno.EINVAL),
        (lambda: library.cluster_detailedtransition(5, ctypes.byref(number), 8, None),
         errno.EINVAL),
        (lambda: library.clusternode_setinfo(1, 2, 8, ctypes.byref(info)), errno.EINVAL),
        (lambda: library.clusternode_setinfo(1, 1, 8, ctypes.byref(info)), errno.EINVAL),
    ]  # fmt: skip
    for call, error in cases:
        assert call() == -1
        assert ctypes.get_errno() == error


def test_library_where_there_is_no_cluster(library: ctypes.CDLL) -> None:
    assert library.clusternode_num() == -1
    assert ctypes.get_errno() == errno.ENOSYS
    assert library.cluster_name() is None
    assert library.cluster_ssiconfig() == 0


def test_library_tells_of_a_node(library: ctypes.CDLL, running: Serving) -> None:
    running.call(lambda: running.cluster.move(2, "DOWN", "lost " * 30))
    info = NodeInfo()
    assert library.clusternode_info(2, ctypes.sizeof(info), ctypes.byref(info)) == 0
    assert (info.node, info.state, info.member, info.address) == (2, DOWN, 0, b"192.168.50.2")
    last = info.last
    assert (last.transid, last.node, last.was, last.now, last.view) == (3, 2, UP, DOWN, 3)
    assert last.time_us == 1_700_000_003_250_000
    assert last.cause == (b"lost " * 30)[:63]


@pytest.mark.usefixtures("running")
def test_library_fills_no_more_than_there_is_room_for(library: ctypes.CDLL) -> None:
    info = NodeInfo(member=77)
    assert library.clusternode_info(1, 8, ctypes.byref(info)) == 0
    assert (info.node, info.state, info.member) == (1, UP, 77)


@pytest.mark.usefixtures("running")
def test_library_finds_an_address(library: ctypes.CDLL) -> None:
    found, length = SockAddr(), ctypes.c_int(ctypes.sizeof(SockAddr))
    assert library.clusternode_get_ip(7, ctypes.byref(found), ctypes.byref(length)) == 0
    assert (found.family, bytes(found.address), length.value) == (2, bytes([192, 168, 50, 7]), 16)


def test_library_changes_a_state(library: ctypes.CDLL, running: Serving) -> None:
    info = NodeInfo(state=SHUTDOWN)
    done = library.clusternode_setinfo(2, 1, ctypes.sizeof(info), ctypes.byref(info))
    if os.getuid():
        assert (done, ctypes.get_errno()) == (-1, errno.EPERM)
        return
    assert done == 0
    assert running.cluster.states[2] == "SHUTDOWN"
    running.call(lambda: running.cluster.move(2, "DOWN", "left"))
    assert library.clusternode_setinfo(2, 1, ctypes.sizeof(info), ctypes.byref(info)) == -1
    assert ctypes.get_errno() == errno.EINVAL


def test_library_goes_through_transitions(library: ctypes.CDLL, running: Serving) -> None:
    running.call(lambda: running.cluster.move(3, "COMINGUP", "boots"))
    running.call(lambda: running.cluster.move(3, "UP", "booted"))
    number, info = ctypes.c_uint64(), TransInfo()
    size = ctypes.sizeof(info)
    seen = []
    while library.cluster_transition(ctypes.byref(number), size, ctypes.byref(info)) == 1:
        seen.append((number.value, info.node))
    assert seen == [(1, 1), (2, 2), (4, 3)]

    def look(which: int, given: int) -> int | None:
        number.value = given
        found = library.cluster_detailedtransition(
            which, ctypes.byref(number), size, ctypes.byref(info)
        )
        assert found in {0, 1}
        return number.value if found else None

    assert [look(which, 2) for which in (THIS, NEXT, PREV, FIRST, LAST)] == [2, 3, 1, 1, 4]
    assert look(NEXT, 4) is None
    assert look(PREV, 1) is None


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_library_polls_events(library: ctypes.CDLL, folder: Path) -> None:
    info = TransInfo()
    with serving(folder) as running:
        descriptor = library.cluster_events_open(2)
        assert not is_readable(descriptor)
        running.call(lambda: running.cluster.move(2, "SHUTDOWN", "asked"))
        running.call(lambda: running.cluster.move(2, "DOWN", "left"))
        running.call(lambda: running.cluster.move(2, "UP", "back"))
        assert select.select([descriptor], [], [], 10)[0]
        for number in (3, 5):
            assert library.cluster_events_read(descriptor, ctypes.byref(info)) == 1
            assert (info.transid, info.node) == (number, 2)
        os.set_blocking(descriptor, False)
        assert library.cluster_events_read(descriptor, ctypes.byref(info)) == -1
        assert ctypes.get_errno() == errno.EAGAIN
    assert is_readable(descriptor)
    assert library.cluster_events_read(descriptor, ctypes.byref(info)) == 0
    os.close(descriptor)


def test_library_needs_no_new_c_library(programs: Programs) -> None:
    done = subprocess.run(
        ["objdump", "-T", programs.library], capture_output=True, text=True, check=True
    )
    words = {word.strip("()") for word in done.stdout.split() if "GLIBC_" in word}
    versions = {tuple(map(int, word.removeprefix("GLIBC_").split("."))) for word in words}
    assert max(versions) <= (2, 34), "a root may have a C library older than this machine's"


def test_header_suits_c_and_is_all_there(programs: Programs, tmp_path: Path) -> None:
    source = tmp_path / "user.c"
    source.write_text("#include <ssi.h>\nint main(void) { return clusternode_num() == -1; }\n")
    (tmp_path / "libssi.so").symlink_to(programs.library)
    target = tmp_path / "user"
    where = (f"-I{NATIVE}/libssi", f"-L{tmp_path}", "-Wl,--no-as-needed")
    subprocess.run(["cc", *native.WARNINGS, *where, source, "-lssi", "-o", target], check=True)
    done = subprocess.run([target], env={"LD_LIBRARY_PATH": str(programs.top)}, check=False)
    assert done.returncode == 1


@pytest.fixture
def python_api(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FOLDER", programs.folder)
    monkeypatch.setattr(api, "SERVER_UID", os.getuid())
    monkeypatch.setattr(api, "PATIENCE_S", 1.0)


@pytest.mark.usefixtures("python_api")
def test_python_knows_who_is_there(running: Serving) -> None:
    running.call(lambda: running.cluster.move(2, "DOWN", "lost"))
    assert api.cluster_name() == "small"
    assert api.node_number() == 1
    assert api.membership() == api.Membership(transition=3, view=3, members=(1,), up=(1,))
    last = api.Transition(3, 1_700_000_003.25, 3, 2, "UP", "DOWN", "lost")
    node = api.Node(2, "DOWN", member=False, address="192.168.50.2", last=last)
    assert api.node_info(2) == node
    assert [each.number for each in api.nodes()] == [1, 2]
    assert api.node_info(5).last is None
    with pytest.raises(UsageError, match="'200' is not a node number"):
        api.node_info(200)


@pytest.mark.usefixtures("python_api")
def test_python_where_there_is_no_cluster(folder: Path) -> None:
    with pytest.raises(api.NotOnCluster):
        api.membership()
    folder.mkdir()
    with pytest.raises(TimedOut):
        api.membership()


@pytest.mark.usefixtures("python_api")
def test_python_follows_events(running: Serving) -> None:
    with api.Events(2) as events:
        assert events.wait(0.05) is None
        running.call(lambda: running.cluster.move(2, "DOWN", "lost"))
        assert select.select([events], [], [], 10)[0]
        found = events.read()
        assert (found.number, found.now, found.cause) == (3, "DOWN", "lost")
        running.call(lambda: running.cluster.move(2, "COMINGUP", "boots"))
        running.call(lambda: running.cluster.move(2, "UP", "booted"))
        assert next(iter(events)).number == 5
    with pytest.raises(ValueError, match="closed"):
        events.read()
    with api.Events(2, detailed=True) as events:
        assert [events.read().number for _ in range(3)] == [3, 4, 5]


@pytest.mark.usefixtures("python_api")
def test_python_goes_on_with_the_next_daemon(folder: Path) -> None:
    cluster = SmallCluster(1, 2)
    with serving(folder, cluster):
        events = api.Events(2)
    with pytest.raises(api.DaemonRestarted):
        events.read()
    with serving(folder, cluster) as running, events:
        found: list[api.Transition] = []
        thread = threading.Thread(target=lambda: found.append(next(iter(events))))
        thread.start()
        running.call(lambda: cluster.move(2, "DOWN", "lost"))
        thread.join(10)
    assert [each.number for each in found] == [3]


@pytest.mark.usefixtures("python_api")
def test_python_waits_for_a_transition(running: Serving) -> None:
    assert api.wait_for_transition(2, 0.05) is None
    running.call(lambda: running.cluster.move(2, "DOWN", "lost"))
    running.call(lambda: running.cluster.move(1, "SHUTDOWN", "asked"))
    found = api.wait_for_transition(2, 10)
    assert found
    assert found.number == 3
    found = api.wait_for_transition(2, 10, wanted=lambda each: each.node == 1)
    assert found
    assert found.number == 4


@pytest.mark.usefixtures("python_api")
def test_python_changes_a_state(running: Serving) -> None:
    if os.getuid():
        with pytest.raises(api.Denied):
            api.set_state(2, "SHUTDOWN")
        return
    api.set_state(2, "SHUTDOWN")
    assert running.cluster.states[2] == "SHUTDOWN"
    with pytest.raises(UsageError):
        api.set_state(2, "ASLEEP")
