"""Real programs, moved at least ten times while they work: what they do is the same as unmoved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clusters import Cluster, Result, Ssi, started, wait_until
from support.packages import install_packages
from support.programs import install
from support.terminal import PASSWORD, Terminal, attached
from support.worker import Worker, working

WAYS = (2, 3, 1, 2, 3, 1, 3, 2, 3, 1)
PROMPT = r"root@node1:[^ ]*# "

# All of these say a line for each round: its number, and what has come of all so far. They end at
# SIGTERM, or after as many rounds as their argument says. Without one they rest between the rounds:
# all that they do while they are moved is done again, to be compared.
NUMPY = """\
import signal, sys, time
import numpy
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
last = int((sys.argv + ["0"])[1])
matrix = numpy.random.default_rng(7).standard_normal((100, 100))
number = 0
while not told and (not last or number < last):
    number += 1
    q, r = numpy.linalg.qr(matrix)
    matrix = r @ q + numpy.sort(matrix, axis=1) * 1e-3
    matrix /= numpy.abs(matrix).max()
    print(number, repr(float(numpy.fft.fft2(matrix).real.sum())), flush=True)
    last or time.sleep(0.03)
"""

PERL = r"""
use strict; use warnings;
$| = 1;
my ($last, $told, $sum, %seen) = (shift || 0, 0, 1);
$SIG{TERM} = sub { $told = 1 };
for (my $round = 1; !$told && (!$last || $round <= $last); $round++) {
    for (1 .. 3000) {
        $sum = ($sum * 1103515245 + 12345) & 0x7fffffff;
        $seen{sprintf "%03x", $sum >> 8 & 0xfff} .= chr(97 + $sum % 26);
    }
    my $text = join ",", map { "$_=$seen{$_}" } sort keys %seen;
    $sum = ($sum + length($1)) & 0x7fffffff while $text =~ /([aeiou]+)/g;
    %seen = () if length $text > 100000;
    print "$round $sum\n";
    select undef, undef, undef, 0.06 unless $last;
}
"""

JAVA = """\
import java.util.*;

public class Rounds {
    static volatile boolean told;

    static long work(long seed) {
        Random random = new Random(seed);
        Map<Long, String> map = new TreeMap<>();
        for (int i = 0; i < 3000; i++)
            map.merge(random.nextLong() % 1000, "x" + i, (a, b) -> a.length() > 40 ? b : a + b);
        return map.toString().hashCode();
    }

    public static void main(String[] words) throws Exception {
        int last = words.length > 0 ? Integer.parseInt(words[0]) : 0;
        sun.misc.Signal.handle(new sun.misc.Signal("TERM"), signal -> told = true);
        long sum = 1;
        for (int round = 1; !told && (last == 0 || round <= last); round++) {
            Thread[] threads = new Thread[3];
            long[] parts = new long[threads.length];
            for (int i = 0; i < threads.length; i++) {
                int self = i;
                long seed = sum + i;
                threads[i] = new Thread(() -> parts[self] = work(seed));
                threads[i].start();
            }
            for (Thread thread : threads)
                thread.join();
            for (long part : parts)
                sum = sum * 31 + part;
            System.out.println(round + " " + sum);
            if (last == 0)
                Thread.sleep(50);
        }
    }
}
"""

# Lines until SIGTERM, or so many; then how many that were, in a file. gzip makes half of them at
# most: it writes a quarter of a megabyte at once, and who waits for more should not wait long.
FEED = """\
import random, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
last = int((sys.argv + ["-1"])[1])
numbers = random.Random(5)
count = 0
while not told and count != last:
    count += 1
    sys.stdout.write(f"{count} {numbers.randbytes(500).hex()}\\n")
    if last < 0 and count % 20 == 0:
        time.sleep(0.01)
sys.stdout.flush()
open("/root/count", "w").write(str(count))
"""

SUM = """\
import hashlib, sys
digest, size = hashlib.sha256(), 0
while data := sys.stdin.buffer.read(1 << 16):
    digest.update(data)
    size += len(data)
    print(size, flush=True)
print("sum", digest.hexdigest())
"""

# Files of C that take a compiler a while: folder, files, functions in each.
PROJECT = """\
import pathlib, sys
folder, files, functions = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir()
body = ("for (int i = 0; i < n; i++) switch (a[i] % 7) {{ case 0: s += a[i] * {0}; break; "
        "case 1: s ^= a[n - i - 1] << 3; break; default: s = s * 31 + i; }}")
for file in range(files):
    lines = [f"static int g{k}(const int *a, int n) {{ int s = {k}; {body.format(file + k)} "
             f"return s{f' + g{k - 1}(a, n - 1)' if k else ''}; }}" for k in range(functions)]
    lines.append(f"int f{file}(const int *a) {{ return g{functions - 1}(a, 400); }}")
    (folder / f"f{file}.c").write_text("\\n".join(lines))
calls = "\\n".join(f"int f{file}(const int *); " for file in range(files))
uses = " ".join(f"sum = sum * 33 + f{file}(a);" for file in range(files))
(folder / "main.c").write_text(
    f"#include <stdio.h>\\n{calls}\\nint main(void) {{ int a[400]; unsigned sum = 0; "
    f"for (int i = 0; i < 400; i++) a[i] = i * 37; {uses} printf(\\"%u\\\\n\\", sum); return 0; }}")
names = " ".join(f"f{file}.o" for file in range(files))
(folder / "Makefile").write_text(f"CFLAGS = -O2\\nsum: main.o {names}\\n\\t$(CC) -o $@ $^\\n")
"""

# Moves what has this name from node to node for as long as a process runs; says how often each.
MOVER = """\
import collections, itertools, os, subprocess, sys
name, until = sys.argv[1:]
moved = collections.Counter()
def lives(pid):
    return not subprocess.run(["kill", "-0", pid], capture_output=True).returncode
ways = itertools.cycle((2, 3, 1))
while os.path.exists(f"/proc/{until}"):
    found = subprocess.run(["pgrep", "-x", name], capture_output=True, text=True).stdout.split()
    node = str(next(ways))
    for pid in found:
        done = subprocess.run(["migrate", node, pid], capture_output=True, text=True)
        moved[pid] += done.returncode == 0
        # It may end before, or while it moves.
        if done.returncode and "there is no process" not in done.stderr and lives(pid):
            print(done.stderr, end="")
print("moved", *moved.values())
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with what is not in the root; the password has been changed."""
    with started(ssi, 3, "-m", "512") as cluster:
        install_packages(cluster, "gcc", "libc6-dev", "make", "python3-numpy", "sqlite3")
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        for name, text in (
            ("matrix.py", NUMPY), ("rounds.pl", PERL), ("Rounds.java", JAVA), ("feed.py", FEED),
            ("sum.py", SUM), ("project.py", PROJECT), ("mover.py", MOVER), ("leader.py", LEADER),
            ("job.py", JOB),
        ):  # fmt: skip
            cluster.run(1, "sh", "-c", 'cat >"/root/$0"', name, given=text.encode())
        yield cluster


@pytest.fixture(scope="module")
def console(trio: Cluster) -> Iterator[Terminal]:
    """The console of node 1. Once: who comes again is shown first what was there before."""
    with attached(trio, 1) as terminal:
        yield terminal


@pytest.fixture
def shell(trio: Cluster, console: Terminal) -> Iterator[Terminal]:
    """A root shell there, logged in anew."""
    console.log_in()
    console.type('echo "<$$>"\r')
    pid = read_pid(console)
    console.expect(PROMPT)
    yield console
    # Whatever runs in it, wherever it is.
    trio.run(3, "sh", "-c", 'kill -HUP "$0"; kill -KILL "$0" || true', pid)


def move(cluster: Cluster, node: int, pid: str) -> None:
    """Move a process; it is there then."""
    script = 'migrate "$0" "$1" && where_pid "$1"'
    assert cluster.run(3, "sh", "-c", script, str(node), pid) == f"{node}\n"


def locate(cluster: Cluster, *pids: str) -> list[str]:
    """Return where processes are."""
    script = 'for pid; do where_pid "$pid"; done'
    return cluster.run(3, "bash", "-c", script, "locate", *pids).split()


def find(cluster: Cluster, name: str) -> list[str]:
    """Return the PIDs of the processes of that name, once there are some."""
    found: list[str] = []

    def is_there() -> list[str]:
        found[:] = cluster.try_run(3, "pgrep", "-x", name).out.split()
        return found

    wait_until(is_there, f"{name} runs")
    return found


def check_rounds(cluster: Cluster, *words: str) -> None:
    """Have a program work while it is moved, and do the same again where it stays."""
    with working(cluster, 1, *words) as worker:
        worker.go_on()
        for node in WAYS:
            move(cluster, node, worker.pid)
            worker.go_on()
        cluster.run(3, "kill", "-TERM", worker.pid)
        said = worker.end()
    assert len(said) > 2 * len(WAYS)
    assert said == cluster.run(1, *words, said[-1].split()[0]).splitlines()


def test_threads_of_c(trio: Cluster, tmp_path: Path) -> None:
    check_rounds(trio, install(trio, "checksum", tmp_path))


def test_numpy(trio: Cluster) -> None:
    check_rounds(trio, "python3", "/root/matrix.py")


def test_what_is_stopped_moves(trio: Cluster) -> None:
    with working(trio, 1, "perl", "/root/rounds.pl") as worker:
        for node in WAYS:
            worker.go_on()
            trio.run(3, "kill", "-STOP", worker.pid)
            move(trio, node, worker.pid)
            assert trio.run(2, "ps", "-o", "stat=", "-p", worker.pid).startswith("T")
            trio.run(3, "kill", "-CONT", worker.pid)
        worker.go_on()
        trio.run(3, "kill", "-TERM", worker.pid)
        said = worker.end()
    last = said[-1].split()[0]
    assert said == trio.run(1, "perl", "/root/rounds.pl", last).splitlines()


def test_perl(trio: Cluster) -> None:
    check_rounds(trio, "perl", "/root/rounds.pl")


@pytest.mark.slow
def test_a_virtual_machine_of_java(trio: Cluster) -> None:
    install_packages(trio, "default-jdk-headless")
    trio.run(1, "javac", "-d", "/root", "/root/Rounds.java")
    check_rounds(trio, "java", "-Xmx64m", "-cp", "/root", "Rounds")


def test_gzip_in_a_pipeline(trio: Cluster) -> None:
    script = "set -o pipefail; python3 /root/feed.py | gzip -5 | gzip -dc | python3 /root/sum.py"
    with working(trio, 1, "bash", "-c", script) as worker:
        worker.go_on()
        packing, unpacking = find(trio, "gzip")
        for node in WAYS:
            move(trio, node, packing)
            worker.go_on()
            move(trio, 4 - node, unpacking)
            worker.go_on()
        trio.run(3, "pkill", "-TERM", "-xf", "python3 /root/feed.py")
        said = worker.end()
    assert said[-1] == sum_unmoved(trio)


def sum_unmoved(cluster: Cluster) -> str:
    """Return what feed.py's last run comes to where nothing moves."""
    count = cluster.run(1, "cat", "/root/count")
    script = f"python3 /root/feed.py {count} | python3 /root/sum.py"
    return cluster.run(1, "bash", "-c", script).splitlines()[-1]


def test_a_pipeline_as_a_group(trio: Cluster) -> None:
    pipeline = "python3 /root/feed.py | gzip -5 | gzip -dc | python3 /root/sum.py"
    script = f"set -m -o pipefail; {pipeline} & echo group $!; wait $!"
    with working(trio, 1, "bash", "-c", script) as worker:
        last = worker.say("group").split()[1]
        group = trio.run(2, "ps", "-o", "pgid=", "-p", last).strip()
        members = trio.run(2, "pgrep", "-g", group).split()
        assert len(members) == 4
        for node in WAYS:
            trio.ssi("migrate", "-c", str(trio.number), "-g", str(node), group)
            assert locate(trio, *members) == [str(node)] * 4
            worker.go_on()
        assert trio.run(2, "pgrep", "-g", group).split() == members
        trio.run(3, "pkill", "-TERM", "-xf", "python3 /root/feed.py")
        said = worker.end()
    assert said[-1] == sum_unmoved(trio)


def test_a_group_of_which_one_cannot_move(trio: Cluster) -> None:
    script = (
        'set -m; sleep 1000 | python3 -c \'import socket, time; s = socket.create_server(("", 0)); '
        'print("ready", flush=True); time.sleep(1000)\' & echo group $(jobs -p); wait'
    )
    with working(trio, 1, "bash", "-c", script) as worker:
        worker.say("ready")
        group = worker.say("group").split()[1]
        [keeps] = set(trio.run(2, "pgrep", "-g", group).split()) - {group}
        refused = trio.try_run(2, "migrate", "-g", "3", group)
        assert refused.status == 1
        assert refused.err.startswith(f"migrate: {keeps}: descriptor ")
        assert len(refused.err.splitlines()) == 1
        assert locate(trio, group, keeps) == ["3", "1"]
        checked = trio.try_run(2, "migrate", "--check", "-g", group)
        assert checked.status == 1
        assert checked.out.startswith(f"{group} can move\n{keeps}: descriptor ")
        said = trio.python(2, API, group)
        assert re.fullmatch(rf"{keeps}: descriptor \d+ is a TCP socket [^\n]*\n", said)
        assert trio.run(2, "where_pid", group) == "2\n"
        trio.run(2, "pkill", "-KILL", "-g", group)
    gone = trio.try_run(2, "migrate", "-s", "3", group)
    assert gone == Result(1, "", f"migrate: there is no session {group}\n")


# Moves a group to node 2.
API = """\
import sys, ssi.api
try:
    ssi.api.migrate_group(2, int(sys.argv[1]))
except ssi.api.CannotMove as error:
    print(error)
"""


# It is stopped but for moments: how long it takes in all is the machine's affair.
IN_SLICES = """\
until pid=$(pgrep -x cc1); do :; done
for node; do
    kill -STOP $pid && migrate $node $pid && where_pid $pid && kill -CONT $pid
    sleep 0.2
done
"""


def test_a_compiler(trio: Cluster) -> None:
    trio.run(1, "python3", "/root/project.py", "/root/one", "1", "1800")
    words = ("env", "-C", "/root/one", "gcc", "-O2", "-c", "f0.c", "-o")
    ways = list(map(str, WAYS))
    with working(trio, 1, *words, "moved.o") as worker:
        assert trio.run(3, "bash", "-c", IN_SLICES, "slices", *ways).split() == ways
        worker.end()
    trio.run(1, *words, "unmoved.o")
    trio.run(1, "cmp", "/root/one/moved.o", "/root/one/unmoved.o")


def test_make_whose_compilers_move(trio: Cluster) -> None:
    trio.run(1, "python3", "/root/project.py", "/root/project", "12", "90")
    count, sums = 0, set()
    while count < 10:
        with working(trio, 1, "env", "-C", "/root/project", "make", "-s", "-B", "-j4") as worker:
            said = trio.run(3, "python3", "/root/mover.py", "cc1", worker.pid).splitlines()
            worker.end()
        assert said[0].startswith("moved")
        count += sum(map(int, said[0].split()[1:]))
        sums.add(trio.run(1, "sh", "-c", "cd /root/project && sha256sum *.o sum && ./sum"))
    trio.run(1, "make", "-C", "/root/project", "-s", "-B", "-j4")
    sums.add(trio.run(1, "sh", "-c", "cd /root/project && sha256sum *.o sum && ./sum"))
    assert len(sums) == 1


def test_make_itself(trio: Cluster) -> None:
    """Its compilers stay where they are born, and it hears how they end."""
    build = ("make", "-C", "/root/itself", "-s", "-B", "-j4")
    trio.run(1, "python3", "/root/project.py", "/root/itself", "16", "90")
    with working(trio, 1, *build) as worker:
        for node in (2, 3, 1):
            move(trio, node, worker.pid)
            wait_until(lambda n=node: born_on(trio, n, worker.pid), f"it compiles on node{node}")  # type: ignore[misc]
        worker.end()
    script = "cd /root/itself && sha256sum *.o sum && ./sum"
    moved = trio.run(1, "sh", "-c", script)
    trio.run(2, *build)
    assert trio.run(1, "sh", "-c", script) == moved


def born_on(cluster: Cluster, node: int, parent: str) -> list[str]:
    """Return the children of a process whose PIDs are of that node."""
    pids = cluster.try_run(3, "ps", "-o", "pid=", "--ppid", parent).out.split()
    return [pid for pid in pids if int(pid) >> 15 == node]


# -- at a terminal -------------------------------------------------------------------------------


def read_pid(shell: Terminal) -> str:
    """Return the PID that is said between angle brackets."""
    shell.expect(r"<\d+>")
    return shell.found.strip("<>")


def test_python_typed(trio: Cluster, shell: Terminal) -> None:
    shell.type("PYTHON_BASIC_REPL=1 python3 -q\r")
    shell.expect(">>> ")
    shell.type("import os; total = 0; print(f'<{os.getpid()}>')\r")
    pid = read_pid(shell)
    shell.expect(">>> ")
    for step, node in enumerate(WAYS, 1):
        # It moves with a line half typed.
        shell.type("total += 3; pri")
        move(trio, node, pid)
        shell.type("nt(f'<{total}>', os.uname().nodename)\r")
        shell.expect(f"<{3 * step}> node{node}\r\n")
        shell.expect(">>> ")
    shell.type("exit()\r")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "0\n"


SQLITE = ("sqlite3", "/root/moved.db")


def test_sqlite_in_a_transaction(trio: Cluster, shell: Terminal) -> None:
    shell.type(" ".join(SQLITE) + "\r")
    shell.expect("sqlite> ")
    [pid] = find(trio, "sqlite3")
    shell.type("create table steps(step, node); begin immediate;\r")
    shell.expect("sqlite> ")
    for step, node in enumerate(WAYS, 1):
        shell.type(f"insert into steps values({step}, {node}); ")
        shell.type("select 'has', count(*) from steps;\r")
        shell.expect(rf"has\|{step}\r\n")
        move(trio, node, pid)
        # Nobody else may write, wherever it is.
        refused = trio.try_run(2, *SQLITE, "delete from steps")
        assert "database is locked" in refused.err
    shell.type("commit;\r.quit\r")
    shell.expect(PROMPT)
    asked = "select group_concat(node, '') from steps; pragma integrity_check"
    said = trio.run(2, *SQLITE, asked)
    assert said == "".join(map(str, WAYS)) + "\nok\n"


def test_vi_in_the_middle_of_an_edit(trio: Cluster, shell: Terminal) -> None:
    shell.type("vi /root/text\r")
    shell.expect("/root/text")
    [pid] = find(trio, "vi")
    for step, node in enumerate(WAYS, 1):
        # This vi shows what is typed only with the next key, now and then and on one machine, too.
        shell.type(f"oline {step} begun")
        move(trio, node, pid)
        shell.type(" and ended\x1b:set number!\r")
        shell.expect(f"line {step} begun and ended")
    shell.type(":1d\r:wq\r")
    shell.expect(PROMPT)
    lines = [f"line {step} begun and ended" for step in range(1, len(WAYS) + 1)]
    assert trio.run(2, "cat", "/root/text").splitlines() == lines


# Says when it begins, when it goes on, and what it reads. The signal has a thread of its own: one
# that comes when Python is about to read would be heard of only when it has read.
JOB = """\
import os, signal, sys, threading
def hear():
    while signal.sigwait({signal.SIGCONT}):
        os.write(1, b"again\\n")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
threading.Thread(target=hear, daemon=True).start()
print("begun on", os.uname().nodename, flush=True)
while line := sys.stdin.readline():
    print("said", line, end="", flush=True)
"""


def test_a_login_shell_and_its_jobs(trio: Cluster, shell: Terminal) -> None:
    shell.type('echo "<$$>"; count=0\r')
    pid = read_pid(shell)
    shell.expect(PROMPT)
    for step, node in enumerate(WAYS, 1):
        move(trio, node, pid)
        shell.type("python3 job.py\r")
        shell.expect(f"begun on node{node}\r\n")
        shell.type("word\r")
        shell.expect("said word\r\n")
        shell.type("\x1a")
        shell.expect("Stopped")
        shell.expect(PROMPT)
        shell.type("fg\r")
        shell.expect("again\r\n")
        shell.type("more\r")
        shell.expect("said more\r\n")
        shell.type("\x03")
        shell.expect(PROMPT)
        shell.type(f"echo $? {step} $((count += 1)) $(uname -n)\r")
        shell.expect(f"130 {step} {step} node{node}\r\n")
        shell.expect(PROMPT)


def test_a_job_in_the_foreground_as_a_group(trio: Cluster, shell: Terminal) -> None:
    shell.type("python3 job.py | sed -u s/said/heard/\r")
    shell.expect("begun on node1\r\n")
    [editor] = find(trio, "sed")
    group = trio.run(2, "ps", "-o", "pgid=", "-p", editor).strip()
    for node in WAYS:
        trio.run(3, "migrate", "-g", str(node), group)
        assert locate(trio, group, editor) == [str(node)] * 2
        shell.type("word\r")
        shell.expect("heard word\r\n")
        shell.type("\x1a")
        shell.expect("Stopped")
        shell.expect(PROMPT)
        shell.type("fg\r")
        shell.expect("again\r\n")
    shell.type("\x03")
    shell.expect(PROMPT)
    shell.type("echo $?.\r")
    shell.expect(r"130\.\r\n")


# A process that leads the session of a terminal of its own, which another one serves. For each
# line it says what it is.
LEADER = """\
import os, pty, select, signal, sys
pid, master = pty.fork()
if pid == 0:
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\r\\n"))
    signal.signal(signal.SIGHUP, lambda *_: os._exit(7))
    print("leader", os.getpid(), flush=True)
    while line := sys.stdin.readline():
        leads = os.getsid(0) == os.getpgrp() == os.getpid() == os.tcgetpgrp(0)
        with open("/dev/tty", "w") as terminal:
            print("line", line.strip(), os.uname().nodename, leads, file=terminal)
        print("ever", flush=True)
ended = ""
while not ended:
    for fd in select.select([0, master], [], [])[0]:
        data = os.read(fd, 1000)
        if fd == master:
            os.write(1, data)
        elif data:
            os.write(master, data)
        else:
            os.close(master)
            ended = "ended"
            break
print(ended, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("last", "what"), [(1, "--"), (2, "-s")])
def test_who_leads_a_session(trio: Cluster, last: int, what: str) -> None:
    with working(trio, 1, "python3", "/root/leader.py") as worker:
        pid = worker.say("leader").split()[1]
        for step, node in enumerate((*WAYS, last), 1):
            trio.run(3, "migrate", what, str(node), pid)
            worker.give(f"{step}\n".encode())
            assert worker.say(f"line {step} ") == f"line {step} node{node} True"
            interrupts = count_interrupts(worker)
            worker.give(b"\x03")
            wait_until(lambda: count_interrupts(worker) > interrupts, f"^C on {node}")  # noqa: B023
        # The terminal hangs up.
        worker.give_no_more()
        assert worker.end()[-1] == "ended 7"


def count_interrupts(worker: Worker) -> int:
    """Return how often it has said that it got SIGINT."""
    return sum(line.endswith("interrupted") for line in worker.lines)
