"""Holds memory, and uses it as soon as it finds itself on another node: `lazy.py WHAT MIB`.

Prints its PID; then, when it has moved, the node and whatever is wrong with its memory.
"""

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PAGE = 4096
MAY_MOVE, FIXED = 1, 2
DONT_NEED = 4
TICK_S = 0.002
PATIENCE_S = 60

libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int,
                        ctypes.c_void_p]  # fmt: skip
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Waiting(threading.Thread):
    """Waits for a signal to itself."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._has_heard = False
        self.start()

    def run(self) -> None:
        self._has_heard = signal.sigtimedwait([signal.SIGUSR2], PATIENCE_S) is not None

    def hear(self) -> bool:
        """Send it the signal; tell whether it comes."""
        assert self.ident
        signal.pthread_kill(self.ident, signal.SIGUSR2)
        self.join()
        return self._has_heard


waiting: list[Waiting] = []
hidden: list[int] = []
"""Start and size of memory that nobody may read."""


def word(page: int) -> int:
    """Return what the last word of a page is to be, which is never 0."""
    return page * 2654435761 % 2**64 | 1


class Memory:
    """Pages of which each has a word of its own."""

    def __init__(self, mib: int) -> None:
        self.count = mib * 2**20 // PAGE
        self.start = libc.mmap(None, self.count * PAGE, 3, 0x22, -1, 0)
        for page in range(self.count):
            self.at(page).value = word(page)

    def at(self, page: int, start: int = 0) -> ctypes.c_uint64:
        """Return the word of a page, or of one behind another start."""
        return ctypes.c_uint64.from_address((start or self.start) + (page + 1) * PAGE - 8)

    def check(self, first: int = 0, last: int = 0, start: int = 0) -> int:
        """Return how many pages are wrong; looks at them in any order."""
        pages = list(range(first, last or self.count))
        random.shuffle(pages)
        return sum(self.at(page - first, start or self.start + first * PAGE).value != word(page)
                   for page in pages)  # fmt: skip

    def check_zeros(self, first: int, last: int) -> int:
        """Return how many pages are not empty."""
        return sum(self.at(page).value != 0 for page in range(first, last))


def read(memory: Memory) -> int:
    """All of it is there."""
    return memory.check()


def write(memory: Memory) -> int:
    """What is written first does not hide what is missing."""
    for page in range(0, memory.count, 3):
        ctypes.c_uint64.from_address(memory.start + page * PAGE).value = 7
    return memory.check()


def threads(memory: Memory) -> int:
    """Several wait for the same pages."""
    wrong: list[int] = []
    several = [threading.Thread(target=lambda: wrong.append(memory.check())) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    return sum(wrong) + (len(wrong) != 4)


def several(memory: Memory) -> int:
    """Threads that came along are known: the C library has a signal for each go to that one."""
    return memory.check() + sum(not one.hear() for one in waiting)


def protect(memory: Memory) -> int:
    """What nobody may read comes along as well."""
    wrong = int(libc.mprotect(*hidden, 3) != 0)
    return wrong + memory.check()


def fork(memory: Memory) -> int:
    """Who is born meanwhile has the same memory, and it is his own."""
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            grandchild = os.fork()
            if not grandchild:
                os._exit(memory.check() != 0)
            memory.at(5).value = 0
            wrong = abs(memory.check() - 1) + os.waitpid(grandchild, 0)[1]
            os._exit(wrong != 0)
        children.append(child)
    wrong = memory.check()
    return wrong + sum(os.waitpid(child, 0)[1] != 0 for child in children)


def remap(memory: Memory) -> int:
    """Memory is moved, given back and used anew."""
    eighth = memory.count // 8
    size = eighth * PAGE
    place = libc.mmap(None, size, 0, 0x22, -1, 0)
    moved = libc.mremap(memory.start, size, size, MAY_MOVE | FIXED, place)
    assert moved == place
    assert libc.madvise(memory.start + size, size, DONT_NEED) == 0
    assert libc.munmap(memory.start + 3 * size, size) == 0
    assert libc.mmap(memory.start + 3 * size, size, 3, 0x32, -1, 0) == memory.start + 3 * size
    # Larger, and thereby elsewhere.
    grown = libc.mremap(memory.start + 7 * size, size, 3 * size, MAY_MOVE, None)
    wrong = memory.check(2 * eighth, 3 * eighth) + memory.check(4 * eighth, 7 * eighth)
    wrong += memory.check_zeros(eighth, 2 * eighth) + memory.check_zeros(3 * eighth, 4 * eighth)
    wrong += memory.check(0, eighth, moved) + memory.check(7 * eighth, 8 * eighth, grown)
    return wrong + (memory.at(2 * eighth, grown).value != 0)


def signals(memory: Memory) -> int:
    """Signals come while it waits for pages."""
    count = 0

    def hear(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1

    signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    wrong = memory.check()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return wrong + (count == 0)


def calls(memory: Memory) -> int:
    """The kernel reads and writes what is missing."""
    half = memory.count // 2 * PAGE
    whole = (ctypes.c_char * half).from_address(memory.start)
    path = f"/var/tmp/lazy.{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    Path(path).unlink()
    written = 0
    while written < half:
        written += os.write(fd, memoryview(whole)[written:])
    back = os.pread(fd, half, 0)
    words = [int.from_bytes(back[end - 8 : end], "little") for end in range(PAGE, half + 1, PAGE)]
    wrong = sum(found != word(page) for page, found in enumerate(words))
    # Each second half of a page: what is missing of the other must still come.
    zeros = os.open("/dev/zero", os.O_RDONLY)
    for page in range(memory.count // 2, memory.count):
        place = (ctypes.c_char * 2048).from_address(memory.start + page * PAGE)
        os.readv(zeros, [place])
    return wrong + memory.check()


def start(memory: Memory) -> int:
    """Another program is run, by a child that is born meanwhile."""
    done = subprocess.run(["echo", "here"], capture_output=True, text=True, check=False)
    return memory.check() + (done.stdout != "here\n")


def leave(_memory: Memory) -> int:
    """It ends before all has come."""
    print(f"leave on {os.uname().nodename}: 0 wrong", flush=True)
    os._exit(7)


def bear(memory: Memory) -> int:
    """A child is born meanwhile, and looks at its memory later."""
    child = os.fork()
    if child:
        print(child, flush=True)
        # Before all has come.
        stop = ["pkill", "-STOP", "-x", "pager"]
        subprocess.run(stop, env={**os.environ, "SSI_PROC": "local"}, check=True)
    signal.sigwait([signal.SIGUSR1])
    return memory.check()


def wait(memory: Memory) -> int:
    """Nothing is done until a signal comes."""
    signal.sigwait([signal.SIGUSR1])
    return memory.check()


def main() -> None:
    what, mib = sys.argv[-2:]
    act = {one.__name__: one for one in (
        read, write, threads, several, protect, fork, remap, signals, calls, start, leave, bear,
        wait,
    )}[what]  # fmt: skip
    memory = Memory(int(mib))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
    if act is protect:
        hidden.extend((memory.start + 8 * PAGE, memory.count // 2 * PAGE))
        assert libc.mprotect(*hidden, 0) == 0
    if act is several:
        waiting.extend(Waiting() for _ in range(5))
    print(os.getpid(), flush=True)
    home = os.uname().nodename
    while os.uname().nodename == home:
        time.sleep(0.001)
    wrong = act(memory)
    print(f"{what} on {os.uname().nodename}: {wrong} wrong", flush=True)


main()
