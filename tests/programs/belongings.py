"""A process with one of each kind of thing that one may have; at SIGUSR1 it says how they are.

Each check prints its name and "ok", or what is wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)
checks: dict[str, Iterator[None]] = {}
folder = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else "/root")
# Before there are threads, which all block what they begin with.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMIN, signal.SIGWINCH})


def check(function: Callable[[], Iterator[None]]) -> None:
    """Have `function`, a generator, set something up now and look at it at SIGUSR1."""
    steps = function()
    next(steps)
    checks[function.__name__] = steps


@check
def file_with_offset() -> Iterator[None]:
    path = f"{folder}/file"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"0123456789")
        file.seek(4)
        other = os.dup(file.fileno())
        yield
        assert file.read(2) == b"45"
        assert os.lseek(other, 0, os.SEEK_CUR) == 6
        file.write(b"xy")
        assert os.pread(other, 20, 0) == b"012345xy89"


@check
def unlinked_file() -> Iterator[None]:
    path = f"{folder}/gone"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"still here")
        os.unlink(path)
        yield
        assert os.pread(file.fileno(), 20, 0) == b"still here"


@check
def private_memory() -> Iterator[None]:
    memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[12345:12350] = b"hello"
    yield
    assert memory[12345:12350] == b"hello"
    assert memory[0] == 0


@check
def shared_memory() -> Iterator[None]:
    memory = mmap.mmap(-1, 1 << 16)
    memory[5:10] = b"hello"
    yield
    assert memory[5:10] == b"hello"


@check
def shared_file_mapping() -> Iterator[None]:
    with open(f"{folder}/map", "w+b") as file:
        file.truncate(8192)
        memory = mmap.mmap(file.fileno(), 8192)
    memory[4096:4101] = b"hello"
    yield
    assert memory[4096:4101] == b"hello"
    memory[0:2] = b"ok"
    memory.flush()
    with open(f"{folder}/map", "rb") as file:
        assert file.read(2) == b"ok"


@check
def memory_file() -> Iterator[None]:
    fd = os.memfd_create("name")
    os.write(fd, b"in memory")
    os.lseek(fd, 3, os.SEEK_SET)
    yield
    assert os.read(fd, 20) == b"memory"


@check
def threads() -> Iterator[None]:
    begin = threading.Event()
    done: list[int] = []

    def run(number: int) -> None:
        begin.wait()
        done.append(number)

    started = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in started:
        thread.start()
    yield
    begin.set()
    for thread in started:
        thread.join()
    assert sorted(done) == [0, 1, 2]


@check
def handlers_and_masks() -> Iterator[None]:
    got: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: got.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGRTMIN)
    yield
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert got == [signal.SIGUSR2]
    assert signal.sigtimedwait({signal.SIGRTMIN}, 0)
    assert not signal.sigtimedwait({signal.SIGRTMIN}, 0)


@check
def interval_timer() -> Iterator[None]:
    ticks: list[int] = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    yield
    before = len(ticks)
    deadline = time.monotonic() + 20
    while len(ticks) < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    signal.setitimer(signal.ITIMER_REAL, 0)


@check
def timer_descriptor() -> Iterator[None]:
    fd = libc.timerfd_create(1, 0)
    spec = struct.pack("=4q", 0, 300_000_000, 0, 300_000_000)
    assert not libc.timerfd_settime(fd, 0, spec, None)
    yield
    for _ in range(2):
        assert struct.unpack("=q", os.read(fd, 8))[0] > 0


@check
def event_descriptor_and_epoll() -> Iterator[None]:
    fd, epoll = os.eventfd(3), select.epoll()
    epoll.register(fd, select.EPOLLIN)
    yield
    assert epoll.poll(10) == [(fd, select.EPOLLIN)]
    assert os.eventfd_read(fd) == 3
    assert epoll.poll(0) == []


@check
def signal_descriptor() -> Iterator[None]:
    mask = struct.pack("=Q", 1 << (signal.SIGWINCH - 1))
    fd = libc.signalfd(-1, mask, 0)
    yield
    os.kill(os.getpid(), signal.SIGWINCH)
    assert struct.unpack_from("=I", os.read(fd, 128))[0] == signal.SIGWINCH


@check
def watched_folder() -> Iterator[None]:
    fd = libc.inotify_init()
    assert libc.inotify_add_watch(fd, folder.encode(), 0x100) > 0
    yield
    open(f"{folder}/new", "w").close()
    assert b"new" in os.read(fd, 1000)


@check
def own_pipe() -> Iterator[None]:
    reader, writer = os.pipe()
    os.write(writer, b"under way")
    yield
    os.write(writer, b"!")
    assert os.read(reader, 100) == b"under way!"


@check
def own_socket_pair() -> Iterator[None]:
    one, two = socket.socketpair()
    one.send(b"under way")
    yield
    assert two.recv(100) == b"under way"
    two.send(b"back")
    assert one.recv(100) == b"back"


@check
def limits_and_mask() -> Iterator[None]:
    os.umask(0o137)
    resource.setrlimit(resource.RLIMIT_CORE, (11, 22))
    os.nice(3)
    yield
    assert os.umask(0o22) == 0o137
    assert resource.getrlimit(resource.RLIMIT_CORE) == (11, 22)
    assert os.nice(0) == 3


@check
def folder_it_is_in() -> Iterator[None]:
    os.chdir(folder)
    yield
    assert os.getcwd() == folder
    assert os.path.exists("file")


@check
def relatives() -> Iterator[None]:
    before = os.getpid(), os.getpgrp(), os.getsid(0)
    yield
    assert (os.getpid(), os.getpgrp(), os.getsid(0)) == before


@check
def clocks() -> Iterator[None]:
    monotonic, real = time.monotonic(), time.time()
    yield
    passed = time.monotonic() - monotonic
    assert abs(passed - (time.time() - real)) < 1, passed


print(os.getpid(), "ready", flush=True)
signal.sigwait({signal.SIGUSR1})
for name, steps in checks.items():
    try:
        next(steps, None)
        print(name, "ok")
    except Exception as error:
        print(name, type(error).__name__, error)
print("on", os.uname().nodename)
sys.stdout.flush()
os._exit(0)
