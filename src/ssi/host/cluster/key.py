"""The cluster's key: who has it may talk with the nodes' daemons. It is on no command line."""

from __future__ import annotations

import os
import secrets

from ssi.common.errors import SsiError
from ssi.host.cluster.spec import ClusterPlace

KEY_BYTES = 32


def make_key(place: ClusterPlace) -> None:
    """Give the cluster a key, unless it has one. Its lock is held."""
    if place.key.exists():
        return
    partial = place.key.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    # Made with its mode, so that nobody else ever reads it.
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    partial.rename(place.key)


def read_key(place: ClusterPlace) -> bytes:
    """Return the cluster's key; raises SsiError if it is none."""
    key = place.key.read_bytes()
    if len(key) != KEY_BYTES:
        raise SsiError(
            f"{place.key} has {len(key)} bytes instead of {KEY_BYTES}",
            hint="remove it, and start the cluster again",
        )
    return key
