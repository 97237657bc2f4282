"""What the applets answer, for people, for scripts and for libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.common import frames
from ssi.node.applets.api import render_record
from ssi.node.applets.cluster import Denied, change_state
from ssi.node.applets.query import render_table
from support.local import Serving, SmallCluster, read_frame, serving


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    cluster = SmallCluster(1, 2, 3, 7)
    cluster.move(2, "DOWN", "lost its link")
    cluster.states[9] = "NEVERUP"
    with serving(tmp_path, cluster) as found:
        yield found


TABLE = """\
NODE  STATE  ADDRESS
1     UP     192.168.50.1
2     DOWN   192.168.50.2
3     UP     192.168.50.3
7     UP     192.168.50.7
"""

DETAILS = """\
Node: 2
State: DOWN
Address: 192.168.50.2
Member: no
Init node: no
Previous state: UP
Reason for last transition: lost its link
Last transition ID: 5
Last transition time: 2023-11-14T22:13:25Z
"""


@pytest.mark.parametrize(
    ("words", "status", "out"),
    [
        ("cluster", 0, "1,3,7\n"),
        ("cluster -v", 0, TABLE),
        ("cluster -V 2", 0, DETAILS),
        ("clustername", 0, "small\n"),
        ("clusternode_num", 0, "1\n"),
        ("clusternode_avail 1", 0, "1\n"),
        ("clusternode_avail 2", 1, "0\n"),
        ("clusternode_avail 127", 1, "0\n"),
        ("clusternode_getstate 2", 0, "DOWN\n"),
        ("clusternode_getstate 5", 0, "NEVERUP\n"),
    ],
)
def test_answers(running: Serving, words: str, status: int, out: str) -> None:
    assert running.ask(*words.split()) == (status, out, "")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("cluster", {"name": "small", "node": 1, "view": 5, "init_node": 1,
                     "members": [1, 3, 7], "up": [1, 3, 7], "pending_events": 0}),
        ("clustername", {"name": "small"}),
        ("clusternode_num", {"node": 1}),
        ("clusternode_avail 2", {"node": 2, "available": False}),
        ("clusternode_getstate 2", {"node": 2, "state": "DOWN"}),
    ],
)  # fmt: skip
def test_json(running: Serving, words: str, value: object) -> None:
    assert json.loads(running.ask(*words.split(), "--json")[1]) == value


def test_json_of_tables(running: Serving) -> None:
    rows = json.loads(running.ask("cluster", "-v", "--json")[1])
    assert rows[1] == {"node": 2, "state": "DOWN", "address": "192.168.50.2"}
    details = json.loads(running.ask("cluster", "-V", "2", "--json")[1])
    assert details["reason_for_last_transition"] == "lost its link"
    assert details["last_transition_id"] == 5


NAMES = ("cluster", "clustername", "clusternode_num", "clusternode_avail", "clusternode_getstate",
         "clusternode_setstate")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_help_reaches_the_caller_and_nobody_else(
    running: Serving, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, error = running.ask(name, "--help")
    assert (status, error) == (0, "")
    assert out.startswith(f"usage: {name} ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "words",
    ["cluster -x", "cluster 1", "cluster -v -V 1", "cluster -V", "cluster -V 0", "cluster -V x",
     "clustername 1", "clusternode_avail", "clusternode_avail 128", "clusternode_getstate -1",
     "clusternode_setstate 1", "clusternode_setstate 1 BAD", "api-node", "api-node 0",
     "api-node 1 2", "api-transition x", "api-transition -1", "api-transition ²",
     "api-transition 99999999999999999999", "api-detailedtransition which 1", "api-events 0 some",
     "api-setstate 1 up"],
)  # fmt: skip
def test_wrong_words(running: Serving, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, error = running.ask(*words.split())
    assert (status, out) == (2, "")
    assert error.startswith(f"{words.split(maxsplit=1)[0]}: ")
    assert capfd.readouterr() == ("", "")


def test_only_root_changes_a_state() -> None:
    cluster = SmallCluster(1)
    with pytest.raises(Denied):
        change_state(cluster, 1000, "1", "SHUTDOWN", "asked").send(None)
    with pytest.raises(StopIteration):
        change_state(cluster, 0, "1", "SHUTDOWN", "asked").send(None)
    assert cluster.transitions[-1].now == "SHUTDOWN"


API = {
    "api-cluster": "name small\nnode 1\nmax_nodes 127\nview 5\ninit_node 1\ntransition 5\n\n",
    "api-membership": "transition 5\nview 5\nmember 1\nmember 3\nmember 7\nup 1\nup 3\nup 7\n\n",
    "api-transition 4": "transition 5\ntime_us 1700000005250000\nview 5\nnode 2\nwas UP\nnow DOWN\n"
    "cause lost its link\n\n",
    "api-transition 5": "",
    "api-detailedtransition this 9": "",
    "api-detailedtransition prev 1": "",
    "api-node 9": "node 9\nstate NEVERUP\nmember 0\naddress 192.168.50.9\n\n",
}


@pytest.mark.parametrize("words", API)
def test_text_for_libraries(running: Serving, words: str) -> None:
    assert running.ask(*words.split()) == (0, API[words], "")


@pytest.mark.parametrize(
    ("words", "number"),
    [("this 2", 2), ("next 2", 3), ("prev 2", 1), ("first 2", 1), ("last 2", 5)],
)
def test_detailed_transitions(running: Serving, words: str, number: int) -> None:
    out = running.ask("api-detailedtransition", *words.split())[1]
    assert out.startswith(f"transition {number}\n")


def test_simple_transitions_are_those_to_and_from_up(running: Serving) -> None:
    running.call(lambda: running.cluster.move(4, "COMINGUP", "boots"))
    assert running.ask("api-transition", "5")[1] == ""
    running.call(lambda: running.cluster.move(4, "UP", "booted"))
    assert running.ask("api-transition", "5")[1].startswith("transition 7\n")


def test_each_event_is_one_frame(running: Serving) -> None:
    with running.connect() as line:
        line.sendall(frames.encode_call(["api-events", "4", "simple"]))
        assert read_frame(line)[0] == frames.Reply.ACCEPTED
        assert read_frame(line)[1].startswith(b"transition 5\n")
        running.call(lambda: running.cluster.move(3, "SHUTDOWN", "asked"))
        running.call(lambda: running.cluster.move(3, "DOWN", "left"))
        running.call(lambda: running.cluster.move(3, "UP", "came back"))
        for number in (6, 8):
            kind, data = read_frame(line)
            assert kind == frames.Reply.STDOUT
            assert data.startswith(b"transition %d\n" % number)
            assert data.endswith(b"\n\n")


def test_no_value_breaks_a_record() -> None:
    assert render_record([("cause", "a\n\nb  c "), ("n", 1)]) == "cause a b c\nn 1\n\n"


def test_tables_are_as_wide_as_needed() -> None:
    assert render_table(("A", "B"), [("long", 1), ("x", "")]) == "A     B\nlong  1\nx\n"
