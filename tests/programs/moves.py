"""Moves children of its own about while something is killed in the midst of it; on node 1.

Each line of standard input is a case, as JSON: the nodes from and to which it moves, the point, on
which node, and what is to happen there. Each line of output says what came of one: the node where
the one process runs by then, or "ended" and its status; or what is wrong.

With "heavy" as argument it has so much memory that this follows it.

With a number and a seed as arguments so many moves are made of several children at once, and what
is killed, and when, is left to chance. Each line of output is something wrong; but the last.
"""

import fcntl
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

NODES = (1, 2, 3)
DEADLINE_S = 120.0
NOT_UP = 126
HEAVY_MIB = 24

COUNTS = """\
import fcntl, mmap, os, random, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.lockf(file, fcntl.LOCK_EX)
memory = mmap.mmap(-1, max(int(sys.argv[2]), 1) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pages = range(0, len(memory), 4096)
for page in pages:
    memory[page : page + 8] = (page + 1).to_bytes(8)
number = 0
while True:
    number += 1
    for page in random.choices(pages, k=20):
        assert memory[page : page + 8] == (page + 1).to_bytes(8), page
    os.write(1, b"%d %s\\n" % (number, os.uname().nodename.encode()))
    time.sleep(0.02)
"""

# The kernel's own /proc: on which nodes is it, and is it held?
LOOK = (
    "[ $1 = all ] && [ -e /run/ssi/fault ] && exit 1; cd /run/ssi/proc/$0 2>/dev/null || exit 0; "
    'tr "\\0\\n" "  " <cmdline; echo; sed -n "s/^TracerPid:.//p" status'
)

# It is read-only in the userland.
SET = (
    "mount -o remount,bind,rw /run/ssi && echo $0 >/run/ssi/fault.new && "
    "mv /run/ssi/fault.new /run/ssi/fault"
)


class Child:
    """COUNTS; each number must be the one behind the last, and its locks its own."""

    def __init__(self, mib: int = 0) -> None:
        file, self.path = tempfile.mkstemp(dir="/root", prefix="locked.")
        os.close(file)
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTS, self.path, str(mib)],
            stdout=subprocess.PIPE,
            # A ghost says that its body's node was lost.
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.pid = str(self.process.pid)
        self.last, self.node, self.wrong = 0, "", ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            number, node = line.split()
            if int(number) != self.last + 1:
                self.wrong = self.wrong or f"{number} behind {self.last}"
            self.last, self.node = int(number), node

    def count_locks(self) -> int:
        """Return how many of the locks nobody else can get."""
        count = 0
        with open(self.path, "a") as file:
            for lock in (fcntl.flock, fcntl.lockf):
                try:
                    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    count += 1
        return count


def look(pid: str, faults: str) -> list[int] | None:
    """Return the nodes where the process is and nobody holds it; None if that is not sure.

    Nor is it while a fault has not happened that is to happen, if all are.
    """
    looking = {
        node: subprocess.Popen(
            ["onnode", str(node), "sh", "-c", LOOK, pid, faults],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for node in NODES
    }
    found = []
    for node, process in looking.items():
        lines = process.communicate()[0].splitlines()
        if process.returncode == NOT_UP:
            continue
        if process.returncode:
            return None
        if not lines:
            continue
        if len(lines) != 2 or lines[1] != "0":
            return None
        if not lines[0].startswith("onnode "):
            found.append(node)
    return found


def settle(child: Child, faults: str) -> str:
    """Wait until it is certain what has become of it; return that."""
    deadline = time.monotonic() + DEADLINE_S
    found, said, locks = None, "", 0
    while time.monotonic() < deadline:
        ended = child.process.poll()
        before = child.last
        found = look(child.pid, faults)
        if ended is not None and found == [] and not child.count_locks():
            return f"ended {ended}"
        if ended is None and found is not None and len(found) == 1:
            time.sleep(0.1)
            said = subprocess.run(
                ["where_pid", child.pid], capture_output=True, text=True, check=False
            ).stdout
            if child.last > before and child.node == f"node{found[0]}" and said == f"{found[0]}\n":
                locks = child.count_locks()
                if locks == 2:
                    return child.wrong or f"node{found[0]}"
                # Its node may have died just before.
    return f"not settled: {found}, {child.last} {child.node}, where_pid {said!r}, {locks} locks"


def move(child: Child, node: int) -> None:
    """Have it on a node, whatever may be just under way."""
    for _ in range(50):
        done = subprocess.run(
            ["migrate", str(node), child.pid], capture_output=True, text=True, check=False
        )
        if not done.returncode:
            return
        time.sleep(0.2)
    raise AssertionError(f"{child.pid} does not move to node{node}")


def main(mib: int) -> None:
    child: Child | None = None
    for line in sys.stdin:
        case = json.loads(line)
        if child is None or child.process.poll() is not None:
            child = Child(mib)
            while not child.last:
                time.sleep(0.01)
        move(child, case["from"])
        subprocess.run(["onnode", str(case["where"]), "sh", "-c", SET, case["fault"]], check=True)
        done = subprocess.run(
            ["migrate", str(case["to"]), child.pid], capture_output=True, text=True, check=False
        )
        print(settle(child, "all"), f"({done.stderr.strip()})", flush=True)
    assert child
    child.process.kill()
    print("killed", child.process.wait(), flush=True)


CHILDREN = 5
POINTS = [
    f"{whose}-{point}"
    for whose, points in {
        "departure": "begun dumped sent ready committed followed done",
        "arrival": "begun called restoring ready ended",
    }.items()
    for point in points.split()
]

KILL_CRIU = (
    "sleep $0; for process in /run/ssi/proc/[0-9]*; do "
    '[ "$(cat $process/comm)" = criu ] && kill -9 ${process##*/}; done 2>/dev/null; true'
)


class Torment:
    """Moves left to chance."""

    def __init__(self, count: int, seed: int) -> None:
        self._left = count
        self._seed = seed
        self.moved, self.ended = 0, 0
        self._lock = threading.Lock()

    def _take(self) -> int:
        with self._lock:
            self._left -= 1
            return self._left

    def _harm(self, chance: random.Random) -> None:
        """Have something killed on some node, which may be down."""
        node = str(chance.choice(NODES))
        if chance.random() < 0.3:
            words = [KILL_CRIU, f"{chance.random() / 2:.2f}"]
        else:
            words = [SET, f"{chance.choice(POINTS)} {chance.choice(['', 'criu', 'cut'])}"]
        subprocess.run(["onnode", node, "sh", "-c", *words], stderr=subprocess.DEVNULL, check=False)

    def move_one(self, number: int) -> None:
        """Move one child about, until all moves are made."""
        chance = random.Random(self._seed * CHILDREN + number)
        child = Child()
        while self._take() >= 0:
            harming = threading.Thread(target=self._harm, args=[chance])
            if chance.random() < 0.5:
                harming.start()
            words = ["migrate", str(chance.choice(NODES)), child.pid]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if harming.ident:
                harming.join()
            said = settle(child, "some")
            self.moved += not done.returncode
            if said == "ended -9":
                self.ended += 1
                child = Child()
            elif said not in {f"node{node}" for node in NODES}:
                print(f"{child.pid}: {said}; {words}: {done.stderr}", flush=True)
        child.process.kill()
        child.process.wait()

    def run(self) -> None:
        """Move all."""
        threads = [
            threading.Thread(target=self.move_one, args=[number]) for number in range(CHILDREN)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("killed -9", self.moved, self.ended, flush=True)


if sys.argv[2:]:
    Torment(int(sys.argv[1]), int(sys.argv[2])).run()
else:
    main(HEAVY_MIB if sys.argv[1:] == ["heavy"] else 0)
