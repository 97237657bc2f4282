"""Which of the cluster's entries a node runs now, from the replicated state alone."""

from __future__ import annotations

import dataclasses
import hashlib

from ssi.node.state.init import Init, Mark, Phase
from ssi.node.state.inittab import BEFORE, IN_LEVEL, WAITED, Entry
from ssi.node.state.state import State
from ssi.node.state.view import NodeState


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """An entry to be run. `key` names that run of it: the same as long as it need not be anew."""

    key: str
    entry: Entry
    mark: Mark

    @property
    def is_kept(self) -> bool:
        """Whether it is started again when it ends."""
        return self.entry.action == "respawn"


def _in_order(init: Init) -> list[Entry]:
    """Return the entries as they are run one after the other, those of other runlevels left out."""
    if init.shutdown and init.shutdown.phase is not Phase.PLANNED:
        stopping = init.shutdown.phase is Phase.STOPPING
        return [entry for entry in init.entries if stopping and entry.action == "shutdown"]
    first = [entry for entry in init.entries if entry.action == "sysinit"]
    boot = [e for e in init.entries if e.action in BEFORE and e.action != "sysinit"]
    level = [e for e in init.entries if e.action in IN_LEVEL and e.is_in(init.level)]
    return first + boot + level


def _is_waited_for(entry: Entry) -> bool:
    return entry.action in (*WAITED, "shutdown")


def _make_task(state: State, entry: Entry, node: int) -> Task:
    mark = state.init.mark_for(entry, node, state.view.boot_of(node))
    digest = hashlib.sha256(entry.command.encode()).hexdigest()[:8]
    # What goes on through a change of runlevel is the same run.
    turn = "" if entry.action in (*BEFORE, "respawn") else f"{state.init.turn}."
    return Task(f"{entry.id}.{turn}{digest}", entry, mark)


def list_tasks(state: State, node: int) -> tuple[Task, ...]:
    """Return what `node` runs now. What is to be waited for is the last."""
    if state.view.state_of(node) is not NodeState.UP or not state.init.level:
        return ()
    tasks = []
    for entry in _in_order(state.init):
        ours = entry.is_for(node, state.view.init_node)
        task = _make_task(state, entry, node)
        if task.mark in state.init.done:
            continue
        if ours:
            tasks.append(task)
        # What runs once in the cluster is waited for everywhere.
        if _is_waited_for(entry) and (ours or entry.is_of_cluster):
            break
    return tuple(tasks)


def is_through(state: State, *, actions: tuple[str, ...]) -> bool:
    """Tell whether all waited-for entries with one of `actions` have run on all nodes they are for.

    Those that are neither up nor will be are not asked for.
    """
    view = state.view
    return all(
        state.init.mark_for(entry, node, view.boot_of(node)) in state.init.done
        for entry in state.init.entries
        if entry.action in actions and _is_waited_for(entry)
        for node in view.members
        if entry.is_for(node, view.init_node)
    )
