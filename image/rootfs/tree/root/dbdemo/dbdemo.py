#!/usr/bin/python3
"""dbdemo.py FILE: "processes" the records of a file, a line each, on whichever node it is told.

    1-9    move to that node, and go on with the next record
    Enter  move to another node every few records, until a key is pressed
    q      quit

A move is one call, ssi.api.migrate(). Of the terminal and the file nothing is said here: what a
process has comes along. Keys are read, and records printed, on the terminal where it was started;
and which record is next it knows only from the offset of the open file.
"""

import contextlib
import os
import random
import select
import sys
import termios
import time

import ssi.api

MOVES_AFTER = 3
LOCAL_MODES = 3  # of what tcgetattr returns


@contextlib.contextmanager
def keys():
    """Have the terminal give each key at once, and not show it."""
    if not os.isatty(0):
        yield  # then there are no keys
        return
    usual = termios.tcgetattr(0)
    settings = termios.tcgetattr(0)
    settings[LOCAL_MODES] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(0, termios.TCSANOW, settings)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, usual)


def read_key():
    """Return the key that has been pressed, "" if none has."""
    ready, _, _ = select.select([0], [], [], 0)
    return os.read(0, 1).decode("latin-1") if ready else ""


def compute():
    """Work hard for a second."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass


def move_to(node):
    """Go on there; or stay, and say why."""
    try:
        ssi.api.migrate(node)
    except ssi.api.SsiError as error:
        print(f"cannot move to node {node}: {error}", flush=True)


def choose_node():
    """Return one of the other nodes that are up; this one if there are none."""
    here = ssi.api.node_number()
    return random.choice([node for node in ssi.api.membership().up if node != here] or [here])


def run(file):
    """Process records until somebody quits."""
    wanders = False
    count = 0
    while True:
        record = file.readline()
        if not record:
            file.seek(0)
            continue
        print(f"node {ssi.api.node_number()}: {record.decode()}", end="", flush=True)
        compute()
        count += 1
        key = read_key()
        if key == "q":
            return
        if key:
            wanders = key == "\n"
        if key and key in "123456789":
            move_to(int(key))
        elif wanders and count % MOVES_AFTER == 0:
            move_to(choose_node())


def main():
    """Open the file whose name is given."""
    if len(sys.argv) != 2:
        sys.exit("usage: dbdemo.py FILE")
    # Without a buffer: the offset is that of the record which is next.
    with open(sys.argv[1], "rb", buffering=0) as file, keys():
        run(file)


if __name__ == "__main__":
    main()
