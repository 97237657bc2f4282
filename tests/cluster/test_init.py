"""The cluster's one init: its entries run where they should, once, whatever dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

SERVICE = "/usr/local/sbin/service-of-test"
RUNS = "/var/tmp/runs"
EVENTS = "/var/tmp/events"

# Says where and when it runs. As a process it bears a name of its own.
SERVICE_TEXT = f"""\
#!/bin/sh
echo "$SSI_NODE $1" >>{RUNS}
exec -a service-$1 sleep 1000000
""".replace("#!/bin/sh", "#!/bin/bash")

SCRIPT_TEXT = f"""\
#!/bin/sh
echo "${{0##*/}} $1 $SSI_EVENT" >>{EVENTS}
"""


@pytest.fixture(scope="module")
def cluster(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with a service of their own, which a test has init run."""
    with started(ssi, 3) as cluster:
        write(cluster, SERVICE, SERVICE_TEXT)
        for name in ("rc.nodeup", "rc.nodedown"):
            write(cluster, f"/etc/rc.d/{name}", SCRIPT_TEXT)
        cluster.run(1, "cp", "/etc/inittab.ssi", "/etc/inittab.kept")
        yield cluster


@pytest.fixture
def trio(cluster: Cluster) -> Iterator[Cluster]:
    """The three nodes up, none with a service; a test may kill nodes."""
    cluster.restore(1, 2, 3)
    wait_until(lambda: not pending(cluster), "all scripts have run")
    cluster.run(1, "rm", "-f", RUNS, EVENTS)
    yield cluster
    cluster.restore(1, 2, 3)
    cluster.run(1, "cp", "/etc/inittab.kept", "/etc/inittab.ssi")
    cluster.run(1, "telinit", "q")
    cluster.run(1, "telinit", "3")
    wait_until(lambda: not services(cluster), "all services have ended")


def write(cluster: Cluster, path: str, text: str) -> None:
    """Make the program `path` on the root."""
    script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod 755 "$1"'
    cluster.run(1, "sh", "-c", script, "sh", path, given=text.encode())


def pending(cluster: Cluster) -> bool:
    """Tell whether a node is not in the state in which it stays."""
    states = cluster.run(max(cluster.nodes()), "cluster", "-v").split()
    return "UCLEANUP" in states or "KCLEANUP" in states


def add_entries(cluster: Cluster, *lines: str, node: int = 1) -> None:
    """Put `lines` into inittab.ssi and have init read it."""
    given = "".join(f"{line}\n" for line in lines).encode()
    cluster.run(node, "tee", "-a", "/etc/inittab.ssi", given=given)
    cluster.run(node, "telinit", "q")


def read(cluster: Cluster, path: str) -> list[str]:
    """Return the lines of a file on the root; none if it is not there."""
    node = max(cluster.nodes())
    return cluster.run(node, "sh", "-c", f"cat {path} 2>/dev/null || true").splitlines()


def services(cluster: Cluster) -> list[tuple[int, str]]:
    """Return on which node which service runs."""
    found = []
    for node in cluster.nodes():
        words = cluster.run(
            node, "sh", "-c", "SSI_PROC=local ps -eo args | grep ^service- || true"
        ).splitlines()
        found += [(node, line.split()[0].removeprefix("service-")) for line in words]
    return sorted(found)


def init_node(cluster: Cluster) -> int:
    """Return where init runs."""
    (node,) = {int(row["init_node"]) for row in cluster.nodes().values()}
    return node


def test_a_service_runs_once_and_again_when_it_ends(trio: Cluster) -> None:
    add_entries(trio, f"sv:3:respawn:{SERVICE} a", node=2)
    where = init_node(trio)
    wait_until(lambda: services(trio) == [(where, "a")], "the service runs on the init node")
    trio.run(where, "pkill", "-f", "^service-a")
    wait_until(lambda: read(trio, RUNS) == [f"{where} a"] * 2, "it runs again")
    wait_until(lambda: services(trio) == [(where, "a")], "it is there once")


def test_the_next_init_node_takes_over(trio: Cluster) -> None:
    add_entries(trio, f"sv:3:respawn:{SERVICE} a", f"on:3:once:{SERVICE} b",
                f"wt:3:wait:/bin/sh -c 'echo waited >>{RUNS}'")  # fmt: skip
    first = init_node(trio)
    wait_until(lambda: len(read(trio, RUNS)) == 3, "all have run")
    trio.crash(first)
    left = sorted({1, 2, 3} - {first})
    wait_until(lambda: {row["init_node"] for row in trio.nodes().values()} == {left[0]},
               "there is another init node")  # fmt: skip
    # What had been run to its end is not run again; what still ran is.
    wait_until(lambda: services(trio) == [(left[0], "a"), (left[0], "b")], "services run there")
    assert sorted(read(trio, RUNS)) == sorted(
        ["waited", f"{first} a", f"{first} b", f"{left[0]} a", f"{left[0]} b"]
    )
    trio.add(first)
    trio.run(left[0], "pkill", "-f", "^service-a")
    wait_until(lambda: len(read(trio, RUNS)) == 6, "the service runs again")
    assert read(trio, RUNS)[-1] == f"{left[0]} a", "init stays where it is"


def test_entries_say_where_they_run(trio: Cluster) -> None:
    add_entries(trio, f"al:3:respawn@all:{SERVICE} all", f"tw:3:respawn@2:{SERVICE} two")
    everywhere = [(1, "all"), (2, "all"), (2, "two"), (3, "all")]
    wait_until(lambda: services(trio) == everywhere, "services run where they should")
    trio.crash(2)
    assert services(trio) == [(1, "all"), (3, "all")]
    trio.add(2)
    wait_until(lambda: services(trio) == everywhere, "the new node runs its own")


def test_what_is_waited_for_comes_first(trio: Cluster) -> None:
    add_entries(trio, "fi:3:wait:/bin/sh -c 'mkfifo /run/gate; read x </run/gate'",
                f"sv:3:respawn@all:{SERVICE} a")  # fmt: skip
    where = init_node(trio)
    trio.run(where, "sh", "-c", "until [ -p /run/gate ]; do sleep 0.1; done")
    assert services(trio) == []
    trio.run(where, "sh", "-c", "echo go >/run/gate")
    wait_until(lambda: len(services(trio)) == 3, "the service runs everywhere")


def test_runlevels(trio: Cluster) -> None:
    add_entries(trio, f"a:3:respawn:{SERVICE} three", f"b:4:respawn:{SERVICE} four",
                f"c:34:respawn:{SERVICE} both")  # fmt: skip
    where = init_node(trio)
    wait_until(lambda: services(trio) == [(where, "both"), (where, "three")], "runlevel 3")
    trio.run(2, "telinit", "4")
    assert trio.run(3, "runlevel") == "3 4\n"
    wait_until(lambda: services(trio) == [(where, "both"), (where, "four")], "runlevel 4")
    assert read(trio, RUNS).count(f"{where} both") == 1, "it went on"
    refused = trio.try_run(3, "telinit", "9")
    assert (refused.status, refused.out) == (2, "")
    assert "no runlevel" in refused.err


def test_telinit_tells_of_lines_that_are_none(trio: Cluster) -> None:
    trio.run(1, "tee", "-a", "/etc/inittab.ssi", given=b"xx:3:explode:/bin/true\n")
    result = trio.try_run(1, "telinit", "q")
    assert result.status == 1
    assert "'explode' is no action" in result.err
    denied = trio.try_run(1, "setpriv", "--reuid=nobody", "--clear-groups", "telinit", "q")
    assert denied.status == 77
    assert "only root" in denied.err


def test_an_entry_that_ends_at_once_rests(trio: Cluster) -> None:
    add_entries(trio, f"ba:3:respawn:/bin/sh -c 'echo bad >>{RUNS}'")
    where = init_node(trio)
    wait_until(lambda: len(read(trio, RUNS)) >= 10, "it is started again and again")
    wait_until(lambda: "ends as soon as it begins" in
               trio.ssi("exec", "-c", str(trio.number), "--ramdisk", str(where), "--",
                        "cat", "/run/ssi/ssid.log"), "init has had enough")  # fmt: skip
    assert len(read(trio, RUNS)) == 10


def test_a_killed_daemon_changes_nothing(trio: Cluster) -> None:
    add_entries(trio, f"sv:3:respawn:{SERVICE} a")
    where = init_node(trio)
    wait_until(lambda: services(trio) == [(where, "a")], "the service runs")
    kill_daemon(trio, where)
    wait_until(lambda: trio.run(where, "runlevel").endswith(" 3\n"), "the daemon is back")
    trio.run(where, "pkill", "-f", "^service-a")
    wait_until(lambda: len(read(trio, RUNS)) == 2, "the next daemon waits for it, too")
    wait_until(lambda: services(trio) == [(where, "a")], "it is there once")


def test_scripts_run_once_for_each_node_that_comes_or_is_lost(trio: Cluster) -> None:
    where = init_node(trio)
    other = max({1, 2, 3} - {where})
    trio.crash(other)
    wait_until(lambda: len(read(trio, EVENTS)) == 1, "rc.nodedown has run")
    trio.add(other)
    wait_until(lambda: len(read(trio, EVENTS)) == 2, "rc.nodeup has run")
    trio.crash(where)
    wait_until(lambda: len(read(trio, EVENTS)) == 3, "rc.nodedown has run on another node")
    wait_until(lambda: not pending(trio), "the node is DOWN")
    lines = [line.split() for line in read(trio, EVENTS)]
    assert [line[:2] for line in lines] == [
        ["rc.nodedown", str(other)], ["rc.nodeup", str(other)], ["rc.nodedown", str(where)]
    ]  # fmt: skip
    numbers = [int(line[2]) for line in lines]
    assert numbers == sorted(set(numbers))
