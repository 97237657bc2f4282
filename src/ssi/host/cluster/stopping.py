"""Ending a cluster."""

from __future__ import annotations

import fcntl
import os
import time

from ssi.common.errors import SsiError
from ssi.host.cluster.client import ask
from ssi.host.cluster.spec import ClusterPlace

END_S = 75.0
"""Beyond its own deadline: what entries for a shutdown may take, and to kill the rest and end."""


def holds_lock(place: ClusterPlace) -> bool:
    """Tell whether somebody (its guard or supervisor, above all) holds the cluster's lock."""
    try:
        fd = os.open(place.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def wait_unlocked(place: ClusterPlace, within_s: float) -> bool:
    """Wait until nobody holds the cluster's lock; tell whether that came within the time."""
    deadline = time.monotonic() + within_s
    while holds_lock(place):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)  # flock(2) has no wait with a deadline
    return True


def stop_cluster(place: ClusterPlace, *, within_s: int) -> list[int]:
    """Stop the cluster; return the nodes that had to be killed. Never hangs."""
    answer = ask(place, {"do": "stop", "within_s": within_s}, within_s=within_s + END_S)
    if not wait_unlocked(place, END_S):
        raise SsiError(
            f"cluster {place.id}: its supervisor does not end", hint="`ssi clean --force` ends it"
        )
    return [int(node) for node in answer["killed"]]
