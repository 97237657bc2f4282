"""Uses what processes share by memory: named semaphores, a mutex and a condition in a file.

play NAME ME ROUNDS: takes turns with the other player, each waiting for a semaphore of his own.
count NAME TIMES: adds one to a number in /dev/shm/NAME, under a semaphore; no atomic add.
wait NAME / post NAME: says `waits`, and what came of it; posts once.
prepare FILE: makes mutex, condition and number in it.
listen FILE: says `waits`, and waits on a condition in FILE for its number to be more than 0.
shout FILE: sets it, and wakes all.
"""

import ctypes
import errno
import mmap
import os
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.sem_open.restype = ctypes.c_void_p
libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_uint]
libc.sem_wait.argtypes = libc.sem_post.argtypes = [ctypes.c_void_p]
SHARED = 1
MUTEX, CONDITION, NUMBER = 0, 256, 512
Words = ctypes.Array[ctypes.c_char]


def semaphore(name: str, value: int) -> int:
    """Return one, made if there is none."""
    found: int = libc.sem_open(f"/{name}".encode(), os.O_CREAT, 0o600, value)
    assert found, os.strerror(ctypes.get_errno())
    return found


def take(one: int) -> None:
    """Wait for it; raises OSError."""
    if libc.sem_wait(one):
        raise OSError(ctypes.get_errno(), "sem_wait")


def memory(path: str) -> Words:
    """Map a page of a file."""
    with open(path, "r+b") as file:
        page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    return (ctypes.c_char * mmap.PAGESIZE).from_buffer(page)


def play(name: str, me: str, rounds: str) -> None:
    """One of two players, 0 and 1; the first has the ball."""
    mine, other = (semaphore(f"{name}{who}", who == 0) for who in (int(me), 1 - int(me)))
    took = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        take(mine)
        libc.sem_post(other)
        took.append(time.perf_counter() - start)
    print("played", sorted(took)[len(took) // 2], flush=True)


def count(name: str, times: str) -> None:
    """Add one so many times."""
    number = ctypes.c_long.from_buffer(memory(f"/dev/shm/{name}"))
    lock = semaphore(f"{name}.lock", 1)
    for _ in range(int(times)):
        take(lock)
        was = number.value
        os.sched_yield()
        number.value = was + 1
        libc.sem_post(lock)
    print("counted", flush=True)


def wait(name: str) -> None:
    """Wait once."""
    one = semaphore(name, 0)
    print("waits", flush=True)
    try:
        take(one)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno or 0], flush=True)
    else:
        print("woken", flush=True)


def post(name: str) -> None:
    """Post once."""
    libc.sem_post(semaphore(name, 0))


def shared(path: str, *, make: bool) -> tuple[Words, Words, ctypes.c_int]:
    """Return mutex, condition and number in a file."""
    page = memory(path)
    mutex, condition = ((ctypes.c_char * 128).from_buffer(page, at) for at in (MUTEX, CONDITION))
    if make:
        attributes = (ctypes.c_char * 64)()
        libc.pthread_mutexattr_init(attributes)
        libc.pthread_mutexattr_setpshared(attributes, SHARED)
        libc.pthread_mutex_init(mutex, attributes)
        attributes = (ctypes.c_char * 64)()
        libc.pthread_condattr_init(attributes)
        libc.pthread_condattr_setpshared(attributes, SHARED)
        libc.pthread_cond_init(condition, attributes)
    return mutex, condition, ctypes.c_int.from_buffer(page, NUMBER)


def prepare(path: str) -> None:
    """Make the file."""
    with open(path, "wb") as file:
        file.truncate(mmap.PAGESIZE)
    shared(path, make=True)


def listen(path: str) -> None:
    """Wait for the number."""
    mutex, condition, number = shared(path, make=False)
    print("waits", flush=True)
    libc.pthread_mutex_lock(mutex)
    while not number.value:
        libc.pthread_cond_wait(condition, mutex)
    libc.pthread_mutex_unlock(mutex)
    print("heard", number.value, flush=True)


def shout(path: str, value: str) -> None:
    """Set it, and wake all."""
    mutex, condition, number = shared(path, make=False)
    libc.pthread_mutex_lock(mutex)
    number.value = int(value)
    libc.pthread_cond_broadcast(condition)
    libc.pthread_mutex_unlock(mutex)


globals()[sys.argv[1]](*sys.argv[2:])
