"""`ssi console`: a person sits in front of a node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until
from support.terminal import FIRST_PASSWORD, PASSWORD, Terminal, attached

LOST = 69


@pytest.fixture(scope="module")
def duo(ssi: Ssi) -> Iterator[Cluster]:
    """Two nodes of which node 1 is the one people sit at; the password has been changed."""
    with started(ssi, 2) as cluster:
        cluster.run(2, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture
def fresh(duo: Cluster) -> Cluster:
    """Node 1 has just booted: nothing on its console but a login prompt."""
    if 1 in duo.nodes():
        duo.crash(1)
    duo.add(1)
    return duo


@pytest.fixture
def shell(fresh: Cluster) -> Iterator[Terminal]:
    """A terminal with a root shell on node 1."""
    with attached(fresh, 1) as terminal:
        terminal.log_in()
        yield terminal


def test_the_first_login_changes_the_password_of_all_nodes(ssi: Ssi) -> None:
    with started(ssi, 2) as cluster:
        with attached(cluster, 1) as first:
            first.log_in(FIRST_PASSWORD, change_to=PASSWORD)
            first.leave()
        with attached(cluster, 2) as second:
            second.expect("login: ")
            second.type("root\r")
            second.expect("Password: ")
            second.type(f"{FIRST_PASSWORD}\r")
            second.expect("Login incorrect")
            second.log_in(PASSWORD)
            assert second.run("hostname").strip() == "node2"
            second.leave()


def test_the_shell_controls_its_jobs(shell: Terminal) -> None:
    assert shell.run("tty").startswith("/dev/tty")
    shell.type("sh -c 'echo slee''ping; exec sleep 1000'\r")
    shell.expect("sleeping")
    shell.type("\x03")
    shell.expect("# ")
    assert shell.run("echo $?") == "130\n"
    shell.type("echo rea''dy; cat\r")
    shell.expect("ready\r\n")
    shell.type("once\r")
    shell.expect("once\r\nonce\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    assert "Stopped" in shell.run("jobs")
    shell.type("fg\r")
    shell.expect("cat\r\n")
    shell.type("once more\r")
    shell.expect("once more\r\nonce more\r\n")
    shell.type("\x04")
    shell.expect("# ")
    assert shell.run("jobs").strip() == ""


def test_what_an_editor_writes_is_there_on_the_other_node(shell: Terminal, duo: Cluster) -> None:
    shell.type("vi /root/letter\r")
    shell.expect("letter")
    shell.expect("~")
    shell.type("iDear node2,\rit is 5 o'clock.\x1b")
    shell.type(":wq\r")
    shell.expect("written")
    shell.expect("# ")
    assert duo.run(2, "cat", "/root/letter") == "Dear node2,\nit is 5 o'clock.\n"
    duo.run(2, "rm", "/root/letter")


def test_the_node_knows_the_size_of_the_window(shell: Terminal) -> None:
    assert shell.run("stty size") == "30 100\n"
    shell.resize(41, 132)
    wait_until(lambda: shell.run("stty size") == "41 132\n", "the new size", within_s=10)


def test_who_detaches_is_not_missed_and_sees_the_past_on_return(
    shell: Terminal, duo: Cluster
) -> None:
    shell.type("while echo tick; do sleep 0.1; done >/tmp/ticks & echo the''past\r")
    shell.expect("thepast")
    shell.leave()
    ticks = int(duo.run(1, "wc", "-l", "/tmp/ticks").split()[0])
    wait_until(lambda: int(duo.run(1, "wc", "-l", "/tmp/ticks").split()[0]) > ticks, "it goes on")
    with attached(duo, 1) as again:
        again.expect("thepast")
        again.run("kill %1; rm /tmp/ticks")


def test_two_who_are_attached_see_the_same(shell: Terminal, duo: Cluster) -> None:
    with attached(duo, 1) as other:
        other.expect("# ")
        shell.type("echo from th''e first\r")
        other.expect("from the first")
        shell.expect("from the first")
        other.type("echo from th''e second\r")
        shell.expect("from the second")
        other.leave()
    assert shell.run("echo still here") == "still here\n"


def test_a_long_paste_arrives_whole(shell: Terminal, duo: Cluster) -> None:
    pasted = "".join(f"{number:05} {'abcdefghij' * 5}\n" for number in range(200))
    assert len(pasted) > 10_000
    shell.type("echo rea''dy; cat >/root/pasted\r")
    shell.expect("ready\r\n")
    shell.type(pasted)
    shell.expect("00199 [a-j]+\r\n")
    shell.type("\x04")
    shell.expect("# ")
    printed = duo.run(2, "sha256sum", "/root/pasted").split()[0]
    duo.run(2, "rm", "/root/pasted")
    assert printed == hashlib.sha256(pasted.encode()).hexdigest()


def test_what_is_printed_fast_arrives_whole(shell: Terminal) -> None:
    assert shell.run("seq 20000").split() == [str(number) for number in range(1, 20001)]


def test_a_log_is_kept(shell: Terminal, duo: Cluster) -> None:
    shell.run("echo for th''e log")
    log = duo.logs / "node1.console"
    assert "for the log" in log.read_text()
    duo.crash(1)
    assert "for the log" in log.read_text()


def test_a_crash_ends_the_session_and_says_so(shell: Terminal, duo: Cluster) -> None:
    shell.run("true")
    duo.crash(1)
    status, said = shell.end()
    assert status == LOST
    assert "ssi: node1 has ended\r\n" in said


def test_a_console_without_a_terminal_is_only_read(fresh: Cluster) -> None:
    """Standard input that has ended is one who leaves."""
    result = fresh.ssi.try_("console", "-c", str(fresh.number), "1")
    assert result.status == 0, result
    assert "\x1b[2m" not in result.err
