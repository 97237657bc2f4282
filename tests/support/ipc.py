"""Processes in nodes that use System V IPC as they are told, and say what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from support.clusters import Cluster
from support.fifos import Actor, Doing, acting_as

CREAT, EXCL, NOWAIT, UNDO = 0o1000, 0o2000, 0o4000, 0o10000
QUEUE, SEMAPHORES, MEMORY = "msg", "sem", "shm"

BUSY = {"semop": 220, "msgsnd": 69, "msgrcv": 70, "futex": 202}
"""System calls of x86-64 in which a thread waits."""

# Each order is done by a thread of its own, which says its number first.
AGENT = """
import ctypes, json, mmap, os, signal, socket, struct, sys, threading

libc = ctypes.CDLL(None, use_errno=True)
lock = threading.Lock()
threads = {}
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

def msgget(key, flags=0o1600):
    return check(libc.msgget(ctypes.c_int(key), flags))

def semget(key, count, flags=0o1600):
    return check(libc.semget(ctypes.c_int(key), count, flags))

def shmget(key, size, flags=0o1600):
    return check(libc.shmget(ctypes.c_int(key), ctypes.c_size_t(size), flags))

libc.shmat.restype = ctypes.c_long
attached = {}

def shmat(id, flags=0):
    attached[id] = check(libc.shmat(id, None, flags))
    return 0

def shmdt(id):
    return check(libc.shmdt(ctypes.c_void_p(attached.pop(id))))

def put(id, at, text):
    ctypes.memmove(attached[id] + at, text.encode(), len(text))

def get(id, at, size):
    return ctypes.string_at(attached[id] + at, size).decode()

def add(id, at, value, times=1):
    # lock xadd %rsi, (%rdi), and what was there: one instruction, as no library has it.
    code = bytes.fromhex("4889f0f0480fc107c3")
    room = mmap.mmap(-1, 4096, prot=7)
    room.write(code)
    place = ctypes.addressof(ctypes.c_char.from_buffer(room))
    xadd = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(place)
    for _ in range(times):
        found = xadd(attached[id] + at, value)
    return found

def futex(id, at, operation, value):
    # 0 waits while it is `value`, 1 wakes so many.
    address = ctypes.c_void_p(attached[id] + at)
    return check(libc.syscall(ctypes.c_long(202), address, operation, value, None, None, 0))

def fork(id):
    # A child that has it attached as well, until it is killed.
    if not (pid := os.fork()):
        libc.pause()
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def shmctl(id, command):
    return check(libc.shmctl(id, command, None))

def about(id):
    # Mode, size, cpid, lpid, nattch.
    room = ctypes.create_string_buffer(128)
    control("shm", id, 2, room)
    return list(struct.unpack_from("=20xI24xQ24xiiQ", room))

def msgsnd(id, kind, text, flags=0):
    data = text.encode("latin-1")
    return check(libc.msgsnd(id, struct.pack("=q", kind) + data, ctypes.c_size_t(len(data)), flags))

def msgrcv(id, kind=0, flags=0, size=8192):
    room = ctypes.create_string_buffer(8 + size)
    got = check(libc.msgrcv(id, room, ctypes.c_size_t(size), ctypes.c_long(kind), flags))
    return [struct.unpack_from("=q", room)[0], room.raw[8:8 + got].decode("latin-1")]

def semop(id, operations, within_s=None):
    data = b"".join(struct.pack("=Hhh", *one) for one in operations)
    if within_s is None:
        return check(libc.semop(id, data, ctypes.c_size_t(len(operations))))
    spec = struct.pack("=qq", int(within_s), int(within_s % 1 * 1e9))
    return check(libc.semtimedop(id, data, ctypes.c_size_t(len(operations)), spec))

def semctl(id, number, command, value=0):
    return check(libc.semctl(id, number, command, value))

def getall(id, count):
    room = ctypes.create_string_buffer(2 * count)
    check(libc.semctl(id, 0, 13, room))
    return list(struct.unpack(f"={count}H", room.raw))

def setall(id, values):
    return check(libc.semctl(id, 0, 17, struct.pack(f"={len(values)}H", *values)))

def control(kind, id, command, room):
    if kind == "sem":
        return check(libc.semctl(id, 0, command, room))
    return check(getattr(libc, kind + "ctl")(id, command, room))

def rmid(kind, id):
    return control(kind, id, 0, None)

def stat(kind, id):
    # Key, owner, group, creator, his group, mode; messages or semaphores.
    room = ctypes.create_string_buffer(128)
    control(kind, id, 2, room)
    words = list(struct.unpack_from("=i4II", room))
    return words + [struct.unpack_from("=Q", room, {"sem": 80, "msg": 80, "shm": 48}[kind])[0]]

def set_mode(kind, id, mode):
    room = ctypes.create_string_buffer(128)
    control(kind, id, 2, room)
    struct.pack_into("=I", room, 20, mode)
    return control(kind, id, 1, room)

def interrupt(number, how=signal.SIGUSR1):
    signal.pthread_kill(threads[number], how)

def flow(id, count):
    for number in range(count):
        msgsnd(id, 1 + number % 3, f"{number:05}" * (1 + number % 20))

def take(id, count):
    found = []
    for number in range(count):
        kind, text = msgrcv(id)
        assert kind == 1 + len(found) % 3, (kind, text, len(found))
        found.append(int(text[:5]))
        assert text == f"{found[-1]:05}" * (1 + found[-1] % 20)
    return found == list(range(count))

def pulse(id, count):
    # A lock's critical section, so often.
    for _ in range(count):
        semop(id, [[0, -1, 0o10000]])
        value = semctl(id, 1, 12)
        semctl(id, 1, 16, value + 1)
        semop(id, [[0, 1, 0o10000]])

DO = {name: one for name, one in globals().items() if callable(one)}
DO |= {"getpid": os.getpid, "become": lambda uid: (os.setgid(uid), os.setuid(uid))[1]}

def work(id, do, words):
    threads[id] = threading.get_ident()
    say(id=id, thread=threading.get_native_id())
    try:
        say(id=id, result=DO[do](*words))
    except OSError as error:
        say(id=id, error=error.errno)

signal.signal(signal.SIGUSR1, lambda *_: None)

def listen():
    for line in orders:
        threading.Thread(target=work, args=json.loads(line), daemon=True).start()
    os._exit(0)

threading.Thread(target=listen, daemon=True).start()
while True:
    signal.pause()
"""


class IpcActor(Actor):
    """One of them."""

    agent = AGENT
    busy = BUSY

    def interrupt(self, doing: Doing) -> None:
        """Have a handler called by the thread that does it."""
        self.do("interrupt", doing.number)

    def lock(self, identifier: int, number: int = 0) -> Doing:
        """Begin to take a semaphore, which is given back when the process ends."""
        return self.begin("semop", identifier, [[number, -1, UNDO]])

    def unlock(self, identifier: int, number: int = 0) -> Any:  # noqa: ANN401
        """Give it back."""
        return self.do("semop", identifier, [[number, 1, UNDO]])


@contextlib.contextmanager
def using(cluster: Cluster, *nodes: int, via: int | None = None) -> Iterator[list[IpcActor]]:
    """A process on each of `nodes`."""
    with acting_as(IpcActor, cluster, *nodes, via=via) as actors:
        yield actors
