"""Unit tests leave nothing behind: no process, no descriptor."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def _children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue  # the one that lists the folder
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a child process or an open descriptor."""
    children, descriptors = _children(), _descriptors()
    yield
    left = _children() - children
    assert not left, f"child processes left: {left}"
    new = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
    if new:
        gc.collect()  # an object that nobody holds any more may hold it
        new = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
    assert not new, f"descriptors left: {new}"
