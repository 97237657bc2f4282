"""Which entries run where, in which order, and once."""

from __future__ import annotations

import dataclasses

from ssi.node.init.plan import is_through, list_tasks
from ssi.node.state.inittab import BEFORE, dump_entries, parse_inittab
from ssi.node.state.state import MACHINE, State

TABLE = """\
id:3:initdefault:
si::sysinit:/etc/sysinit
na::sysinit@all:/etc/sysinit-of-each
bw::bootwait:/etc/bootwait
w3:3:wait:/etc/rc 3
w4:4:wait:/etc/rc 4
o3:34:once@2:/bin/once
rs:34:respawn:/bin/service
ge:345:respawn@all:/sbin/getty
sd::shutdown:/etc/down
"""


class Members:
    """The state of some nodes, changed by operations only."""

    def __init__(self, *nodes: int) -> None:
        self.state = State()
        for node in nodes:
            for do, more in (("coming", {}), ("state", {"state": "UP"})):
                self.apply(
                    "view", do, node=node, boot=f"boot-{node}", time=1.0, cause="test", **more
                )
        table = parse_inittab(TABLE)
        assert not table.faults
        self.apply("init", "inittab", entries=dump_entries(table.entries), level="3")

    def apply(self, part: str, do: str, **fields: object) -> None:
        self.state = MACHINE.apply(self.state, 1, {"on": part, "do": do, **fields})

    def ids(self, node: int) -> list[str]:
        return [task.entry.id for task in list_tasks(self.state, node)]

    def keys(self, node: int) -> dict[str, str]:
        return {task.entry.id: task.key for task in list_tasks(self.state, node)}

    def finish(self, node: int, name: str) -> None:
        """`node` has run the entry called `name`."""
        (task,) = [t for t in list_tasks(self.state, node) if t.entry.id == name]
        self.apply("init", "ran", **dataclasses.asdict(task.mark))

    def kill(self, node: int) -> None:
        boot = self.state.view.boot_of(node)
        self.apply("view", "state", node=node, boot=boot, time=2.0, cause="test", state="KCLEANUP")


def up(*nodes: int) -> Members:
    """Members that are through with what comes first."""
    members = Members(*nodes)
    members.finish(1, "si")
    for node in nodes:
        members.finish(node, "na")
    members.finish(1, "bw")
    members.finish(1, "w3")
    return members


def test_all_wait_for_what_runs_once_in_the_cluster() -> None:
    members = Members(1, 2)
    assert (members.ids(1), members.ids(2)) == (["si"], [])
    members.finish(1, "si")
    assert (members.ids(1), members.ids(2)) == (["na"], ["na"])
    members.finish(2, "na")
    # Node 2 waits for what the init node has still to do, which waits for its own first.
    assert (members.ids(1), members.ids(2)) == (["na"], [])
    members.finish(1, "na")
    assert (members.ids(1), members.ids(2)) == (["bw"], [])
    assert not is_through(members.state, actions=BEFORE)
    members.finish(1, "bw")
    assert is_through(members.state, actions=BEFORE)
    members.finish(1, "w3")
    assert (members.ids(1), members.ids(2)) == (["rs", "ge"], ["o3", "ge"])


def test_a_node_that_joins_later_runs_only_its_own() -> None:
    members = up(1)
    members.apply("view", "coming", node=3, boot="b", time=1.0, cause="")
    members.apply("view", "state", node=3, boot="b", time=1.0, cause="", state="UP")
    assert members.ids(3) == ["na"]
    members.finish(3, "na")
    assert members.ids(3) == ["ge"]


def test_the_next_init_node_runs_services_and_nothing_that_has_been_run() -> None:
    members = up(1, 2, 3)
    members.finish(2, "o3")
    members.kill(1)
    assert members.ids(1) == []
    assert members.ids(2) == ["rs", "ge"]
    assert members.ids(3) == ["ge"]


def test_the_next_init_node_runs_what_was_not_run_to_its_end() -> None:
    members = Members(1, 2)
    members.kill(1)
    assert members.ids(2) == ["si"]


def test_a_change_of_runlevel_keeps_what_is_in_both() -> None:
    members = up(1, 2)
    before = members.keys(1)
    members.finish(2, "o3")
    members.apply("init", "level", level="4")
    assert members.ids(1) == ["w4"]
    assert members.ids(2) == []
    members.finish(1, "w4")
    assert members.keys(1) == before
    # Once means once in each runlevel.
    assert members.ids(2) == ["o3", "ge"]


def test_another_command_is_another_run() -> None:
    members = up(1)
    before = members.keys(1)
    table = parse_inittab(TABLE.replace("/bin/service", "/bin/service -v"))
    members.apply("init", "inittab", entries=dump_entries(table.entries), level="2")
    after = members.keys(1)
    assert members.state.init.level == "3"
    assert after["ge"] == before["ge"]
    assert after["rs"] != before["rs"]


def test_a_shutdown_runs_its_entries_and_then_nothing() -> None:
    members = up(1, 2)
    shutdown = {"how": "reboot", "time": 5.0, "by": "me", "text": ""}
    members.apply("init", "shutdown", **shutdown, phase="planned")
    assert members.ids(1) == ["rs", "ge"]
    members.apply("init", "phase", phase="stopping")
    assert (members.ids(1), members.ids(2)) == (["sd"], [])
    members.apply("init", "cancel")
    members.apply("init", "shutdown", **{**shutdown, "how": "halt"}, phase="planned")
    assert members.state.init.shutdown
    assert members.state.init.shutdown.how == "reboot"
    assert not is_through(members.state, actions=("shutdown",))
    members.finish(1, "sd")
    assert is_through(members.state, actions=("shutdown",))
    members.apply("init", "phase", phase="leaving")
    members.apply("init", "phase", phase="stopping")
    assert (members.ids(1), members.ids(2)) == ([], [])


def test_a_planned_shutdown_can_be_changed_and_cancelled() -> None:
    members = up(1)
    for how in ("reboot", "halt"):
        members.apply("init", "shutdown", how=how, time=5.0, by="me", text="", phase="planned")
    assert members.state.init.shutdown
    assert members.state.init.shutdown.how == "halt"
    members.apply("init", "cancel")
    assert members.state.init.shutdown is None


def test_the_state_of_init_travels() -> None:
    members = up(1, 2)
    members.apply("init", "level", level="5")
    members.apply("init", "shutdown", how="halt", time=5.0, by="me", text="x", phase="planned")
    assert MACHINE.load(MACHINE.dump(members.state)) == members.state


def test_marks_of_former_lives_are_not_kept() -> None:
    members = up(1, 2)
    members.kill(2)
    members.apply("init", "level", level="4")
    members.finish(1, "w4")
    assert not [mark for mark in members.state.init.done if "boot-2" in mark.life]
