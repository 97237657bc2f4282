"""A parent and a child with ends of pairs that carry messages send each other some of all sizes.

Usage: messages.py FILE: until there is such a file. They say their PIDs; then of each end is said
how many messages it has sent, and how many have arrived, each list with its digest.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
import threading
import time

SIZES = (0, 1, 100, 4096, 40000, 150000)
PAUSE_S = 0.02
END = b"end of all messages"
KINDS = (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)


def say(*words: object) -> None:
    """Print a line at once: who moves must have nothing left to print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def add(digest: hashlib._Hash, data: bytes) -> None:
    """Add a message: where it ends counts as well."""
    digest.update(len(data).to_bytes(4, "little") + data)


def send(line: socket.socket, name: str) -> None:
    """Send messages of all sizes, then one that says that it was the last."""
    numbers, digest, count = random.Random(name), hashlib.sha256(), 0
    while not os.path.exists(sys.argv[1]):
        data = numbers.randbytes(numbers.choice(SIZES))
        add(digest, data)
        line.send(data)
        count += 1
        time.sleep(PAUSE_S)
    line.send(END)
    say(name, "sent", count, digest.hexdigest())


def receive(line: socket.socket, name: str) -> None:
    """Take what comes of the other one."""
    digest, count = hashlib.sha256(), 0
    while (data := line.recv(max(SIZES) + 1)) != END:
        add(digest, data)
        count += 1
        if count % 7 == 0:
            time.sleep(5 * PAUSE_S)  # some wait in the socket now and then
    say(name, "arrived", count, digest.hexdigest())


def exchange(lines: list[socket.socket], mine: str, other: str) -> None:
    """Send and receive by all at once."""
    threads = [
        threading.Thread(target=work, args=(line, f"{who}-{line.type.name}"))
        for line in lines
        for work, who in ((send, mine), (receive, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in KINDS]
if child := os.fork():
    for _, end in pairs:
        end.close()
    say("pids", os.getpid(), child)
    exchange([end for end, _ in pairs], "parent", "child")
    say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    for end, _ in pairs:
        end.close()
    exchange([end for _, end in pairs], "child", "parent")
