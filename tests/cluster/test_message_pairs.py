"""One end of a pair that carries messages moves: SOCK_DGRAM and SOCK_SEQPACKET."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, set_fault, started, wait_until
from support.pairs import HEAD, SAID, Pair

PROGRAM = TOP / "tests/programs/messages.py"
OVER = "/root/messages.over"

KINDS = ["DGRAM", "SEQPACKET"]

SIZES = """
SENT = (b"before", b"", b"y" * 200000, b"")

def take(line):
    return [line.recv(300000) for _ in SENT]

if child := fork():
    for node in (2, 3, 1, 2):
        for message in SENT:
            mine.send(message)
        mine.recv(1)
        move(node, child)
        os.kill(child, signal.SIGUSR1)
        assert take(mine) == [message[::-1] for message in SENT], node
    print(end(child))
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200001)
    for _ in range(4):
        # What waits comes along, in order and for both.
        other.send(b"!")
        signal.sigwait([signal.SIGUSR1])
        assert stat.S_ISSOCK(os.fstat(other.fileno()).st_mode)
        assert other.type == KIND and other.getsockname() == other.getpeername() == ""
        credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert credentials[4:] == (33).to_bytes(4, "little") * 2, credentials
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 400002
        assert other.recv(3, socket.MSG_PEEK) == b"bef"
        found = take(other)
        assert attempt(other.recv, 1, socket.MSG_DONTWAIT) == "EAGAIN"
        assert attempt(other.send, b"x" * 500000) == "EMSGSIZE"
        for message in found:
            other.send(message[::-1])
    os._exit(7)
"""

ENDS = """
mine.close()
other.close()

def run(parent, child):
    '''Each waits for the other one by step().'''
    there, back = os.pipe(), os.pipe()
    mine, other = socket.socketpair(socket.AF_UNIX, KIND)
    if pid := os.fork():
        other.close()
        mine.recv(1)
        if sys.argv[2] != "1":
            move(sys.argv[2], pid)
        os.write(there[1], b"x")
        parent(mine, lambda: os.write(there[1], b"x") and os.read(back[0], 1))
        end(pid)
    else:
        mine.close()
        other.send(b"+")
        os.read(there[0], 1)
        child(other, lambda: os.write(back[1], b"x") and os.read(there[0], 1))
        os._exit(0)

def sent(line):
    '''Return what sending says once the other end takes nothing more.'''
    for _ in range(100):
        if (result := attempt(line.send, b"")) != 0:
            return result, attempt(line.send, b"")
        time.sleep(0.05)

def came(line, count, over):
    '''Return the messages that come, and what comes behind them; `over`: the end, if it is told.'''
    found = []
    for _ in range(count + (over and KIND == socket.SOCK_SEQPACKET)):
        select.select([line], [], [], 20)
        found.append(len(attempt(line.recv, 300000, socket.MSG_DONTWAIT)))
    return found, attempt(line.recv, 300000, socket.MSG_DONTWAIT)

def say(*words):
    print(*words, flush=True)

def leave(line, step):
    for message in (b"one", b"", b"two" * 30000):
        line.send(message)
    line.close()
    step()

def read_and_send(who):
    def do(line, step):
        step()
        say(who, "hears the end", came(line, 3, True), sent(line))
    return do

def send_first(line, step):
    step()
    say("and sends first", sent(line))

run(read_and_send("parent"), leave)
run(leave, read_and_send("child"))
run(send_first, lambda line, step: (line.close(), step()))
run(lambda line, step: (line.close(), step()), send_first)

def shut(how):
    def do(line, step):
        line.send(b"before")
        line.shutdown(how)
        step()
        say("who has shut", how, attempt(line.send, b"still"), came(line, 0, True))
        step()
    return do

def meet(how):
    def do(line, step):
        step()
        assert line.recv(100) == b"before"
        # A moment may pass.
        for _ in range(100):
            if attempt(line.send, b"there?") == "EPIPE":
                break
            time.sleep(0.02)
        over = how == socket.SHUT_RDWR
        say("who has not", how, attempt(line.send, b"x"), came(line, not over, over))
        step()
    return do

for how in (socket.SHUT_RD, socket.SHUT_RDWR):
    run(meet(how), shut(how))
    run(shut(how), meet(how))
"""

LEFT_ALONE = """
ready = os.pipe()
if child := os.fork():
    mine.close()
    other.close()
    os.read(ready[0], 1)
    for node in (2, 3, 1):
        move(node, child)
    os.kill(child, signal.SIGUSR1)
    end(child)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for message in (b"", b"left"):
        other.send(message)
    other.close()
    os.close(ready[0])
    os.write(ready[1], b"x")
    os.close(ready[1])
    signal.sigwait([signal.SIGUSR1])
    for _ in range(2):
        select.select([mine], [], [], 20)
        print(mine.recv(10))
    for _ in range(100):
        if (said := attempt(mine.send, b"x")) != 1:
            break
        time.sleep(0.05)
    print(said, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "sh", "-c", "cat >/root/messages.py", given=PROGRAM.read_bytes())
        yield cluster


@pytest.mark.parametrize("kind", KINDS)
def test_messages_come_as_they_were_sent(trio: Cluster, kind: str) -> None:
    """Away, on, home and away again."""
    # Whoever is root by then: SO_PEERCRED tells of who made the pair.
    head = HEAD.replace("mine, other", "os.setegid(33); os.seteuid(33)\nmine, other", 1)
    head += "os.seteuid(0); os.setegid(0)\n"
    assert trio.python(1, head + SIZES, kind) == "7\n"


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_what_they_are_on_one_node(trio: Cluster, kind: str) -> None:
    """Who sends and receives hears the same, whether his other end has moved or not."""
    here, there = (sorted(trio.python(1, HEAD + ENDS, kind, node).splitlines()) for node in "12")
    assert here == there
    assert len(here) == 12


@pytest.mark.parametrize(("kind", "says"), [("DGRAM", "ECONNREFUSED"), ("SEQPACKET", "EPIPE")])
def test_one_whose_other_end_was_closed_moves(trio: Cluster, kind: str, says: str) -> None:
    assert trio.python(1, HEAD + LEFT_ALONE, kind) == f"b''\nb'left'\n{says}\n"


# -- faults ---------------------------------------------------------------------------------------


def check_whole(pair: Pair) -> None:
    """Have PROGRAM end, and all have come that was sent."""
    came = pair.stop()
    assert len(came) == 8
    for name, what in came:
        assert int(came[name, what][0]) > 50
        assert came[name, "sent"] == came[name, "arrived"]


FAULTS = (
    "departure-dumped", "departure-ready", "departure-committed", "arrival-begun",
    "departure-sent criu", "arrival-ready",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_no_message_is_lost_with_a_daemon(trio: Cluster) -> None:
    """Both ends move while daemons and CRIU are killed: away, on, home, in turn."""
    pair = Pair(trio, "messages.py")
    ways = itertools.cycle([("child", 1, 2), ("child", 2, 3), ("parent", 1, 2), ("child", 3, 1)])
    places = {"child": 1, "parent": 1}
    for fault, (who, source, target) in zip(FAULTS, ways, strict=False):
        if places[who] != source:
            assert pair.move(who, source)
        set_fault(trio, source if fault.startswith("departure") else target, fault)
        # Of who has nothing to do with it no daemon dies.
        pair.wait_moved(who, target, 6 - source - target)
        places[who] = target
    for node in (1, 2, 3):
        kill_daemon(trio, node)
    wait_until(lambda: trio.try_run(1, "true").status == 0, "a daemon answers")
    check_whole(pair)


NODE_DIES = """
if child := fork():
    move(2, child)
    os.kill(os.getpid(), signal.SIGSTOP)

def hear():
    for _ in range(3000):
        if (said := attempt(other.send, b"")) != 0:
            return said
        time.sleep(0.05)

said = hear()
with open("/root/messages.over", "a") as file:
    file.write(f"{said}\\n")
"""


def test_the_node_of_the_other_end_dies(trio: Cluster) -> None:
    trio.run(3, "sh", "-c", f"cat >/root/dies.py; rm -f {OVER}", given=(HEAD + NODE_DIES).encode())
    for kind in KINDS:
        begin = f"setsid python3 /root/dies.py {kind} </dev/null >{SAID} 2>&1 &"
        trio.run(1, "sh", "-c", f"cd /; {begin}")
    listed = ("ps", "-C", "python3", "-o", "stat=,args=")
    wait_until(
        lambda: sum(
            line.startswith("T") and "dies.py" in line
            for line in trio.try_run(2, *listed).out.splitlines()
        ) == len(KINDS),
        "both are away",
    )  # fmt: skip
    trio.crash(1)
    wait_until(
        lambda: sorted(trio.try_run(3, "cat", OVER).out.split()) == ["ECONNREFUSED", "EPIPE"],
        "they hear", within_s=120,
    )  # fmt: skip
