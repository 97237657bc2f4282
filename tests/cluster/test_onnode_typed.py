"""onnode as a person sees it: typed at consoles, what the screen shows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.terminal import PASSWORD, Terminal, attached

PROMPT = r"root@node1:[^ ]*# "


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes; the password has been changed."""
    with started(ssi, 3) as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture(scope="module")
def shells(trio: Cluster) -> Iterator[dict[int, Terminal]]:
    """A root shell at the console of each node."""
    with attached(trio, 1) as one, attached(trio, 2) as two, attached(trio, 3) as three:
        found = {1: one, 2: two, 3: three}
        for terminal in found.values():
            terminal.log_in()
        yield found


@pytest.fixture
def shell(shells: dict[int, Terminal]) -> Terminal:
    """The one of node 1."""
    return shells[1]


def test_the_demo_of_2002(shells: dict[int, Terminal]) -> None:
    one, two, three = shells.values()
    one.type("onnode 2 vi /tmp/newfile\r")
    one.expect(r"newfile.*\[New File\]|\[New\]")
    one.type("iwritten on node 2\x1b:w\r")
    one.expect("written\r|1L, |1 line")
    pid = two.run("pgrep -f '^vi /tmp/newfile'").strip()
    assert three.run(f"where_pid {pid}") == "2\n"
    assert three.run("cat /tmp/newfile") == "written on node 2\n"
    assert three.run(f"kill {pid}; echo $?") == "0\n"
    one.expect("Terminated")
    one.expect(PROMPT)
    assert one.run("echo $?") == "143\n"
    assert three.run(f"where_pid {pid}; rm /tmp/newfile").startswith("where_pid: there is no")


def test_the_keys_of_job_control(shell: Terminal) -> None:
    shell.type("onnode 2 sh -c 'echo slee''ping; exec sleep 1000'\r")
    shell.expect("sleeping")
    shell.type("\x03")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "130\n"
    shell.type("onnode 3 sh -c 'echo slee''ping; exec sleep 1000'\r")
    shell.expect("sleeping")
    shell.type("\x1c")
    shell.expect("Quit")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "131\n"
    shell.type("echo rea''dy; onnode 2 cat\r")
    shell.expect("ready\r\n")
    shell.type("once\r")
    shell.expect("once\r\nonce\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    assert "Stopped" in shell.run("jobs")
    assert shell.run("onnode 2 ps -o stat= -p $!; ps -o stat= -p $(jobs -p)").split()[-1][0] == "T"
    shell.type("fg\r")
    shell.expect("onnode 2 cat\r\n")
    shell.type("once more\r")
    shell.expect("once more\r\nonce more\r\n")
    shell.type("\x04")
    shell.expect(PROMPT)
    assert shell.run("echo $?; jobs") == "0\n"


def test_who_reads_in_the_background_is_stopped(shell: Terminal) -> None:
    shell.type("onnode 2 cat &\r")
    shell.expect(PROMPT)
    # The shell tells of it before its next prompt.
    shell.type("until [ $(ps -o stat= -p $!) = T ]; do :; done\r")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    assert shell.run("onnode 2 hostname") == "node2\n"
    shell.type("fg\r")
    shell.expect("onnode 2 cat\r\n")
    shell.type("typed\r")
    shell.expect("typed\r\ntyped\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    assert shell.run("kill %1; kill -CONT %1; wait %1; echo $?").splitlines()[-1] == "143"


def test_a_shell_on_another_node_has_jobs_of_its_own(shell: Terminal) -> None:
    shell.type("onnode 2 bash\r")
    shell.expect(r"root@node2:[^ ]*# ")
    assert shell.run("hostname") == "node2\n"
    shell.type("sh -c 'echo slee''ping; exec sleep 1000'\r")
    shell.expect("sleeping\r\n")
    shell.type("\x03")
    shell.expect(r"root@node2:[^ ]*# ")
    assert shell.run("echo $?") == "130\n"
    shell.type("echo rea''dy; cat\r")
    shell.expect("ready\r\n")
    shell.type("once\r")
    shell.expect("once\r\nonce\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(r"root@node2:[^ ]*# ")
    assert "cat" in shell.run("jobs")
    shell.type("echo rea''dy; fg\r")
    shell.expect("ready\r\n.*cat\r\n")
    shell.type("more\r")
    shell.expect("more\r\nmore\r\n")
    shell.type("\x04")
    shell.expect(r"root@node2:[^ ]*# ")
    shell.type("onnode 3 sh -c 'hostname; exec cat'\r")
    shell.expect("node3\r\n")
    shell.type("through two\r")
    shell.expect("through two\r\nthrough two\r\n")
    shell.type("\x03")
    shell.expect(r"root@node2:[^ ]*# ")
    shell.type("exit\r")
    shell.expect(PROMPT)


def test_an_editor_is_put_aside_and_taken_up(shell: Terminal) -> None:
    shell.type("onnode 3 vi /tmp/aside\r")
    shell.expect(r"aside.*\[New")
    shell.type("ifirst\x1b")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    assert shell.run("hostname") == "node1\n"
    shell.type("fg\r")
    shell.expect("first")
    shell.type("osecond\x1b:wq\r")
    shell.expect(PROMPT)
    assert shell.run("cat /tmp/aside; rm /tmp/aside") == "first\nsecond\n"


def test_a_pager_reads_its_keys_from_the_terminal(shell: Terminal) -> None:
    shell.type("seq 1 500 | onnode 2 less\r")
    shell.expect("\r\n29\r\n|29\r\n:")
    shell.type("/^400$\r")
    shell.expect("400\x1b|400\r\n")
    shell.type("q")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "0\n"


def test_top_follows_the_window(shell: Terminal) -> None:
    shell.type("onnode 2 top\r")
    shell.expect("load average")
    shell.expect("COMMAND")
    shell.resize(20, 70)
    shell.expect("load average")
    shell.type("q")
    shell.expect(PROMPT)
    shell.resize(30, 100)
    assert shell.run("onnode 3 stty size") == "30 100\n"


def test_python_is_interactive(shell: Terminal) -> None:
    shell.type("onnode 2 python3 -q\r")
    shell.expect(">>> ")
    shell.type("import socket; socket.gethostname()\r")
    shell.expect("'node2'")
    shell.type("while True: pass\r\r")
    shell.expect(r"\.\.\. ")
    shell.type("\x03")
    shell.expect("KeyboardInterrupt")
    shell.expect(">>> ")
    shell.type("input('a word, please: ')\r")
    shell.expect("please: ")
    shell.type("mole\r")
    shell.expect("'mole'")
    shell.expect(">>> ")
    shell.type("\x04")
    shell.expect(PROMPT)


def test_a_password_is_asked_for_at_the_terminal(shell: Terminal) -> None:
    shell.type('echo input | onnode 2 python3 -c "import getpass; print(getpass.getpass())"\r')
    shell.expect("Password: ")
    shell.type("secret\r")
    shell.expect("\r\nsecret\r\n")
    shell.expect(PROMPT)


def test_raw_mode_and_back(shell: Terminal) -> None:
    shell.run("stty -a >/tmp/before")
    shell.type("onnode 2 sh -c 'old=$(stty -g); stty raw -echo; echo rea''dy; ")
    shell.type("head -c 3 | od -c; stty $old'\r")
    shell.expect("ready")
    shell.type("a\x03\x1a")
    shell.expect(r"a +003 +032")
    shell.expect(PROMPT)
    assert shell.run("onnode 2 stty -a | diff - /tmp/before; rm /tmp/before") == ""


def test_the_terminal_survives_the_daemons(shell: Terminal, trio: Cluster) -> None:
    shell.type("echo rea''dy; onnode 2 cat\r")
    shell.expect("ready\r\n")
    for node in (1, 2):
        kill_daemon(trio, node)
        wait_until(lambda n=node: trio.try_run(n, "cluster").out == "1-3\n", "it is back")  # type: ignore[misc]
        shell.type(f"typed {node}\r")
        shell.expect(f"typed {node}\r\ntyped {node}\r\n")
    shell.type("\x03")
    shell.expect(PROMPT)


SSH_KEYS = """\
mkdir -m 700 /root/typed-ssh && mkdir -p /run/sshd && cd /root/typed-ssh
ssh-keygen -q -t ed25519 -N '' -f host
ssh-keygen -q -t ed25519 -N '' -f key
"""
SSHD = """\
echo $$
exec /usr/sbin/sshd -D -e -f /dev/null -h /root/typed-ssh/host -p 2222 -o UsePAM=no \
    -o ListenAddress=192.168.50.3 -o AuthorizedKeysFile=/root/typed-ssh/key.pub -o PidFile=none
"""
SSH = "ssh -F none -p 2222 -i /root/typed-ssh/key -o UserKnownHostsFile=/root/typed-ssh/known node3"


@pytest.fixture
def sshd(trio: Cluster) -> Iterator[None]:
    """Node 3 serves ssh; nobody has its key yet."""
    trio.run(3, "sh", "-ec", SSH_KEYS)
    words = ("ssi", "exec", "-c", str(trio.number), "3", "--", "sh", "-c", SSHD)
    process = trio.ssi.person.start(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    pid = process.stdout.readline().decode().strip()
    assert b"Server listening" in process.stdout.readline()
    yield
    trio.run(3, "kill", pid)
    process.wait()
    trio.run(3, "rm", "-r", "/root/typed-ssh")


@pytest.mark.usefixtures("sshd")
def test_ssh_within_onnode(shell: Terminal) -> None:
    before = shell.run("stty -a")
    there = r"root@node3:[^ ]*# "
    shell.type(f"onnode 2 {SSH}\r")
    shell.expect(r"continue connecting \(yes/no")
    shell.type("yes\r")
    shell.expect(there)
    assert re.fullmatch(r"/dev/pts/\d+\nhi\n", shell.run("tty; echo hi"))
    assert shell.run("hostname; stty size") == "node3\n30 100\n"
    assert shell.run("echo ${SSH_CONNECTION%% *}") == "192.168.50.2\n"
    shell.type("sh -c 'echo slee''ping; exec sleep 1000'\r")
    shell.expect("sleeping\r\n")
    shell.type("\x03")
    shell.expect(there)
    assert shell.run("echo $?") == "130\n"
    shell.type("echo rea''dy; cat\r")
    shell.expect("ready\r\n")
    shell.type("once\r")
    shell.expect("once\r\nonce\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(there)
    shell.resize(20, 70)
    wait_until(lambda: shell.run("stty size") == "20 70\n", "the window has its size there")
    shell.resize(30, 100)
    shell.type("exit; exit 7\r")
    shell.expect("Connection to node3 closed")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "7\n"
    shell.type(f"onnode 2 {SSH} -t 'tty; echo hi; exec sleep 1000'\r")
    shell.expect("/dev/pts/[0-9]+\r\nhi\r\n")
    shell.type("\x03")
    shell.expect("Connection to node3 closed")
    shell.expect(PROMPT)
    assert shell.run("stty -a") == before


# The last one: it ends the shells.
def test_hanging_up_reaches_the_other_nodes(shells: dict[int, Terminal]) -> None:
    one, two, _ = shells.values()
    one.type('onnode 2 sh -c \'trap "echo hung up >/tmp/hung; exit" HUP; ')
    one.type("echo rea''dy; while :; do sleep 0.1; done'\r")
    one.expect("ready")
    shell = re.findall(r"\d+", two.run("ps -o ppid= -p $(pgrep -f 'trap.*HUP' | head -1)"))[0]
    two.run(f"kill -HUP {shell}")
    one.expect("login: ")
    wait_until(lambda: "hung up" in two.run("cat /tmp/hung"), "the other node has heard of it")
    two.run("rm /tmp/hung")
