"""What is left of clusters that nobody runs any more, and how it is removed.

A supervisor cleans up after its nodes, and a guard after its supervisor. This is for what remains
when both were killed, or the whole machine was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.host.cluster.client import ask
from ssi.host.cluster.launch import locked
from ssi.host.cluster.spec import ClusterPlace, list_kept, list_running
from ssi.host.cluster.stopping import holds_lock, wait_unlocked
from ssi.host.uml.process import group_members

ANSWERS_WITHIN_S = 5.0
ENDS_WITHIN_S = 10.0

GUARD = "ssi.host.cluster.guard"
STUB = "uml-userspace"
"""Name of the processes that run a node's programs for its kernel; they have no command line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Removed:
    """Something that was removed."""

    cluster: int
    what: str


def remove_leftovers(*, force: bool = False) -> Iterator[Removed]:
    """Remove what is left of clusters nobody runs, and yield each thing; `force` ends hung ones."""
    if force:
        for place in list_running():
            yield from _end_hung(place)
    for place in list_running():
        if not _is_alive(place):
            yield from _remove_runtime(place)
    for place in list_kept():
        if not _is_alive(place):
            yield from _remove_unfinished(place)


def forget_kept(cluster: int | None) -> Iterator[Removed]:
    """Remove the kept roots, swaps and logs of one stopped cluster, of all for None."""
    places = list_kept()
    if cluster is not None:
        places = [place for place in places if place.id == cluster]
        if not places:
            raise SsiError(f"cluster {cluster} has kept nothing", hint="see `ssi ls --all`")
        if _is_alive(places[0]):
            raise SsiError(f"cluster {cluster} is running", hint=f"ssi stop {cluster}")
    for place in places:
        if not _is_alive(place):
            yield from _remove_runtime(place)
            with _claimed(place):
                shutil.rmtree(place.state)
            yield Removed(place.id, f"its root, swap and logs in {place.state}")


def _is_alive(place: ClusterPlace) -> bool:
    """Tell whether somebody works on the cluster or answers for it."""
    if holds_lock(place):
        return True
    # Somebody may have deleted the folder with the lock while the cluster runs.
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(place.control))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _claimed(place: ClusterPlace) -> Iterator[None]:
    """Hold the cluster's lock, if there is a folder for it, so that nobody starts it meanwhile."""
    with locked(place) if place.state.is_dir() else contextlib.nullcontext():
        yield


def _remove_runtime(place: ClusterPlace) -> Iterator[Removed]:
    if not place.runtime.exists():
        return
    with _claimed(place):
        for group in sorted(find_orphans(place)):
            _kill_group(group)
            yield Removed(place.id, f"process group {group} of a node")
        shutil.rmtree(place.runtime)
    yield Removed(place.id, f"run-time folder {place.runtime}")


def _remove_unfinished(place: ClusterPlace) -> Iterator[Removed]:
    with _claimed(place):
        for partial in sorted(place.state.glob("*.partial")):
            partial.unlink()
            yield Removed(place.id, f"unfinished file {partial}")
        if place.root.exists():
            return
        shutil.rmtree(place.state)
    yield Removed(place.id, f"folder {place.state} of a start that did not get far")


# -- processes of nodes ------------------------------------------------------------------------


def _read_groups(place: ClusterPlace) -> set[int]:
    try:
        words = place.groups.read_text().split()
    except OSError:
        return set()
    return {int(word) for word in words if word.isdigit() and int(word) > 1}


def find_orphans(place: ClusterPlace) -> set[int]:
    """Return the process groups of the cluster's nodes that live and surely are theirs."""
    others = (other for other in list_running() if other != place and _is_alive(other))
    taken = {group for other in others for group in _read_groups(other)}
    return {group for group in _read_groups(place) - taken if _is_of(group, place)}


def _is_of(group: int, place: ClusterPlace) -> bool:
    """Tell whether process group `group` belongs to a node of the cluster.

    The number alone tells nothing: after a restart of the machine it is anybody's.
    """
    members = group_members(group)
    if not members or not all(_is_ours(pid, group) for pid in members):
        return False
    if any(f"uml_dir={place.runtime}/" in _read_argument_text(pid) for pid in members):
        return True
    # The kernel's own processes may be dead and those that ran its programs left.
    return group not in members and all(_read_name(pid) == STUB for pid in members)


def _is_ours(pid: int, session: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid() and os.getsid(pid) == session
    except (OSError, ProcessLookupError):
        return True  # it has just ended, and is no reason to spare the others


def _read_argument_text(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
    return text.replace("\0", " ")


def _read_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + ENDS_WITHIN_S
    while group_members(group):
        if time.monotonic() > deadline:
            raise SsiError(f"process group {group} does not die", hint="see dmesg")
        time.sleep(0.01)  # they are not our children: nothing tells us


# -- supervisors that hang ---------------------------------------------------------------------


def _end_hung(place: ClusterPlace) -> Iterator[Removed]:
    if not holds_lock(place) or _answers(place):
        return
    # The youngest first: the supervisor is its guard's child, and a guard then does the rest.
    for pid in sorted(_find_guards(place), reverse=True):
        if not holds_lock(place):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_unlocked(place, ENDS_WITHIN_S)
        yield Removed(place.id, f"supervisor process {pid}, which did not answer")


def _answers(place: ClusterPlace) -> bool:
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while holds_lock(place):
        try:
            ask(place, {"do": "status"}, within_s=max(0.1, deadline - time.monotonic()))
        except SsiError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)  # it may be starting or ending: neither has a socket to wait on
        else:
            return True
    return True


def _find_guards(place: ClusterPlace) -> Iterable[int]:
    """Yield the guard and the supervisor of the cluster: they hold its lock."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            pid = int(entry.name)
            words = _read_argument_text(pid).split()
            if GUARD in words and str(place.id) in words and _has_open(pid, place.lock):
                yield pid


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(fd.samefile(path) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # it is another user's, or has ended
