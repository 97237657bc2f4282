"""Processes in nodes that do what they are told with FIFOs and devices, and say what came of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from support.clusters import Cluster, wait_until

A = TypeVar("A", bound="Actor")
WITHIN_S = 60
PORTS = itertools.count(4000)
BUSY = {"open": 257, "read": 0, "write": 1, "close": 3, "poll": 7, "connect": 42, "accept": 288}
"""System calls of x86-64 in which a thread waits."""

# Each order is done by a thread of its own, which says its number first.
AGENT = """
import array, fcntl, json, os, select, socket, subprocess, sys, termios, threading

lock = threading.Lock()
orders, answers = sys.stdin, sys.stdout
if sys.argv[1:]:
    with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
        line, _ = server.accept()
    orders, answers = line.makefile("r"), line.makefile("w")

def say(**words):
    with lock:
        print(json.dumps(words), file=answers, flush=True)

def poll(fd, events, within_ms):
    poller = select.poll()
    poller.register(fd, events)
    return dict(poller.poll(within_ms)).get(fd, 0)

def epoll(fd, events, within_ms):
    with select.epoll() as poller:
        poller.register(fd, events)
        return dict(poller.poll(within_ms / 1000)).get(fd, 0)

def pending(fd):
    number = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, number)
    return number[0]

def read(fd, size):
    return os.read(fd, size).decode("latin-1")

def write(fd, text):
    return os.write(fd, text.encode("latin-1"))

def read_all(fd):
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
    return b"".join(parts).decode("latin-1")

def fill(fd):
    count = 0
    os.set_blocking(fd, False)
    try:
        while True:
            count += os.write(fd, b"x" * 4096)
    except BlockingIOError:
        return count
    finally:
        os.set_blocking(fd, True)

def control(fd, command, given):
    # The argument is what `given` says in hex, or the number itself.
    if isinstance(given, int):
        return fcntl.ioctl(fd, command, given)
    return fcntl.ioctl(fd, command, bytes.fromhex(given)).hex()

def pread(fd, size, offset):
    return os.pread(fd, size, offset).decode("latin-1")

def pwrite(fd, text, offset):
    return os.pwrite(fd, text.encode("latin-1"), offset)

KINDS = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "packet": socket.SOCK_SEQPACKET}

def take(fd):
    return socket.socket(fileno=fd)

def give_epoll():
    one = os.dup((poller := select.epoll()).fileno())
    poller.close()
    return one

# Closed by its number, as everything.
def give(one):
    return one.detach()

def at(fd, do):
    one = take(fd)
    try:
        return do(one)
    finally:
        one.detach()

def bind(path, kind="stream", backlog=8):
    one = socket.socket(socket.AF_UNIX, KINDS[kind])
    one.bind(path)
    os.chmod(path, 0o777)
    if kind != "dgram" and backlog is not None:
        one.listen(backlog)
    return give(one)

def connect(path, kind="stream", nonblock=False):
    one = socket.socket(socket.AF_UNIX, KINDS[kind])
    one.setblocking(not nonblock)
    one.connect(path)
    one.setblocking(True)
    return give(one)

def accept(fd):
    return at(fd, lambda one: give(one.accept()[0]))

def bound_then_connected(own, path, kind):
    fd = bind(own, kind, None)
    at(fd, lambda one: one.connect(path))
    return fd

def receive_from(fd, size):
    data, sender = at(fd, lambda one: one.recvfrom(size))
    return [data.decode(), sender or ""]

def get_words(fd, option):
    got = at(fd, lambda one: one.getsockopt(socket.SOL_SOCKET, option, 256))
    return array.array("I", got).tolist()

def become(uid, gid, groups):
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)

def send_to(path, text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(text.encode(), path)

def send_fds(fd, text, given):
    return at(fd, lambda one: socket.send_fds(one, [text.encode()], given))

def send_fds_to(path, text, given):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect(path)
        socket.send_fds(one, [text.encode()], given)

def receive(fd, size, most):
    data, fds, flags, _ = at(fd, lambda one: socket.recv_fds(one, size, most))
    return [data.decode(), fds, bool(flags & socket.MSG_CTRUNC)]

def give_away(fd, text, given):
    send_fds(fd, text, given)
    for one in given:
        os.close(one)

def pour(fd, given, times):
    for number in range(times):
        write(fd, ".")
        send_fds(fd, f"{number:8}", [given])

# Returns which number did not come any more.
def drain(fd, first, end):
    for number in range(first, end):
        before, none, _ = receive(fd, 1, 2)
        text, fds, _ = receive(fd, 100, 2)
        if not text:
            return number
        assert before == "." and not none, [number, before, none]
        assert int(text) == number and len(fds) == 1, [number, text, fds]
        os.close(fds[0])
    return end

SOCKETS = {
    "send_fds": send_fds, "give_away": give_away, "send_fds_to": send_fds_to, "receive": receive,
    "pour": pour, "drain": drain, "listdir": os.listdir,
    "flags": lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL), "flock": fcntl.flock,
    "status": lambda fd: [(status := os.fstat(fd)).st_mode, status.st_ino, status.st_nlink],
    "bind": bind, "connect": connect, "accept": accept, "become": become, "send_to": send_to,
    "takes_fds": lambda fd, on: at(fd, lambda one: one.setsockopt(socket.SOL_SOCKET, 83, on)),
    "credentials": lambda fd: get_words(fd, socket.SO_PEERCRED),
    "groups": lambda fd: get_words(fd, 59),
    "names": lambda fd: at(fd, lambda one: [one.getsockname(), one.getpeername()]),
    "connect_to": lambda fd, path: at(fd, lambda one: one.connect(path)),
    "bound_then_connected": bound_then_connected, "receive_from": receive_from,
    "send_from": lambda fd, path, text: at(fd, lambda one: one.sendto(text.encode(), path)),
    "shutdown": lambda fd, how: at(fd, lambda one: one.shutdown(how)),
    "chmod": os.chmod,
}

# Its input is `given`, which it has by its number as well.
def run(argv, given):
    done = subprocess.run(argv, stdin=given, pass_fds=[given], capture_output=True)
    return [done.returncode, done.stdout.decode()]

DO = {**SOCKETS, "pipe": os.pipe, "dup": os.dup, "eventfd": lambda: os.eventfd(0), "run": run,
      "memfd": lambda: os.memfd_create("x"), "epoll_create": lambda: give_epoll(),
      "control": control, "pread": pread, "pwrite": pwrite, "lseek": os.lseek, "fsync": os.fsync,
      "openpty": lambda: [*(fds := os.openpty()), os.ttyname(fds[1])],
      "isatty": os.isatty, "open": os.open, "close": os.close,
      "mkfifo": os.mkfifo, "unlink": os.unlink,
      "rename": os.rename, "poll": poll, "epoll": epoll, "pending": pending, "read": read,
      "write": write, "read_all": read_all, "fill": fill,
      "blocking": os.set_blocking, "mode": lambda fd: os.fstat(fd).st_mode,
      "where": lambda fd: os.readlink(f"/proc/self/fd/{fd}")}

def work(id, do, words):
    say(id=id, thread=threading.get_native_id())
    try:
        say(id=id, result=DO[do](*words))
    except OSError as error:
        say(id=id, error=error.errno)

for line in orders:
    threading.Thread(target=work, args=json.loads(line), daemon=True).start()
os._exit(0)
"""

# What is typed here an agent on another node hears, and what it says is printed here.
BRIDGE = """
import os, socket, sys, threading, time
deadline = time.monotonic() + 60
while True:
    try:
        line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        break
    except ConnectionRefusedError:
        assert time.monotonic() < deadline
        time.sleep(0.05)

def listen():
    while data := line.recv(65536):
        os.write(1, data)
    os._exit(0)

threading.Thread(target=listen, daemon=True).start()
while data := os.read(0, 65536):
    line.sendall(data)
line.shutdown(socket.SHUT_WR)
"""


class Refused(Exception):
    """A call failed."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


class Doing:
    """Something that a process has been told to do."""

    def __init__(self, actor: Actor, name: str, number: int) -> None:
        self.number = number
        self._actor = actor
        self._name = name
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread: int | None = None
        self._answer: dict[str, Any] | None = None

    def hear(self, words: dict[str, Any]) -> None:
        """Take what the process says of it."""
        self._said.put(words)

    def _take(self, deadline: float) -> None:
        try:
            words = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if "thread" in words:
            self._thread = words["thread"]
        else:
            self._answer = words

    @property
    def is_done(self) -> bool:
        """Whether it has been done."""
        while not self._said.empty():
            self._take(0)
        return self._answer is not None

    def result(self, within_s: float = WITHIN_S) -> Any:  # noqa: ANN401
        """Wait until it is done; return the result, or raise Refused."""
        deadline = time.monotonic() + within_s
        while not self.is_done:
            assert time.monotonic() < deadline, f"not within {within_s} s: {self._name}"
            self._take(deadline)
        assert self._answer is not None
        if "error" in self._answer:
            raise Refused(self._answer["error"])
        return self._answer["result"]

    def wait_blocked(self) -> None:
        """Wait until the thread sleeps in its system call."""
        call = self._actor.busy[self._name.split()[0]]
        wait_until(lambda: self._is_in(call), f"it waits in {self._name}")

    def _is_in(self, call: int) -> bool:
        assert not self.is_done, f"{self._name}: {self._answer}"
        if self._thread is None:
            return False
        path = f"/proc/{self._actor.pid}/task/{self._thread}/syscall"
        words = self._actor.cluster.try_run(self._actor.node, "cat", path).out.split()
        return bool(words) and words[0] == str(call)


class Actor:
    """A process in a node."""

    agent = AGENT
    busy: Mapping[str, int] = BUSY

    def __init__(self, cluster: Cluster, node: int, via: int | None = None) -> None:
        """`via`: the node whose daemon must live for this one to be heard, another than its own."""
        self.cluster = cluster
        self.node = node
        self._process = self._start() if via is None else self._start_apart(via)
        assert self._process.stdout
        if via is None:
            self.pid = int(self._process.stdout.readline())
        self._ids = itertools.count(1)
        self._doing: dict[int, Doing] = {}
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["ssi", "exec", "-c", str(self.cluster.number), str(self.node), "--"]
        return self.cluster.ssi.person.start(
            [*words, "sh", "-c", 'echo $$; exec python3 -c "$0"', self.agent],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _start_apart(self, via: int) -> subprocess.Popen[bytes]:
        """Start it so that no daemon of its node has anything to do with it."""
        port = str(next(PORTS))
        script = 'setsid python3 -c "$0" $1 >/dev/null 2>&1 </dev/null & echo $!'
        self.pid = int(self.cluster.run(self.node, "sh", "-c", script, self.agent, port))
        words = ["ssi", "exec", "-c", str(self.cluster.number), str(via), "--"]
        return self.cluster.ssi.person.start(
            [*words, "python3", "-c", BRIDGE, f"192.168.50.{self.node}", port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _hear(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            words = json.loads(line)
            self._doing[words["id"]].hear(words)

    def begin(self, do: str, *words: object) -> Doing:
        """Tell the process to do something."""
        number = next(self._ids)
        self._doing[number] = doing = Doing(self, f"{do} {words}", number)
        assert self._process.stdin
        self._process.stdin.write(json.dumps([number, do, words]).encode() + b"\n")
        self._process.stdin.flush()
        return doing

    def do(self, name: str, *words: object) -> Any:  # noqa: ANN401
        """Have it done; return the result, or raise Refused."""
        return self.begin(name, *words).result()

    def read(self, path: str, flags: int = 0) -> Doing:
        """Begin to open a FIFO for reading."""
        return self.begin("open", path, os.O_RDONLY | flags)

    def write(self, path: str, flags: int = 0) -> Doing:
        """Begin to open a FIFO for writing."""
        return self.begin("open", path, os.O_WRONLY | flags)

    def kill(self) -> None:
        """Kill the process."""
        self.cluster.run(self.node, "kill", "-9", str(self.pid))

    def close(self) -> None:
        """End it, if it has not ended."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._hearing.join()


@contextlib.contextmanager
def acting_as(
    kind: type[A], cluster: Cluster, *nodes: int, via: int | None = None
) -> Iterator[list[A]]:
    """A process of that kind on each of `nodes`."""
    with contextlib.ExitStack() as stack:
        actors = []
        for node in nodes:
            actors.append(kind(cluster, node, via))
            stack.callback(actors[-1].close)
        yield actors


@contextlib.contextmanager
def acting(cluster: Cluster, *nodes: int, via: int | None = None) -> Iterator[list[Actor]]:
    """A process on each of `nodes`."""
    with acting_as(Actor, cluster, *nodes, via=via) as actors:
        yield actors


def connect(path: str, reader: Actor, writer: Actor) -> tuple[int, int]:
    """Open both sides; return the descriptors of reader and writer."""
    reading, writing = reader.read(path), writer.write(path)
    return reading.result(), writing.result()
