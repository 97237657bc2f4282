"""A parent and a child with one end each of a socket pair send each other bytes, and then the end.

Usage: pairs.py FILE: until there is such a file. They say their PIDs; then of each is said
what it has sent, and what of that has arrived.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
import threading
import time

PIECES = (1, 100, 4096, 30000, 70000)
PAUSE_S = 0.02


def say(*words: object) -> None:
    """Print a line at once: who moves must have nothing left to print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def send(line: socket.socket, name: str) -> None:
    """Send pieces of all sizes, then the end."""
    numbers, digest, sent = random.Random(name), hashlib.sha256(), 0
    while not os.path.exists(sys.argv[1]):
        data = numbers.randbytes(numbers.choice(PIECES))
        digest.update(data)
        line.sendall(data)
        sent += len(data)
        time.sleep(PAUSE_S)
    line.shutdown(socket.SHUT_WR)
    say(name, "sent", sent, digest.hexdigest())


def receive(line: socket.socket, name: str) -> None:
    """Take what comes of the other one until the end."""
    digest, count = hashlib.sha256(), 0
    while data := line.recv(50000):
        digest.update(data)
        count += len(data)
        if count % 7 == 0:
            time.sleep(PAUSE_S)  # something waits in the socket now and then
    say(name, "arrived", count, digest.hexdigest())


def exchange(line: socket.socket, mine: str, other: str) -> None:
    """Send and receive at once."""
    sender = threading.Thread(target=send, args=(line, mine))
    sender.start()
    receive(line, other)
    sender.join()


mine, other = socket.socketpair()
if child := os.fork():
    other.close()
    say("pids", os.getpid(), child)
    exchange(mine, "parent", "child")
    say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    mine.close()
    exchange(other, "child", "parent")
