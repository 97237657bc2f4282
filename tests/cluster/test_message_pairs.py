"""One end of a pair that carries messages moves: SOCK_DGRAM and SOCK_SEQPACKET."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

PROGRAM = TOP / "tests/programs/messages.py"
STOP, SAID, OVER = "/root/messages.stop", "/root/messages.said", "/root/messages.over"

KINDS = ["DGRAM", "SEQPACKET"]

HEAD = """\
import errno, os, select, signal, socket, stat, subprocess, sys, time
KIND = getattr(socket, "SOCK_" + sys.argv[1])
mine, other = socket.socketpair(socket.AF_UNIX, KIND)

def move(node, pid):
    subprocess.run(["migrate", str(node), str(pid)], check=True)

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fork():
    if child := os.fork():
        other.close()
        mine.recv(1)  # from now on each has one end
    else:
        mine.close()
        other.send(b"+")
    return child

def attempt(do, *words):
    try:
        return do(*words)
    except OSError as error:
        return errno.errorcode[error.errno]
"""

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

def came(line):
    '''Return what comes within a while; the end is one that comes again and again.'''
    found = []
    for _ in range(5):
        if not select.select([line], [], [], 0.5)[0]:
            break
        found.append(attempt(line.recv, 300000, socket.MSG_DONTWAIT))
    return found

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
        select.select([line], [], [], 5)
        say(who, "hears the end", [len(message) for message in came(line)], sent(line))
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
        say("who has shut", how, attempt(line.send, b"still"), came(line))
        step()
    return do

def meet(line, step):
    step()
    # A moment may pass.
    result = [] if line.recv(100) != b"before" else came(line)
    for _ in range(20):
        if attempt(line.send, b"there?") == "EPIPE":
            break
        time.sleep(0.02)
    say("who has not", result, attempt(line.send, b"x"))
    step()
    say("then", came(line))

for how in (socket.SHUT_RD, socket.SHUT_RDWR):
    run(meet, shut(how))
    run(shut(how), meet)
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
    assert len(here) == 16


# -- faults ---------------------------------------------------------------------------------------


def start_messages(cluster: Cluster) -> dict[str, str]:
    """Have PROGRAM run; return the PIDs of the parent and the child."""
    # Of its own session: daemons die, and commands of the host with them.
    begin = f"setsid python3 /root/messages.py {STOP} </dev/null >{SAID} 2>&1 &"
    cluster.run(1, "sh", "-c", f"rm -f {STOP}; cd /; {begin}")
    wait_until(lambda: "pids" in cluster.run(1, "cat", SAID), "it has begun")
    _, parent, child = cluster.run(1, "cat", SAID).split()
    return {"parent": parent, "child": child}


def check_whole(cluster: Cluster) -> None:
    """Have PROGRAM end, and all have come that was sent."""
    cluster.run(1, "touch", STOP)
    wait_until(lambda: "ended" in cluster.try_run(1, "cat", SAID).out, "it ends", within_s=120)
    said = [line.split() for line in cluster.run(1, "cat", SAID).splitlines()]
    assert said[-1] == ["ended", "0"], said
    came = {(name, what): rest for name, what, *rest in said[1:-1]}
    assert len(came) == 8
    for name, what in came:
        assert int(came[name, what][0]) > 50
        assert came[name, "sent"] == came[name, "arrived"]


def move(cluster: Cluster, node: int, pid: str) -> bool:
    """Move a process; tell whether it has moved."""
    return cluster.try_run(1, "migrate", str(node), pid).status == 0


FAULTS = (
    "departure-dumped", "departure-sent", "departure-sent criu", "departure-ready",
    "departure-committed", "departure-done", "arrival-begun", "arrival-ready", "arrival-ended",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_no_message_is_lost_with_a_daemon(trio: Cluster) -> None:
    """Both ends move while daemons and CRIU are killed: away, on, home, in turn."""
    pids = start_messages(trio)
    ways = itertools.cycle([("child", 1, 2), ("child", 2, 3), ("parent", 1, 2), ("child", 3, 1)])
    places = {"child": 1, "parent": 1}
    for fault, (who, source, target) in zip(FAULTS, ways, strict=False):
        if places[who] != source:
            assert move(trio, source, pids[who])
        script = f"echo {fault} >/run/ssi/public/fault"
        node = source if fault.startswith("departure") else target
        words = ("exec", "-c", str(trio.number), "--ramdisk", str(node), "--", "sh", "-c", script)
        trio.ssi(*words)
        if not move(trio, target, pids[who]):
            assert move(trio, target, pids[who]), fault
        places[who] = target
    check_whole(trio)


@pytest.mark.timeout(200)
def test_daemons_die_while_messages_are_on_their_way(trio: Cluster) -> None:
    pids = start_messages(trio)
    for node in (2, 3):
        wait_until(lambda: move(trio, node, pids["child"]), f"it is on node{node}")  # noqa: B023
        for other in (1, 2, 3):
            kill_daemon(trio, other)
    wait_until(lambda: trio.try_run(1, "true").status == 0, "a daemon answers")
    check_whole(trio)


NODE_DIES = """
if child := fork():
    move(2, child)
    print("away", flush=True)
else:
    mine = other

def hear():
    for _ in range(3000):
        if (said := attempt(mine.send, b"x")) != 1:
            return said
        if attempt(lambda: mine.recv(100, socket.MSG_DONTWAIT)) not in ("EAGAIN", b"x"):
            return "EPIPE"
        time.sleep(0.05)

said = hear()
with open("/root/messages.over", "a") as file:
    file.write(f"{said}\\n")
"""


@pytest.mark.parametrize("dies", [1, 2])
def test_a_node_dies(trio: Cluster, dies: int) -> None:
    """Of the process, or where the pair was made: whoever is left hears it."""
    trio.run(3, "sh", "-c", f"cat >/root/dies.py; rm -f {OVER}", given=(HEAD + NODE_DIES).encode())
    for kind in KINDS:
        trio.run(
            1, "sh", "-c",
            f"cd /; setsid python3 /root/dies.py {kind} </dev/null >{SAID}.{kind} 2>&1 &",
        )  # fmt: skip
        wait_until(lambda: "away" in trio.run(3, "cat", f"{SAID}.{kind}"), "it is away")  # noqa: B023
    trio.crash(dies)
    wait_until(
        lambda: sorted(trio.try_run(3, "cat", OVER).out.split()) == ["ECONNREFUSED", "EPIPE"],
        "it hears", within_s=120,
    )  # fmt: skip
    trio.restore(1, 2, 3)
