"""One end of a socket pair moves, the other one is another process's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, set_fault, started, wait_until
from support.pairs import HEAD, SAID, Pair

PROGRAM = TOP / "tests/programs/pairs.py"

IS_A_SOCKET = """
if child := fork():
    for node in (2, 3, 1, 2):
        move(node, child)
        mine.sendall(b"look")
        assert mine.recv(100) == b"done", node
    move(3, child)
    assert mine.recv(100) == b"", "its end"
    mine.sendall(b"more")
    mine.close()
    print(end(child))
else:
    other.setblocking(False)
    waiting = select.epoll()
    waiting.register(other, select.EPOLLIN)
    for _ in range(4):
        assert waiting.poll() == [(other.fileno(), select.EPOLLIN)]
        assert other.recv(100) == b"look"
        assert waiting.poll(0) == []
        assert not os.get_blocking(other.fileno())
        try:
            other.recv(1)
        except BlockingIOError:
            pass
        assert stat.S_ISSOCK(os.fstat(other.fileno()).st_mode)
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert other.getsockname() == other.getpeername() == ""
        credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert credentials[4:] == (33).to_bytes(4, "little") * 2, credentials
        assert other.gettimeout() == 0
        other.sendmsg([b"do", b"ne"])
    while b"3" not in subprocess.check_output("clusternode_num"):
        time.sleep(0.1)
    other.setblocking(True)
    other.shutdown(socket.SHUT_WR)
    assert other.recv(100) == b"more"
    assert other.recv(100) == b""
    os._exit(7)
"""

PIPE_BREAKS = """
if child := fork():
    move(2, child)
    mine.send(b"x")
    mine.close()
    print(end(child))
else:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    other.recv(1)
    while True:
        other.send(b"x" * 100)
        time.sleep(0.05)
"""

HALVES = """
def hear(word):
    assert mine.recv(100) == word, word

if child := fork():
    move(2, child)
    mine.send(b"1")
    hear(b"no more")
    try:
        for _ in range(200):
            mine.send(b"x")
            time.sleep(0.05)
        print("nobody reads")
    except BrokenPipeError:
        print("broken")
    move(3, child)
    hear(b"still")
    print(end(child))
else:
    other.recv(1)
    other.shutdown(socket.SHUT_RD)
    other.send(b"no more")
    while b"3" not in subprocess.check_output("clusternode_num"):
        time.sleep(0.1)
    assert other.recv(1) == b""
    other.send(b"still")
    os._exit(3)
"""

NOBODY_READS = """
def fill(line):
    line.setblocking(False)
    sent, end = 0, time.monotonic() + 2
    while time.monotonic() < end:
        try:
            sent += line.send(b"x" * 10000)
            end = time.monotonic() + 2
        except BlockingIOError:
            time.sleep(0.05)
    line.setblocking(True)
    line.shutdown(socket.SHUT_WR)
    return sent

def take(line):
    count = 0
    while data := line.recv(100000):
        count += len(data)
    return count

if child := fork():
    move(2, child)
    sent = fill(mine)
    move(3, child)
    move(int(sys.argv[2]), child)
    os.kill(child, signal.SIGUSR1)
    print(sent, take(mine), flush=True)
    end(child)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    while b"2" not in subprocess.check_output("clusternode_num"):
        time.sleep(0.1)
    sent = fill(other)
    signal.sigwait([signal.SIGUSR1])
    print(take(other), sent, flush=True)
    os._exit(0)
"""

DESCRIPTORS = """
def refused(line):
    try:
        socket.send_fds(line, [b"x"], [0])
    except PermissionError:
        return True

if child := fork():
    move(2, child)
    assert refused(mine)
    mine.send(b"x")
    assert mine.recv(100) == b"refused"
    move(1, child)
    mine.send(b"x")
    assert mine.recv(100) == b"back"
    socket.send_fds(mine, [b"x"], [1])
    print(end(child))
else:
    other.recv(1)
    other.send(b"refused" if refused(other) else b"sent")
    other.recv(1)
    other.send(b"back")
    data, fds, _, _ = socket.recv_fds(other, 1, 1)
    os._exit(len(fds))
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "sh", "-c", "cat >/root/pairs.py", given=PROGRAM.read_bytes())
        yield cluster


def test_it_is_a_socket_everywhere(trio: Cluster) -> None:
    # Whoever is root by then: SO_PEERCRED tells of who made the pair.
    head = HEAD.replace("mine, other", "os.setegid(33); os.seteuid(33)\nmine, other", 1)
    head += "os.seteuid(0); os.setegid(0)\n"
    assert trio.python(1, head + IS_A_SOCKET) == "7\n"


def test_nobody_is_left_to_read(trio: Cluster) -> None:
    assert trio.python(1, HEAD + PIPE_BREAKS) == "-13\n"


def test_halves_that_are_shut(trio: Cluster) -> None:
    assert trio.python(1, HEAD + HALVES) == "broken\n3\n"


@pytest.mark.parametrize("node", [1, 2, 3])
def test_who_writes_waits_for_a_reader(trio: Cluster, node: int) -> None:
    """What was written is read at another place, none of it twice."""
    one, other = trio.python(1, HEAD + NOBODY_READS, "STREAM", str(node)).splitlines()
    assert one == other
    assert all(100_000 < int(count) < 2_000_000 for count in one.split()), one


def test_descriptors_cannot_be_sent(trio: Cluster) -> None:
    assert trio.python(1, HEAD + DESCRIPTORS) == "1\n"


# -- many bytes -----------------------------------------------------------------------------------


def check_whole(pair: Pair, node: int = 1) -> None:
    """Have PROGRAM end, and all have come that was sent."""
    came = pair.stop(node)
    assert int(came["parent", "sent"][0]) > 1_000_000
    for name in pair.pids:
        assert came[name, "sent"] == came[name, "arrived"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "ways",
    [
        "child 2, child 3, child 1, child 3, child 2, child 1, child 2",
        "parent 2, child 2, parent 3, child 1, parent 1, child 3, parent 2, child 2",
    ],
    ids=["one", "both"],
)
def test_all_bytes_come_once(trio: Cluster, ways: str) -> None:
    pair = Pair(trio, "pairs.py")
    for who, node in (way.split() for way in ways.split(", ")):
        assert pair.move(who, int(node))
    check_whole(pair)


HOPS = {"away": (1, 2, 3), "on": (2, 3, 1), "home": (3, 1, 2)}
"""From where, to where; and who has nothing to do with it."""

FAULTS = (
    "departure-begun", "departure-dumped", "departure-dumped criu", "departure-sent",
    "departure-sent criu", "departure-ready", "departure-committed", "departure-followed",
    "departure-done", "arrival-begun", "arrival-restoring", "arrival-ready", "arrival-ended",
)  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hop", HOPS)
def test_no_byte_is_lost_with_a_daemon(trio: Cluster, hop: str) -> None:
    source, target, by = HOPS[hop]
    pair = Pair(trio, "pairs.py")
    if source != 1:
        assert pair.move("child", source)
    for fault in FAULTS:
        if (hop, fault) == ("home", "arrival-restoring"):
            continue  # its ghost has been given up by then: the process dies
        set_fault(trio, source if fault.startswith("departure") else target, fault)
        assert pair.move("child", target, by) or pair.move("child", target, by), fault
        assert pair.move("child", source, by), fault
    check_whole(pair, by)


@pytest.mark.timeout(300)
def test_daemons_die_while_bytes_flow(trio: Cluster) -> None:
    pair = Pair(trio, "pairs.py")
    for node in (2, 3, 1, 2):
        pair.wait_moved("child", node)
        for other in (1, 2, 3):
            kill_daemon(trio, other)
    wait_until(lambda: trio.try_run(1, "true").status == 0, "a daemon answers")
    check_whole(pair)


# -- programs -------------------------------------------------------------------------------------

MULTIPROCESSING = """
import multiprocessing, subprocess

def work(line):
    while (word := line.recv()) is not None:
        line.send((len(word), subprocess.check_output("clusternode_num").strip()))

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    mine, other = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=work, args=(other,))
    worker.start()
    other.close()
    for node in (1, 2, 3, 1):
        subprocess.run(["migrate", str(node), str(worker.pid)], check=True)
        for size in (1, 1000, 1_000_000):
            mine.send(b"x" * size)
            assert mine.recv() == (size, str(node).encode())
    mine.send(None)
    worker.join()
    print(worker.exitcode)
"""


def test_a_worker_of_multiprocessing_moves(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "cat >/root/work.py", given=MULTIPROCESSING.encode())
    assert trio.run(1, "python3", "/root/work.py") == "0\n"


# -- nodes that die -------------------------------------------------------------------------------

ITS_NODE_DIES = """
if child := fork():
    move(2, child)
    print("away", flush=True)
    try:
        while mine.recv(100):
            pass
    except ConnectionResetError:
        pass
    print("over", flush=True)
    print(end(child), flush=True)
else:
    while True:
        other.send(b"x")
        time.sleep(0.1)
"""

THE_OTHER_NODE_DIES = """
if child := fork():
    move(2, child)
    print("away", flush=True)
    signal.pause()
else:
    try:
        over = other.recv(100) == b""
    except ConnectionResetError:
        over = True
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        while True:
            other.send(b"x" * 1000)
    except BrokenPipeError:
        with open("/root/pairs.over", "w") as file:
            print("over", over, file=file)
"""


@pytest.mark.parametrize(
    ("script", "dies", "file", "lasts"),
    [
        (ITS_NODE_DIES, 2, SAID, "over\n-9\n"),
        (THE_OTHER_NODE_DIES, 1, "/root/pairs.over", "over True\n"),
    ],
    ids=["its-node", "the-other-node"],
)
def test_a_node_dies(trio: Cluster, script: str, dies: int, file: str, lasts: str) -> None:
    trio.run(1, "sh", "-c", f"cat >/root/dies.py; rm -f {SAID}", given=(HEAD + script).encode())
    trio.run(1, "sh", "-c", f"cd /; setsid python3 /root/dies.py </dev/null >{SAID} 2>&1 &")
    wait_until(lambda: "away" in trio.run(3, "cat", SAID), "it is away")
    trio.crash(dies)
    wait_until(lambda: trio.try_run(3, "cat", file).out.endswith(lasts), "it hears", within_s=120)
    trio.restore(1, 2, 3)
