"""Where things are: the checkout or installation, the cache, the state and run-time folders."""

from __future__ import annotations

import os
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
"""The checkout, or the folder `make install` laid out like one (src, image, native, bin)."""

IMAGE = TOP / "image"
NATIVE = TOP / "native"


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification: a relative path in these variables is to be ignored.
    return Path(value) if value.startswith("/") else Path.home() / default


def cache_dir() -> Path:
    """Build products: anything in it may be deleted and is made again."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "ssi"


def state_dir() -> Path:
    """What a cluster keeps between stop and start: its root, swap and logs."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "ssi"


def failed_boot_dir() -> Path:
    """The logs of the last start that failed."""
    return state_dir() / "failed-boot"


def runtime_dir() -> Path:
    """Sockets of running clusters. Short, because a Unix socket's path has 107 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and len(base) < 40 and os.access(base, os.W_OK):
        return Path(base) / "ssi"
    return Path(f"/tmp/ssi-{os.getuid()}")
