"""Processes in nodes that use POSIX message queues as they are told, and say what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from support.clusters import Cluster
from support.fifos import Actor, Doing, acting_as

RDONLY, WRITE, RDWR, CREAT, EXCL, NONBLOCK = 0, 1, 2, 0o100, 0o200, 0o4000

BUSY = {"send": 242, "receive": 243, "poll": 7, "open": 240}
"""System calls of x86-64 in which a thread waits."""

# Each order is done by a thread of its own, which says its number first.
AGENT = """
import ctypes, json, os, select, signal, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
lock = threading.Lock()
threads = {}
told = []
orders, answers = sys.stdin, sys.stdout
if sys.argv[1:]:
    with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
        line, _ = server.accept()
    orders, answers = line.makefile("r"), line.makefile("w")

def say(**words):
    with lock:
        print(json.dumps(words), file=answers, flush=True)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def open_(name, flags=2, mode=0o600, most=8, size=1024):
    attributes = struct.pack("=8q", 0, most, size, 0, 0, 0, 0, 0) if flags & 0o100 else None
    return check(libc.mq_open(name.encode("latin-1"), flags, mode, attributes))

def unlink(name):
    return check(libc.mq_unlink(name.encode("latin-1")))

def until(within_s):
    at = time.time() + within_s
    return struct.pack("=qq", int(at), int(at % 1 * 1e9))

def send(queue, text, priority=0, within_s=None):
    data = text.encode("latin-1")
    if within_s is None:
        return check(libc.mq_send(queue, data, ctypes.c_size_t(len(data)), priority))
    words = queue, data, ctypes.c_size_t(len(data)), priority
    return check(libc.mq_timedsend(*words, until(within_s)))

def receive(queue, within_s=None, size=32768):
    room, priority = ctypes.create_string_buffer(size), ctypes.c_uint(0)
    words = queue, room, ctypes.c_size_t(size), ctypes.byref(priority)
    if within_s is None:
        got = check(libc.mq_receive(*words))
    else:
        got = check(libc.mq_timedreceive(*words, until(within_s)))
    return [priority.value, room.raw[:got].decode("latin-1")]

def getattr_(queue):
    # Flags, messages and bytes at most, and how many there are.
    room = ctypes.create_string_buffer(64)
    check(libc.mq_getattr(queue, room))
    return list(struct.unpack_from("=4q", room))

def set_nonblock(queue, value):
    flags = struct.pack("=8q", 0o4000 if value else 0, 0, 0, 0, 0, 0, 0, 0)
    return check(libc.mq_setattr(queue, flags, None))

def poll(queue, events, within_ms):
    poller = select.poll()
    poller.register(queue, events)
    return dict(poller.poll(within_ms)).get(queue, 0)

def notify(queue, how=0, number=int(signal.SIGUSR2), value=0):
    # struct sigevent: value, signal, how; a thread's function and attributes
    event = struct.pack("=Qii", value, number, how)
    if how == 2:
        event = struct.pack("=QiiQQ", value, 0, how, ctypes.cast(CALLED, ctypes.c_void_p).value, 0)
    return check(libc.mq_notify(queue, event.ljust(64, b"\\0")))

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def CALLED(value):
    told.append(["thread", value])

def wait_told():
    # What it was notified of, once it is.
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    return told.pop(0)

def wait_signal():
    about = signal.sigtimedwait({signal.SIGUSR2}, 30)
    return about and [about.si_signo, about.si_code]

def interrupt(number, how=signal.SIGUSR1):
    signal.pthread_kill(threads[number], how)

def share(queue, text):
    # A child uses its parent's descriptor, and ends.
    child = os.fork()
    if not child:
        send(queue, text, 1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def flow(queue, count, first=0):
    for number in range(first, first + count):
        send(queue, f"{number:05}" * (1 + number % 20))

def take(queue, count):
    found = []
    for _ in range(count):
        _, text = receive(queue)
        number = int(text[:5])
        assert text == f"{number:05}" * (1 + number % 20)
        found.append(number)
    return found

def drain(queue):
    # Takes what a flow sends, until somebody says that it has ended.
    found = []
    while (text := receive(queue)[1]) != "end":
        assert text == text[:5] * (1 + int(text[:5]) % 20)
        found.append(int(text[:5]))
    return found

def ping(there, back, count):
    begun = time.monotonic()
    for _ in range(count):
        send(there, "x" * 64)
        receive(back)
    return (time.monotonic() - begun) / count

def pong(there, back, count):
    for _ in range(count):
        receive(there)
        send(back, "x" * 64)

def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)

def about(queue):
    found = os.fstat(queue)
    return [found.st_mode & 0o777, found.st_uid, found.st_gid]

DO = {"open": open_, "unlink": unlink, "send": send, "receive": receive, "getattr": getattr_,
      "set_nonblock": set_nonblock, "poll": poll, "notify": notify, "wait_told": wait_told,
      "wait_signal": wait_signal, "ignore": lambda queue: check(libc.mq_notify(queue, None)),
      "interrupt": interrupt, "share": share, "flow": flow, "take": take, "drain": drain,
      "ping": ping, "pong": pong, "become": become, "about": about, "close": os.close,
      "chmod": os.fchmod, "list": lambda: sorted(os.listdir("/dev/mqueue")),
      "read": lambda name: open(f"/dev/mqueue/{name}").read(),
      "remove": lambda name: os.remove(f"/dev/mqueue/{name}"),
      "stat": lambda name: [(s := os.stat(f"/dev/mqueue/{name}")).st_mode & 0o777, s.st_uid],
      "where": lambda fd: os.readlink(f"/proc/self/fd/{fd}")}

def work(id, do, words):
    threads[id] = threading.get_ident()
    say(id=id, thread=threading.get_native_id())
    try:
        say(id=id, result=DO[do](*words))
    except OSError as error:
        say(id=id, error=error.errno)

signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

def listen():
    for line in orders:
        threading.Thread(target=work, args=json.loads(line), daemon=True).start()
    os._exit(0)

threading.Thread(target=listen, daemon=True).start()
while True:
    signal.pause()
"""


class QueueActor(Actor):
    """One of them."""

    agent = AGENT
    busy = BUSY

    def interrupt(self, doing: Doing) -> None:
        """Have a handler called by the thread that does it."""
        self.do("interrupt", doing.number)


@contextlib.contextmanager
def using(cluster: Cluster, *nodes: int, via: int | None = None) -> Iterator[list[QueueActor]]:
    """A process on each of `nodes`."""
    with acting_as(QueueActor, cluster, *nodes, via=via) as actors:
        yield actors
