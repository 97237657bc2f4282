"""Copies of disks: everything of them, their holes too, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.common.errors import SsiError
from ssi.host.disk import copy_disk, explain_full_disk, make_blank

BLOCK = 64 * 1024

writes = st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=50)), max_size=8)


def make_disk(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    make_blank(path, size)
    with path.open("r+b") as file:
        for block, data in pieces:
            file.seek(block * BLOCK)
            file.write(data)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=writes, extra=st.integers(0, BLOCK))
def test_copy_has_the_data_and_the_holes(
    tmp_path: Path, pieces: list[tuple[int, bytes]], extra: int
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    make_disk(source, 41 * BLOCK + extra, pieces)
    copy_disk(source, target)
    assert target.read_bytes() == source.read_bytes()
    # The file system may lay out the copy less well, and keeps its list of extents with it.
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    assert not list(tmp_path.glob("*.partial"))


def test_a_large_disk_with_little_in_it_takes_little(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    make_disk(source, 1 << 40, [(0, b"first"), (1 << 23, b"far away")])
    copy_disk(source, target)
    assert target.stat().st_size == 1 << 40
    assert target.stat().st_blocks * 512 < 1 << 20


def test_copy_replaces_the_old_one(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old and longer")
    copy_disk(source, target)
    assert target.read_bytes() == b"new"


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_a_copy_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(4 * BLOCK))
    target.write_bytes(b"old")
    with files_limited_to(BLOCK), pytest.raises(OSError, match="large") as caught:
        copy_disk(source, target)
    assert caught.value.errno == errno.EFBIG
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(SsiError, match=str(tmp_path)) as caught,
        explain_full_disk(tmp_path / "root.img"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.hint


def test_other_errors_are_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path / "root.img"):
        raise PermissionError(errno.EACCES, "no")


def test_a_really_full_disk_is_named_and_left_clean(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(os.urandom(4 * BLOCK))
    small = tmp_path / "small"
    small.mkdir()
    with mounted_tmpfs(small, 2 * BLOCK):
        with pytest.raises(SsiError, match="no room"):
            copy_disk(source, small / "b")
        assert list(small.iterdir()) == []


@contextlib.contextmanager
def mounted_tmpfs(folder: Path, size: int) -> Iterator[None]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        pytest.skip(f"mounting needs root: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        assert libc.umount2(os.fsencode(folder), 0) == 0
