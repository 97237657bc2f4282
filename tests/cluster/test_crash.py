"""Nodes die, and nothing that was acknowledged is lost."""

from __future__ import annotations

import itertools
import random
import subprocess

import pytest

from support.clusters import (
    Cluster,
    Ssi,
    answers,
    run_in_ramdisk,
    started,
    stop_daemon,
    wait_until,
)
from support.journal import check_records, start_writers, wait_for_records


def test_twenty_crashes_and_rejoins_in_a_row(trio: Cluster) -> None:
    chance = random.Random(2002)
    for number in range(20):
        victim = chance.randint(1, 3)
        trio.run(victim % 3 + 1, "sh", "-c", f"echo {number} >>/root/rounds; sync /root/rounds")
        trio.crash(victim)
        survivor = victim % 3 + 1
        lines = trio.run(survivor, "cat", "/root/rounds").split()
        assert lines == [str(n) for n in range(number + 1)]
        trio.add(victim)
        assert trio.run(victim, "tail", "-n1", "/root/rounds").strip() == str(number)
    trio.run(1, "rm", "/root/rounds")
    assert trio.sees_all(1, 2, 3)


def test_no_acknowledged_write_is_lost(trio: Cluster) -> None:
    writers = start_writers(trio, (1, 2, 3))
    wait_for_records(writers, each=20)
    trio.crash(2)
    before = {node: len(writers[node].records) for node in (1, 3)}
    wait_for_records(writers, more_than=before, by=20, nodes=(1, 3))
    assert check_records(trio, writers, reader=3) == []
    trio.run(3, "rm", "/root/journal")


def test_the_last_one_goes_on(ssi: Ssi) -> None:
    with started(ssi, 4) as cluster:
        cluster.run(1, "sh", "-c", "echo all >/root/who; sync /root/who")
        for victim, left in ((1, (2, 3, 4)), (4, (2, 3)), (2, (3,))):
            cluster.crash(victim)
            cluster.run(left[0], "sh", "-c", f"echo {victim} is gone >>/root/who; sync /root/who")
            assert set(cluster.nodes()) == set(left)
        assert cluster.run(3, "cat", "/root/who").count("gone") == 3
        cluster.add(1, 2, 4)
        assert cluster.run(1, "tail", "-n1", "/root/who") == "2 is gone\n"


def test_two_at_once(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "echo before >/root/two; sync /root/two")
    trio.crash(1, 2)
    trio.run(3, "sh", "-c", "echo after >>/root/two")
    trio.add(1, 2)
    assert trio.run(2, "cat", "/root/two") == "before\nafter\n"
    trio.run(2, "rm", "/root/two")


def test_a_stopped_node_is_dead_and_stays_dead(trio: Cluster) -> None:
    """A node that hangs and comes to itself later must find nothing it could still write to."""
    group = trio.nodes()[2]["pid"]
    subprocess.run(["pkill", "-STOP", "-g", str(group)], check=True)
    trio.run(1, "sh", "-c", "echo x >/root/hang; sync /root/hang")  # waits until it is fenced
    assert 2 not in trio.nodes()
    assert subprocess.run(["pgrep", "-g", str(group)], check=False).returncode == 1
    trio.run(1, "rm", "/root/hang")


@pytest.mark.parametrize("survivors", [(), (2,)])
def test_a_crash_of_all_is_repaired_at_the_next_start(ssi: Ssi, survivors: tuple[int, ...]) -> None:
    with started(ssi, 3) as cluster:
        number = str(cluster.number)
        for node in (1, 2, 3):
            cluster.run(node, "sh", "-c", f"echo {node} >/root/n{node}; sync -f /root")
        cluster.crash(*({1, 2, 3} - set(survivors)))
        if survivors:
            assert cluster.run(2, "cat", "/root/n3") == "3\n"
            ssi("stop", number)
        ssi("start", "3", "-c", number, *ssi.images.options)
        said = cluster.run(1, "cat", "/root/n1", "/root/n2", "/root/n3")
        assert said.split() == ["1", "2", "3"]


STOPPED_S = 25

# A new file needs a lock of the root: until a death is confirmed nobody gets one.
GOES_ON = """\
mkdir -p /root/ticks; cd /root/ticks || exit
while [ ! -e /root/ticks.end ]; do
    mktemp -p /root/ticks >/dev/null; date +%s >>/root/ticks.said; sleep 0.2
done
"""


def test_a_death_is_confirmed_without_the_daemons(trio: Cluster) -> None:
    """Who asks for the fence waits for no daemon, as daemons may wait for the root."""
    trio.run(1, "sh", "-c", 'setsid sh -c "$0" </dev/null >/dev/null 2>&1 &', GOES_ON)
    stops = [stop_daemon(trio, node, STOPPED_S) for node in (1, 2)]
    wait_until(lambda: not answers(trio, 1), "the daemons are stopped")
    trio.crash(3)
    for stop in stops:
        assert stop.wait(60) == 0
    trio.run(1, "touch", "/root/ticks.end")
    ticks = [int(line) for line in trio.run(1, "cat", "/root/ticks.said").splitlines()]
    trio.run(1, "sh", "-c", "rm -r /root/ticks*")
    assert max(later - tick for tick, later in itertools.pairwise(ticks)) < STOPPED_S / 2


# Is the agent on this node, and asks for node 3 only once that is a member again.
LATE = """\
mv /sbin/fence_ssi /sbin/fence_ssi.now && cat >/sbin/fence_ssi <<end && chmod +x /sbin/fence_ssi
#!/bin/sh
given=\\$(cat)
case \\$given in *port=3*)
    touch /run/asked
    for try in \\$(seq 300); do
        [ ! -e /sys/kernel/config/dlm/cluster/comms/3 ] || break
        sleep 0.02
    done
esac
echo "\\$given" | /sbin/fence_ssi.now
end
"""
IN_TIME = "mv /sbin/fence_ssi.now /sbin/fence_ssi"
WRITE = "echo x >/root/twice; sync /root/twice"


def test_a_victim_is_a_member_again_before_it_is_dead(trio: Cluster) -> None:
    """It is lost twice: as it stood still, and as it is killed. It may take others along."""
    for node in (1, 2):
        assert run_in_ramdisk(trio, node, LATE).status == 0
    group = str(trio.nodes()[3]["pid"])
    subprocess.run(["pkill", "-STOP", "-g", group], check=True)
    wait_until(
        lambda: any(not run_in_ramdisk(trio, n, "[ -e /run/asked ]").status for n in (1, 2)),
        "somebody is about to fence it",
    )
    subprocess.run(["pkill", "-CONT", "-g", group], check=True)
    wait_until(lambda: len(trio.nodes()) < 3, "somebody is dead")
    wait_until(
        lambda: any(not trio.try_run(n, "sh", "-c", WRITE).status for n in trio.nodes()),
        "somebody goes on",
    )
    left = trio.nodes()
    for node in {1, 2} & set(left):
        assert run_in_ramdisk(trio, node, IN_TIME).status == 0
    trio.add(*{1, 2, 3} - set(left))
    assert trio.sees_all(1, 2, 3)
    trio.run(2, "rm", "/root/twice")
