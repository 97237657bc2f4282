"""Processes are saved into files, and go on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.terminal import PASSWORD, Terminal, attached

PROMPT = r"root@node1:[^ ]*# "
PROGRAM = "/srv/counts.py"
SLEEP = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"

# Says where it runs, then answers each line with its length and where it is by then.
ECHO = """\
import os, sys
print(os.getpid(), os.uname().nodename, flush=True)
for line in sys.stdin:
    print(len(line) - 1, os.uname().nodename, flush=True)
print("end", flush=True)
sys.exit(5)
"""

# Changes a byte of a file at an offset, which is from the end if it is negative.
SPOIL = """\
import os, sys
name, at = sys.argv[1], int(sys.argv[2])
with open(name, "r+b") as file:
    file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
    byte = file.read(1)[0]
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte ^ 1]))
"""


def as_user(uid: int, *words: str) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words]


@dataclasses.dataclass
class Counting:
    """A process that counts into a file."""

    cluster: Cluster
    pid: str
    file: str

    def read(self) -> list[list[str]]:
        """Return the whole lines in its file."""
        text = self.cluster.run(1, "cat", self.file)
        return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def last(self) -> tuple[int, int]:
        """Return the highest number, and the node that has written it."""
        number, node = max(self.read() or [["0", "node0"]])
        return int(number), int(node.removeprefix("node"))

    def await_more(self, node: int, than: int = 0) -> int:
        """Wait until it has counted on that node, and further than so far; return how far."""

        def has_more() -> bool:
            number, on = self.last()
            return number > than and on == node

        wait_until(has_more, f"{self.file}: node{node}, above {than}: {self.last()}")
        return self.last()[0]

    def save(self, node: int, into: str, *options: str) -> None:
        self.cluster.run(node, "checkpoint", *options, self.pid, into)

    def kill(self, node: int = 3) -> None:
        self.cluster.run(node, "kill", "-KILL", self.pid)
        wait_until(lambda: not self.is_there(), "it is gone")

    def is_there(self) -> bool:
        return self.cluster.try_run(2, "where_pid", self.pid).status == 0


def count(cluster: Cluster, node: int, name: str, *words: str, uid: int = 0) -> Counting:
    """Start one, in a session of its own."""
    file = f"/srv/{name}.out"
    command = " ".join(as_user(uid, "python3", PROGRAM, file, *words))
    script = f"cd /srv; setsid {command} >/dev/null 2>&1 </dev/null & echo $!"
    counting = Counting(cluster, cluster.run(node, "sh", "-c", script).strip(), file)
    counting.await_more(node)
    return counting


def restart(cluster: Cluster, node: int, file: str, uid: int = 0) -> str:
    """Restart it in the background; return the PID of `restart`, whose end is in FILE.end."""
    command = " ".join(as_user(uid, "restart", file))
    script = (
        f"rm -f {file}.end; (setsid sh -c '{command} >{file}.said 2>&1 </dev/null; "
        f"echo $? >{file}.end') >/dev/null 2>&1 </dev/null &"
    )
    cluster.run(node, "sh", "-c", script)
    return file


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes; the password has been changed."""
    with started(ssi, 3, "-m", "256") as cluster:
        prepare(cluster)
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        cluster.run(1, "sh", "-c", "cat >/root/echo.py", given=ECHO.encode())
        yield cluster


def prepare(cluster: Cluster) -> None:
    program = (TOP / "tests/programs/counts.py").read_bytes()
    cluster.run(1, "sh", "-c", f"cat >{PROGRAM}; chmod 1777 /srv", given=program)


@pytest.fixture(scope="module")
def shell(trio: Cluster) -> Iterator[Terminal]:
    """A root shell at the console of node 1."""
    with attached(trio, 1) as terminal:
        terminal.log_in()
        yield terminal


@pytest.mark.parametrize(("asked", "again"), [(1, 1), (2, 2), (3, 1), (1, 3)])
def test_it_goes_on_and_again(trio: Cluster, asked: int, again: int) -> None:
    counting = count(trio, 1, "again")
    counting.save(asked, "/srv/again")
    assert trio.run(1, "stat", "-c", "%a %U", "/srv/again") == "600 root\n"
    counting.await_more(1, counting.last()[0])
    counting.kill()
    reached = counting.last()[0]
    assert trio.run(1, "sh", "-c", "ls /srv/again*") == "/srv/again\n/srv/again.out\n"
    restart(trio, again, "/srv/again")
    # It has written from where it was, so that the file is as if nothing had been.
    wait_until(lambda: counting.last()[0] > reached, f"{reached}: {counting.last()}")
    lines = counting.read()
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1][1] == f"node{again}"
    assert trio.run(2, "where_pid", counting.pid) == f"{again}\n"
    parent = trio.run(again, "ps", "-o", "ppid=", "-p", counting.pid).strip()
    assert trio.run(again, "ps", "-o", "comm=", "-p", parent) == "restart\n"
    trio.run(2, "kill", counting.pid)
    wait_until(lambda: not counting.is_there(), "it has ended")
    assert trio.run(3, "sh", "-c", "while ! cat /srv/again.end; do sleep 0.1; done 2>&-") == "7\n"
    assert trio.run(3, "cat", "/srv/again.said") == ""
    trio.run(1, "rm", "/srv/again", "/srv/again.end", "/srv/again.said", "/srv/again.out")


def test_what_is_restarted_moves_and_is_saved_again(trio: Cluster) -> None:
    counting = count(trio, 2, "twice")
    counting.save(3, "/srv/twice", "--kill")
    assert not counting.is_there()
    restart(trio, 2, "/srv/twice")
    reached = counting.await_more(2, counting.last()[0])
    trio.run(1, "migrate", "3", counting.pid)
    reached = counting.await_more(3, reached)
    counting.save(1, "/srv/twice", "-k")
    reached = counting.last()[0]
    restart(trio, 1, "/srv/twice")
    counting.await_more(1, reached)
    counting.kill()


def test_a_job_of_a_shell(trio: Cluster, shell: Terminal) -> None:
    shell.type("python3 /root/echo.py\r")
    shell.expect(r"\d+ node1\r\n")
    pid = shell.found.split()[0]
    shell.type("abc\r")
    shell.expect("3 node1\r\n")
    trio.run(3, "checkpoint", pid, "/root/job")
    shell.type("abcd\r")
    shell.expect("4 node1\r\n")
    trio.run(3, "kill", "-KILL", pid)
    shell.expect("Killed")
    shell.expect(PROMPT)
    shell.type("restart /root/job\r")
    wait_until(lambda: trio.try_run(2, "where_pid", pid).status == 0, "it is there again")
    shell.type("abcde\r")
    shell.expect("5 node1\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    shell.type("fg\r")
    shell.expect("restart /root/job\r\n")
    shell.type("abcdef\r")
    shell.expect("6 node1\r\n")
    shell.type("\x04")
    shell.expect("end\r\n")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "5\n"


def test_where_its_output_goes_and_ctrl_c(trio: Cluster, shell: Terminal) -> None:
    pid = read_of_terminal(trio, shell, "/root/job")
    shell.type("restart /root/job >/root/job.out\r")
    wait_until(lambda: trio.try_run(2, "where_pid", pid).status == 0, "it is there again")
    shell.type("abcde\r")
    wait_until(lambda: trio.run(1, "cat", "/root/job.out") == "5 node1\n", "it has answered")
    shell.type("\x03")
    shell.expect("KeyboardInterrupt")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "130\n"
    assert trio.run(1, "cat", "/root/job.out") == "5 node1\n"


def read_of_terminal(cluster: Cluster, shell: Terminal, file: str) -> str:
    """Have a process of the terminal saved and ended; return its PID."""
    shell.type("python3 /root/echo.py\r")
    shell.expect(r"\d+ node1\r\n")
    pid = shell.found.split()[0]
    cluster.run(3, "checkpoint", "-k", pid, file)
    shell.expect("Killed")
    shell.expect(PROMPT)
    return pid


def test_one_that_onnode_has_started(trio: Cluster, shell: Terminal) -> None:
    shell.type("onnode 2 python3 /root/echo.py\r")
    shell.expect(r"\d+ node2\r\n")
    pid = shell.found.split()[0]
    trio.run(3, "checkpoint", "-k", pid, "/root/far")
    shell.expect("Killed")
    shell.expect(PROMPT)
    shell.type("onnode 3 restart /root/far\r")
    wait_until(lambda: trio.try_run(2, "where_pid", pid).out == "3\n", "it is there again")
    shell.type("abc\r")
    shell.expect("3 node3\r\n")
    shell.type("\x04")
    shell.expect("end\r\n")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "5\n"


def test_a_taken_pid(trio: Cluster) -> None:
    counting = count(trio, 1, "taken")
    counting.save(1, "/srv/taken")
    for node in (1, 2):
        refused = trio.try_run(node, "restart", "/srv/taken")
        assert refused.status == 1
        assert f"PID {counting.pid} is taken, by 'python3' on node1" in refused.err
    counting.kill()
    before = int(counting.pid) - 1
    other = trio.run(
        1, "sh", "-c", f"echo {before} >/run/ssi/proc/sys/kernel/ns_last_pid; {SLEEP}"
    ).strip()
    assert other == counting.pid
    for node in (1, 2):
        refused = trio.try_run(node, "restart", "/srv/taken")
        assert refused.status == 1
        assert f"PID {counting.pid} is taken, by 'sleep' on node1" in refused.err
    trio.run(1, "kill", other)


def test_who_may(trio: Cluster) -> None:
    counting = count(trio, 1, "mine", uid=1000)
    refused = trio.try_run(2, *as_user(1001, "checkpoint", counting.pid, "/srv/theirs"))
    assert (refused.status, refused.err) == (1, f"checkpoint: {counting.pid}: it is not yours\n")
    assert trio.try_run(2, "test", "-e", "/srv/theirs").status
    trio.run(2, *as_user(1000, "checkpoint", "-k", counting.pid, "/srv/mine"))
    assert trio.run(1, "stat", "-c", "%a %u", "/srv/mine") == "600 1000\n"
    refused = trio.try_run(2, *as_user(1001, "restart", "/srv/mine"))
    assert "Permission denied" in refused.err
    trio.run(1, "sh", "-c", "cp /srv/mine /srv/copy; chmod 644 /srv/copy")
    refused = trio.try_run(2, *as_user(1001, "restart", "/srv/copy"))
    assert (refused.status, "it is a process of user 1000" in refused.err) == (1, True)
    restart(trio, 3, "/srv/mine", uid=1000)
    counting.await_more(3, counting.last()[0])
    assert trio.run(3, "ps", "-o", "uid=", "-p", counting.pid).strip() == "1000"
    counting.kill()


def test_roots_file_gives_nobody_its_rights(trio: Cluster) -> None:
    pid = trio.run(1, "sh", "-c", SLEEP).strip()
    trio.run(1, "checkpoint", "-k", pid, "/srv/root")
    trio.run(1, "chmod", "644", "/srv/root")
    refused = trio.try_run(1, *as_user(1000, "restart", "/srv/root"))
    assert (refused.status, "it is a process of user 0" in refused.err) == (1, True)
    assert not trio.try_run(1, "where_pid", pid).out


def test_a_program_with_its_owners_rights(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "cp /bin/sleep /srv/secret; chmod 4755 /srv/secret")
    script = "exec setsid /srv/secret 1000 >/dev/null 2>&1 </dev/null"
    words = " ".join(as_user(1000, "sh", "-c", f"'{script}'"))
    pid = trio.run(1, "sh", "-c", f"{words} >/dev/null 2>&1 & echo $!").strip()
    wait_until(
        lambda: trio.run(1, "ps", "-o", "comm=", "-p", pid) == "secret\n", "it runs by its name"
    )
    refused = trio.try_run(1, *as_user(1000, "checkpoint", pid, "/srv/stolen"))
    assert (refused.status, refused.err) == (
        1, f"checkpoint: {pid}: it has rights that you have not\n"
    )  # fmt: skip
    assert trio.try_run(2, "test", "-e", "/srv/stolen").status
    trio.run(1, "kill", pid)


def test_what_is_no_such_file(trio: Cluster) -> None:
    pid = trio.run(1, "sh", "-c", SLEEP).strip()
    trio.run(1, "checkpoint", "-k", pid, "/srv/good")
    trio.run(1, "sh", "-c", "cd /srv; head -c 100000 good >short; cp good long; echo x >>long")
    for name, at in (("head", 30), ("signature", 4000), ("image", -5)):
        trio.run(1, "cp", "/srv/good", f"/srv/{name}")
        trio.python(1, SPOIL, f"/srv/{name}", str(at))
    reasons = {
        "/srv/head": "not written by this cluster", "/srv/signature": "not written by this cluster",
        "/srv/image": "changed since it was written", "/srv/short": "not whole",
        "/srv/long": "something was added", "/etc/passwd": "no process that was saved",
        "/srv": "is no file", "/srv/nothing": "No such file", "/dev/null": "is no file",
    }  # fmt: skip
    for name, reason in reasons.items():
        refused = trio.try_run(2, "restart", name)
        assert refused.status == 1
        assert reason in refused.err
    assert not trio.try_run(1, "where_pid", pid).out
    assert trio.run(2, "sh", "-c", "timeout 2 restart /srv/good; echo $?") == "124\n"


def test_a_full_disk(trio: Cluster) -> None:
    counting = count(trio, 1, "full")
    trio.run(1, "sh", "-c", "mkdir /srv/small; mount -t tmpfs -o size=256k none /srv/small")
    refused = trio.try_run(1, "checkpoint", counting.pid, "/srv/small/file")
    assert (refused.status, refused.err) == (
        1, "checkpoint: /srv/small/file: No space left on device\n"
    )  # fmt: skip
    refused = trio.try_run(1, "checkpoint", "-k", counting.pid, "/srv/small/file")
    assert refused.status == 1
    assert trio.run(1, "ls", "-A", "/srv/small") == ""
    counting.await_more(1, counting.last()[0])
    counting.kill()
    trio.run(1, "umount", "/srv/small")


def test_a_file_that_is_there(trio: Cluster) -> None:
    pid = trio.run(1, "sh", "-c", SLEEP).strip()
    trio.run(1, "sh", "-c", "echo old >/srv/there; chmod 644 /srv/there")
    refused = trio.try_run(1, "checkpoint", pid, "/dev/null")
    assert (refused.status, refused.err) == (1, "checkpoint: /dev/null: File exists\n")
    assert trio.try_run(1, "checkpoint", pid, "/nowhere/file").status == 1
    trio.run(1, "checkpoint", "-k", pid, "/srv/there")
    assert trio.run(1, "stat", "-c", "%a", "/srv/there") == "600\n"


LOSSES = {
    "a child": "sleep 1000 & exec python3 -c 'import time; print(1, flush=True); time.sleep(1000)'",
    "a pipe that others have open": "exec python3 -c '"
    "import os, time; a, b = os.pipe(); os.fork() or time.sleep(1000); print(1, flush=True); "
    "time.sleep(1000)'",
    "of a deleted file": "exec python3 -c 'import tempfile, time; f = tempfile.TemporaryFile(); "
    "print(1, flush=True); time.sleep(1000)'",
    "the FIFO": "rm -f /srv/fifo; mkfifo /srv/fifo; exec python3 -c 'import time; "
    'f = open("/srv/fifo", "r+b", 0); print(1, flush=True); time.sleep(1000)\'',
    "a lock of /srv/lock": "exec python3 -c 'import fcntl, time; "
    'f = open("/srv/lock", "w"); fcntl.flock(f, 2); print(1, flush=True); time.sleep(1000)\'',
    "listens on port": "exec python3 -c 'import socket, time; "
    's = socket.create_server(("", 0)); print(1, flush=True); time.sleep(1000)\'',
}


@pytest.mark.parametrize("what", LOSSES)
def test_what_cannot_be_saved(trio: Cluster, what: str) -> None:
    trio.run(1, "sh", "-c", "cat >/srv/loss", given=LOSSES[what].encode())
    script = (
        "rm -f /srv/loss.out; setsid sh /srv/loss >/srv/loss.out 2>&1 </dev/null & "
        "while ! test -s /srv/loss.out; do sleep 0.1; done; echo $!"
    )
    pid = trio.run(1, "sh", "-c", script).strip()
    told = trio.try_run(2, "checkpoint", "--check", pid)
    assert told.status == 1
    assert what in told.out
    refused = trio.try_run(2, "checkpoint", pid, "/srv/loss.saved")
    assert refused.status == 1
    assert what in refused.err
    assert trio.try_run(1, "test", "-e", "/srv/loss.saved").status
    trio.run(1, "pkill", "-KILL", "-s", pid)


def test_files_that_are_others_by_now(trio: Cluster) -> None:
    script = "echo first >/srv/read; echo other >/srv/target; chown 1000 /srv/read /srv/target"
    trio.run(1, "sh", "-c", script)
    counting = count(trio, 1, "files", "/srv/read", uid=1000)
    trio.run(2, *as_user(1000, "checkpoint", "-k", counting.pid, "/srv/files"))
    # Where who restarts it is, the name leads elsewhere: that is seen when CRIU has opened it.
    words = " ".join(as_user(1000, "restart", "/srv/files"))
    script = f"mount --bind /srv/target /srv/read && {words}"
    refused = trio.try_run(2, "unshare", "--mount", "sh", "-c", script)
    assert (refused.status, refused.err) == (
        1, "restart: /srv/files: /srv/read is another file by now\n"
    )  # fmt: skip
    assert not counting.is_there()
    for change, reason in (
        ("chmod 600 /srv/read", "/srv/read has another owner or mode by now"),
        ("chmod 644 /srv/read; echo more >>/srv/read", "/srv/read has been changed since"),
        ("mv /srv/read /srv/away", "/srv/read is not there any more"),
        ("ln -s /srv/away /srv/read", "/srv/read is another file by now"),
        ("rm /srv/read; cp -p /srv/away /srv/read", "/srv/read is another file by now"),
    ):
        trio.run(1, "sh", "-c", change)
        refused = trio.try_run(2, *as_user(1000, "restart", "/srv/files"))
        assert refused.status == 1, change
        assert reason in refused.err
    assert not counting.is_there()


def test_when_the_daemon_is_killed_it_goes_on(trio: Cluster) -> None:
    counting = count(trio, 1, "daemon")
    counting.save(2, "/srv/daemon", "-k")
    restart(trio, 3, "/srv/daemon")
    counting.await_more(3, counting.last()[0])
    kill_daemon(trio, 3)
    reached = counting.await_more(3, counting.last()[0])
    wait_until(lambda: trio.try_run(2, "where_pid", counting.pid).out == "3\n", "it is known")
    counting.await_more(3, reached)
    counting.kill(2)
    wait_until(lambda: trio.try_run(3, "test", "-s", "/srv/daemon.end").status == 0, "it has ended")
    assert trio.run(3, "cat", "/srv/daemon.end") == "137\n"


def test_over_the_end_of_the_cluster(ssi: Ssi) -> None:
    with started(ssi, 2, "-m", "256") as cluster:
        prepare(cluster)
        counting = count(cluster, 2, "after")
        counting.save(2, "/srv/after")
        counting.await_more(2, counting.last()[0])
        reached = counting.last()[0]
        said = "taken"
        # A node begins anywhere in its range of PIDs: it may have given this one already.
        while "taken" in said or "in use" in said:
            ssi("stop", str(cluster.number))
            ssi("start", "2", "-c", str(cluster.number), *ssi.images.options, "-m", "256")
            restart(cluster, 2, "/srv/after")
            wait_until(
                lambda: (
                    counting.last()[0] > reached
                    or not cluster.try_run(2, "test", "-s", "/srv/after.end").status
                ),
                "it goes on, or does not",
            )
            said = cluster.run(2, "cat", "/srv/after.said")
        assert counting.last()[0] > reached, said
        assert cluster.run(1, "where_pid", counting.pid) == "2\n"
        counting.kill(1)
        # Its PID is of a node that is not there.
        cluster.crash(2)
        restart(cluster, 1, "/srv/after")
        wait_until(lambda: counting.last()[1] == 1, f"{counting.last()}")
        cluster.add(2)
        wait_until(
            lambda: cluster.try_run(2, "where_pid", counting.pid).out == "1\n", "node2 knows of it"
        )
        counting.kill(2)
