"""`ssi logs`: what all nodes said, in order, also when some are dead."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime
from typing import Any

from support.clusters import Cluster, Ssi, started, wait_until


def rows(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    """Return what `ssi logs` prints for `cluster`."""
    found: list[dict[str, Any]] = cluster.ssi.json("logs", "-c", str(cluster.number), *words)
    return found


def assert_in_order(found: list[dict[str, Any]]) -> None:
    times = [datetime.fromisoformat(row["time"]) for row in found]
    assert times == sorted(times)


def test_a_crash_as_all_saw_it(trio: Cluster) -> None:
    # The cluster of an earlier test may have seen another crash.
    since = datetime.now(UTC).isoformat()
    trio.crash(3)
    trio.run(1, "true")

    def survivors_saw_it() -> bool:
        seen = [row for row in rows(trio, "--since", since) if "A new membership" in row["text"]]
        left = [row["node"] for row in seen if "Members left: 3" in row["text"]]
        return {1, 2} <= set(left)

    wait_until(survivors_saw_it, "both survivors tell of it")
    found = rows(trio)
    assert_in_order(found)
    assert {None, 1, 2, 3} <= {row["node"] for row in found}
    of_3 = [row for row in found if row["node"] == 3]
    assert {"corosync", "dlm_controld", "ssid"} <= {row["source"] for row in of_3}
    assert any("phase ready" in row["text"] for row in of_3)
    verdict = [i for i, row in enumerate(found) if "asks to fence node3" in row["text"]]
    assert max(i for i, row in enumerate(found) if row["node"] == 3) < verdict[-1]
    assert rows(trio, "3") == of_3
    assert [row["node"] for row in rows(trio, "1-2", "-n", "7")] != []
    assert len(rows(trio, "-n", "7")) == 7
    assert rows(trio, "--since", "2100-01-01") == []


def test_follows_until_interrupted(trio: Cluster) -> None:
    following = trio.ssi.person.start(
        ["ssi", "logs", "-c", str(trio.number), "-f", "-n", "0", "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert following.stdout is not None
    # Twice, as nothing tells when it has begun to follow.
    for _ in range(2):
        trio.run(1, "true")
        trio.crash(3)
        trio.add(3)
    line = json.loads(following.stdout.readline())
    assert line["node"] in {None, 1, 2, 3}
    while "node3" not in line["text"]:
        line = json.loads(following.stdout.readline())
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=20) == 128 + signal.SIGINT
    assert following.stderr is not None
    assert following.stderr.read() == b""


def test_ends_when_nobody_reads_any_more(trio: Cluster) -> None:
    words = f"ssi logs -c {trio.number} -f"
    done = subprocess.run(
        [*trio.ssi.person.prefix, "sh", "-c", f"({words}; echo $? >&2) | head -n1"],
        env=trio.ssi.person.environment, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == b"141\n"
    assert len(done.stdout.splitlines()) == 1


CHATTER = 'i=0; while [ $i -lt 3000 ]; do echo "chatter $i of a daemon"; i=$((i+1)); done >>{}'


def test_a_daemon_that_says_too_much_is_cut(trio: Cluster) -> None:
    """And the wire that fencing needs stays free; on the root is all that was said."""
    log = "/run/ssi/daemons.log"
    trio.ssi("exec", "-c", str(trio.number), "--ramdisk", "2", "--", "sh", "-c",
             CHATTER.format(log))  # fmt: skip
    wait_until(lambda: any("lines left out" in row["text"] for row in rows(trio, "2")), "the note")
    count = sum("chatter" in row["text"] for row in rows(trio, "2"))
    assert 100 < count < 2000
    trio.run(2, "true")


def test_the_logs_of_a_stopped_cluster(ssi: Ssi) -> None:
    with started(ssi, 1) as cluster:
        ssi("stop", str(cluster.number))
        found = rows(cluster)
        assert_in_order(found)
        assert {row["node"] for row in found} == {None, 1}
        assert any("phase ready" in row["text"] for row in found)
        with (cluster.logs / "node1.log").open("ab") as log:
            log.write(b"\xff\x00 not a line\n2026-99-99T00:00 node1\n")
        assert len(rows(cluster)) == len(found) + 2
        ssi("start", "1", "-c", str(cluster.number), *ssi.images.options)
        texts = [row["text"] for row in rows(cluster, "1")]
        assert sum("phase ready" in text for text in texts) == 2
    assert ssi.try_("logs", "-c", str(cluster.number)).status == 1
