"""onnode: a command runs on another node as if it ran here. What is typed is tested elsewhere."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until


def bash(cluster: Cluster, node: int, script: str, *, given: bytes | None = None) -> str:
    """Run a script in a shell of `node`; return what it printed, errors too."""
    result = cluster.try_run(node, "bash", "-c", f"exec 2>&1; {script}", given=given)
    return result.out


def list_left(cluster: Cluster, node: int) -> str:
    """Return which ghosts and bodies the daemon of `node` knows."""
    number = str(cluster.number)
    words = ("exec", "-c", number, "--ramdisk", str(node), "--", "ls")
    return cluster.ssi(*words, "/run/ssi/ghosts", "/run/ssi/bodies")


NOTHING_LEFT = "/run/ssi/bodies:\n\n/run/ssi/ghosts:\n"


@pytest.mark.parametrize(
    ("command", "said", "status"),
    [
        ("onnode 2 hostname", "node2", 0),
        ("onnode 1 hostname", "node1", 0),
        ("onnode -p 3 hostname", "node3", 0),
        ("onnode 2 -- sh -c 'exit 7'", "", 7),
        ("onnode 2 sh -c 'kill -9 $$'", "", 137),
        ("onnode 2 sh -c 'kill -TERM $$'", "", 143),
        ("onnode 2 no-such-command", "onnode: node2: no-such-command: No such file", 127),
        ("onnode 2 /etc/passwd", "onnode: node2: /etc/passwd: Permission denied", 126),
        ("onnode 9 true", "onnode: node9 is not up", 126),
        ("onnode two true", "invalid int value: 'two'", 2),
        ("onnode 2", "no command is given", 2),
    ],
)
def test_the_caller_gets_the_status_a_shell_would_give(
    trio: Cluster, command: str, said: str, status: int
) -> None:
    words = bash(trio, 1, f"{command}; echo status $?").splitlines()
    assert words[-1] == f"status {status}"
    assert said in "\n".join(words[:-1])


def test_pipelines_over_several_nodes_lose_no_byte(trio: Cluster) -> None:
    script = (
        "head -c 300000 /dev/urandom >/var/tmp/bytes; md5sum </var/tmp/bytes; "
        "onnode 2 cat /var/tmp/bytes | onnode 3 cat | md5sum; onnode 2 md5sum </var/tmp/bytes; "
        "cat /var/tmp/bytes | onnode 3 md5sum; rm /var/tmp/bytes"
    )
    sums = bash(trio, 1, script).splitlines()
    assert len(sums) == 4
    assert len(set(sums)) == 1


def test_it_is_shown_once_and_as_what_it_is(trio: Cluster) -> None:
    script = """
        onnode 2 sleep 1000 & pid=$!
        until [ "$(cat /proc/$pid/comm)" = sleep ]; do :; done
        for node in 1 2 3; do
            onnode $node ps -o ppid=,pgid=,sid=,args= -p $pid; onnode $node cat /proc/$pid/where
            onnode $node pgrep -x sleep
        done | sort | uniq -c | sort -n
        echo $pid $$; kill $pid
    """
    *lines, last = bash(trio, 1, script).splitlines()
    pid, shell = last.split()
    assert len(lines) == 3, lines
    assert {"3", "2"} in [set(line.split()) for line in lines]
    assert {"3", pid} in [set(line.split()) for line in lines]
    assert any(line.split()[:2] == ["3", shell] and "sleep 1000" in line for line in lines)


def test_who_writes_where_nobody_reads_dies_of_it(trio: Cluster) -> None:
    assert bash(trio, 1, "onnode 2 yes | head -2; echo ${PIPESTATUS[*]}") == "y\ny\n141 0\n"


def test_an_offset_is_shared_over_nodes(trio: Cluster) -> None:
    script = """
        file=/var/tmp/offsets
        (echo a; onnode 2 echo b; onnode 3 echo c; echo d) >$file; cat $file
        (onnode 2 echo e; onnode 3 echo f) >>$file; tail -2 $file
        (onnode 2 sh -c 'read x; echo "got $x"'; tail -n +1) <$file
        rm $file
    """
    assert bash(trio, 1, script).split() == [*"abcdef", "got", *"abcdef"]


def test_input_is_not_taken_from_others(trio: Cluster) -> None:
    script = "printf '1\\n2\\n3\\n' | (onnode 2 sh -c 'read x; echo \"got $x\"'; cat)"
    assert bash(trio, 1, script) == "got 1\n2\n3\n"
    script = "printf 'cat | tr a-z A-Z\\nfor the command\\n' | onnode 2 bash"
    assert bash(trio, 1, script) == "FOR THE COMMAND\n"


AS_IT_IS = """
echo "$WORD"; pwd; umask; nice; ulimit -n; id -u; id -g; id -G
echo $$ $PPID $(ps -o pgid=,sid= -p $$)
grep -E '^(SigIgn|SigBlk|NoNewPrivs)' /proc/self/status
"""


def test_it_is_the_same_process_elsewhere(trio: Cluster) -> None:
    trio.run(2, "tee", "/var/tmp/as-it-is", given=AS_IT_IS.encode())
    script = """
        cd /usr/share; umask 027; ulimit -n 77; export WORD='two words'; trap '' USR1
        exec setpriv --no-new-privs --reuid 1001 --regid 1002 --groups 1003,1004 nice -n 7 \
            bash -c 'echo $$; onnode 2 sh /var/tmp/as-it-is; true'
    """
    said = bash(trio, 1, script).splitlines()
    trio.run(3, "rm", "/var/tmp/as-it-is")
    assert said[1:8] == ["two words", "/usr/share", "0027", "7", "77", "1001", "1002"]
    assert set(said[8].split()) == {"1002", "1003", "1004"}
    pid, parent, group, session = map(int, said[9].split())
    assert parent == int(said[0])
    assert pid >> 15 == group >> 15 == session >> 15 == 1
    fields = dict(line.split(":\t") for line in said[10:])
    assert int(fields["SigIgn"], 16) & 1 << 9
    assert fields["NoNewPrivs"] == "1"


def test_descriptors_by_their_names(trio: Cluster) -> None:
    script = """
        onnode 2 sh -c 'echo out >/dev/stdout; echo err >/dev/stderr; exec 3>&1; echo 3 >/dev/fd/3'
        echo in | onnode 2 cat /dev/stdin
        onnode 2 sh -c 'echo 4 >&4' 4>&1
        onnode 2 sh -c 'ls /proc/self/fd | wc -l' 0<&-
    """
    assert bash(trio, 1, script).split() == ["out", "err", "3", "in", "4", "3"]


def test_what_stays_in_the_background_goes_on_writing(trio: Cluster) -> None:
    script = "onnode 2 sh -c '(sleep 1; echo later) & echo first' | cat; echo end"
    assert bash(trio, 1, script) == "first\nlater\nend\n"
    wait_until(lambda: list_left(trio, 1) == NOTHING_LEFT, "the descriptors' keeper is gone")


STAYS = """\
(onnode 2 sh -c 'echo ran >>/var/tmp/ran
                 (until [ -e /var/tmp/go ]; do sleep 0.1; done; echo later; echo more) &'
 echo $?) | cat >/var/tmp/said
"""


@pytest.mark.parametrize("nodes", [(1,), (2,), (1, 2, 1)], ids=str)
def test_what_stays_does_not_mind_a_daemons_death(trio: Cluster, nodes: tuple[int, ...]) -> None:
    trio.run(1, "sh", "-c", 'setsid sh -c "$0" >/dev/null 2>&1 </dev/null &', STAYS)
    wait_until(lambda: trio.try_run(1, "cat", "/var/tmp/said").out == "0\n", "the body has ended")
    for node in nodes:
        kill_daemon(trio, node)
        wait_until(lambda node=node: trio.try_run(node, "cluster").out == "1-3\n", "it is back")  # type: ignore[misc]
    trio.run(1, "touch", "/var/tmp/go")
    wait_until(lambda: list_left(trio, 1) == list_left(trio, 2) == NOTHING_LEFT, "all has ended")
    assert trio.run(1, "cat", "/var/tmp/said", "/var/tmp/ran") == "0\nlater\nmore\nran\n"
    words = ("env", "SSI_PROC=local", "pgrep", "-x", "onnode")
    wait_until(lambda: trio.try_run(1, *words).status == 1, "no ghost is left")
    trio.run(1, "rm", "/var/tmp/go", "/var/tmp/said", "/var/tmp/ran")


WAITS = """\
import os, signal, subprocess
told = []
signal.signal(signal.SIGCHLD, lambda number, frame: told.append(number))
child = subprocess.Popen(["onnode", "2", "sh", "-c", "kill -STOP $$; exit 5"])
info = os.waitid(os.P_PID, child.pid, os.WSTOPPED)
assert (info.si_pid, info.si_code, info.si_status) == (child.pid, os.CLD_STOPPED, signal.SIGSTOP)
assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG) is None
os.kill(child.pid, signal.SIGCONT)
info = os.waitid(os.P_PID, child.pid, os.WCONTINUED)
assert info.si_code == os.CLD_CONTINUED
info = os.waitid(os.P_PIDFD, os.pidfd_open(child.pid), os.WEXITED | os.WNOWAIT)
assert (info.si_code, info.si_status) == (os.CLD_EXITED, 5)
assert os.waitstatus_to_exitcode(os.wait4(child.pid, 0)[1]) == 5
assert told
print("waited")
"""


def test_a_parent_waits_as_for_any_child(trio: Cluster) -> None:
    assert trio.python(1, WAITS) == "waited\n"


def test_signals_reach_it_from_every_node(trio: Cluster) -> None:
    for node in (1, 2, 3):
        for name, status in (("TERM", 143), ("KILL", 137), ("USR1", 138)):
            script = f"""
                onnode 2 sleep 1000 & pid=$!
                until [ "$(where_pid $pid)" = 2 ]; do :; done
                until [ "$(onnode 2 cat /proc/$pid/comm)" = sleep ]; do :; done
                onnode {node} kill -{name} $pid; wait $pid; echo $?; where_pid $pid
            """
            said = bash(trio, 1, script)
            assert f"{status}\n" in said, (node, name, said)
            assert "there is no process" in said
    assert list_left(trio, 1) == list_left(trio, 2) == NOTHING_LEFT


def test_stopped_here_it_is_stopped_there(trio: Cluster) -> None:
    script = """
        state() { onnode 2 sed 's/.*) \\(.\\).*/\\1/' /proc/$pid/stat; }
        onnode 2 sleep 1000 & pid=$!
        until [ "$(onnode 2 cat /proc/$pid/comm)" = sleep ]; do :; done
        for node in 1 2 3; do
            onnode $node kill -STOP $pid; until [ "$(state)" = T ]; do :; done
            until grep -q 'T (stopped)' /proc/$pid/status; do :; done
            onnode $node kill -CONT $pid; until [ "$(state)" = S ]; do :; done
            until grep -q 'S (sleeping)' /proc/$pid/status; do :; done
        done
        kill $pid; wait $pid; echo $?
    """
    assert bash(trio, 1, script).splitlines()[-1] == "143"


def test_a_group_is_one_over_nodes(trio: Cluster) -> None:
    script = """
        set -m
        (onnode 2 sleep 1001 | onnode 3 sh -c 'sleep 1002 & sleep 1003' | sleep 1004) & group=$!
        until pgrep -xf 'sleep 1002' && pgrep -xf 'sleep 1001'; do :; done
        onnode 3 kill -TERM -$group; wait
        onall pgrep -x sleep -g $group
        echo end
    """
    assert bash(trio, 1, script).splitlines()[-1] == "end"
    assert list_left(trio, 1) == NOTHING_LEFT


def test_an_orphan_has_another_parent(trio: Cluster) -> None:
    script = """
        sh -c 'onnode 2 sleep 1000 & echo $!; until onnode 2 pgrep -x sleep >/dev/null; do :; done'
    """
    pid = bash(trio, 1, script).strip()
    wait_until(
        lambda: trio.run(2, "ps", "-o", "ppid=", "-p", pid).strip() == "1", "init is its parent"
    )
    trio.run(3, "kill", pid)
    wait_until(lambda: list_left(trio, 2) == NOTHING_LEFT, "it is gone")


DIES = """\
import ctypes, os, subprocess, sys
def ask_for_signal():
    ctypes.CDLL(None).prctl(1, 15)
child = subprocess.Popen(["onnode", "2", "sleep", "1000"], preexec_fn=ask_for_signal)
while subprocess.run(["onnode", "2", "pgrep", "-x", "sleep"], capture_output=True).returncode:
    pass
print(child.pid, flush=True)
os._exit(0)
"""


def test_the_signal_of_a_parents_death(trio: Cluster) -> None:
    pid = trio.python(1, DIES).strip()
    wait_until(lambda: trio.try_run(3, "where_pid", pid).status == 1, "it got SIGTERM")


def test_a_chain_of_nodes(trio: Cluster) -> None:
    script = """
        onnode 2 onnode 3 hostname
        onnode 3 onnode 2 onnode 1 hostname
        echo words | onnode 2 onnode 3 onnode 1 cat
        onnode 3 sh -c 'echo back | onnode 1 cat; exit 3'; echo $?
    """
    assert bash(trio, 1, script).split() == ["node3", "node1", "words", "back", "3"]


def test_nothing_is_left_behind(trio: Cluster) -> None:
    count = "ls /proc/$(pgrep -of ssi.node.main)/fd | wc -l"
    for node in (1, 2):  # whatever is loaded or opened once
        bash(trio, node, "for n in 1 2 3; do onnode $n true; done")
    before = [int(trio.run(node, "sh", "-c", count)) for node in (1, 2)]
    assert bash(trio, 1, "for n in {1..100}; do onnode 2 true || echo $?; done") == ""
    assert list_left(trio, 1) == list_left(trio, 2) == NOTHING_LEFT
    after = [int(trio.run(node, "sh", "-c", count)) for node in (1, 2)]
    assert all(now <= then + 4 for then, now in zip(before, after, strict=True)), (before, after)


# -- what is lost ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def losing(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that are killed."""
    with started(ssi, 3) as cluster:
        yield cluster


@pytest.fixture
def own(losing: Cluster) -> Iterator[Cluster]:
    """The same, all of them up."""
    losing.restore(1, 2, 3)
    yield losing
    losing.restore(1, 2, 3)


def start_bash(cluster: Cluster, node: int, script: str) -> subprocess.Popen[bytes]:
    """Start a script in a shell of `node`; its output is a pipe."""
    words = ["ssi", "exec", "-c", str(cluster.number), str(node), "--", "bash", "-c"]
    return cluster.ssi.person.start(
        [*words, f"exec 2>&1; {script}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )


def test_a_lost_node_takes_its_bodies_along(own: Cluster) -> None:
    process = start_bash(own, 1, "onnode 2 sh -c 'echo up; exec sleep 1000'; echo status $?")
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    own.crash(2)
    said = process.stdout.read().decode()
    assert "onnode: node2 was lost" in said
    assert said.endswith("status 137\n")
    assert process.wait() == 0
    assert list_left(own, 1) == NOTHING_LEFT


def test_a_body_outlives_its_home_and_keeps_its_pid(own: Cluster) -> None:
    script = "onnode 3 sh -c 'echo $$; trap \"\" HUP; while :; do sleep 0.1; done'"
    process = start_bash(own, 1, script)
    assert process.stdout
    pid = process.stdout.readline().decode().strip()
    own.crash(1)
    process.wait()
    wait_until(lambda: own.run(3, "ps", "-o", "ppid=", "-p", pid).strip() == "1", "a new parent")
    assert own.run(2, "where_pid", pid) == "3\n"
    own.add(1)
    wait_until(lambda: own.try_run(1, "test", "-d", f"/proc/{pid}").status == 0, "a ghost again")
    assert own.run(1, "where_pid", pid) == "3\n"
    own.run(1, "kill", "-KILL", pid)
    wait_until(lambda: own.try_run(2, "where_pid", pid).status == 1, "it is dead")
    assert list_left(own, 1) == list_left(own, 3) == NOTHING_LEFT


COUNT = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"


def test_killed_daemons_lose_and_repeat_nothing(own: Cluster) -> None:
    script = (
        f"(onnode 2 sh -c '{COUNT}' | onnode 3 cat | md5sum; echo ${{PIPESTATUS[*]}}) "
        ">/var/tmp/counted 2>&1"
    )
    # Not below a daemon: its commands end with it.
    own.run(1, "sh", "-c", 'setsid bash -c "$0" >/dev/null 2>&1 </dev/null &', script)
    for node in (1, 2, 3, 1, 3, 2):
        kill_daemon(own, node)
        wait_until(lambda n=node: own.try_run(n, "cluster").out == "1-3\n", "it is back")  # type: ignore[misc]
    lines = "".join(f"line {number}\n" for number in range(3000))
    expected = f"{hashlib.md5(lines.encode()).hexdigest()}  -\n0 0 0\n"
    wait_until(lambda: own.run(1, "cat", "/var/tmp/counted").count("\n") == 2, "it has ended")
    assert own.run(1, "cat", "/var/tmp/counted") == expected
    own.run(1, "rm", "/var/tmp/counted")


def test_a_killed_daemon_finds_what_runs(own: Cluster) -> None:
    script = "onnode 2 sleep 1000; echo status $? >/var/tmp/ended"
    own.run(1, "sh", "-c", 'setsid bash -c "$0" >/dev/null 2>&1 </dev/null &', script)
    wait_until(lambda: own.try_run(2, "pgrep", "-x", "sleep").status == 0, "it runs")
    pid = own.run(2, "pgrep", "-x", "sleep").strip()
    for node in (1, 2):
        kill_daemon(own, node)
        wait_until(lambda: own.try_run(3, "where_pid", pid).out == "2\n", "it is found")
    own.run(3, "kill", "-TERM", pid)
    wait_until(lambda: own.try_run(1, "cat", "/var/tmp/ended").out == "status 143\n", "it ended")
    own.run(1, "rm", "/var/tmp/ended")
