"""Files that stand for disks: sparse copies, reflinks where the file system has them, room."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ssi.common.errors import SsiError

FICLONE = 0x40049409

PIECE = 1 << 20


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk or quota into an error that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise SsiError(
            f"no room left on the disk that holds {path.parent}",
            hint="free some, or point XDG_STATE_HOME and XDG_CACHE_HOME to a larger disk",
        ) from error


def _data_runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _copy_sparse(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in _data_runs(source, size):
        position = start
        while position < end:
            position += _copy_piece(source, target, position, end - position)


def _copy_piece(source: int, target: int, start: int, size: int) -> int:
    """Copy at most `size` bytes at `start`; return how many."""
    try:
        done = os.copy_file_range(source, target, size, start, start)
    except OSError as error:
        # Between file systems of two kinds Linux refuses it.
        if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        done = os.pwrite(target, os.pread(source, min(size, PIECE), start), start)
    if done == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return done


def copy_disk(source: Path, target: Path) -> None:
    """Copy `source` to `target`, all or nothing: a reflink where possible, else only its data."""
    partial = target.with_name(target.name + ".partial")
    try:
        with explain_full_disk(target), source.open("rb") as old, partial.open("wb") as new:
            try:
                fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            except OSError:
                _copy_sparse(old.fileno(), new.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def make_blank(path: Path, size: int) -> None:
    """Make `path` a disk of `size` zero bytes that takes no room yet."""
    with explain_full_disk(path), path.open("wb") as file:
        os.ftruncate(file.fileno(), size)
