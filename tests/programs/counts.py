"""Counts in two threads, for who is saved: counts.py FILE [READ].

Writes each number with its node into FILE, in lines of one length, and ends with 7 at SIGTERM. READ
is open meanwhile.
"""

import os
import signal
import sys
import threading
import time

counts = [0, 0]
turn = threading.Condition()


def count() -> None:
    """Count after the other thread has."""
    while True:
        with turn:
            turn.wait_for(lambda: counts[1] < counts[0])
            counts[1] += 1
            turn.notify_all()


signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
others = [open(name) for name in sys.argv[2:]]
file = open(sys.argv[1], "w")
threading.Thread(target=count, daemon=True).start()
while True:
    with turn:
        counts[0] += 1
        turn.notify_all()
        turn.wait_for(lambda: counts[1] == counts[0])
    print(f"{counts[1]:06}", os.uname().nodename, file=file, flush=True)
    time.sleep(0.05)
