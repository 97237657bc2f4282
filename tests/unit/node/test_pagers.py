"""Which processes do not wait for their memory, and what follows them."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ssi.node.migration.criu import FOLLOWING, Way
from ssi.node.migration.images import COMMON_MAGIC, Fields, Image
from ssi.node.migration.pagers import LEAST, add_following, choose_way, find_missing

LAZY, PRESENT = 2, 4
OWN = "memory = bytearray(b'x' * {size})"
SHARED = "import mmap; memory = mmap.mmap(-1, {size}); memory[:] = b'x' * {size}"
HOLD = "; print('ready', flush=True); input()"


def entry(**fields: int) -> bytes:
    one = Fields()
    for number, value in fields.items():
        one.set(int(number[1:]), value)
    body = one.dump()
    return len(body).to_bytes(4, "little") + body


def write(image: Path, *entries: bytes) -> None:
    """Write an image of them."""
    image.write_bytes(COMMON_MAGIC.to_bytes(4, "little") + bytes(4) + b"".join(entries))


def test_what_follows(tmp_path: Path) -> None:
    image = tmp_path / "pagemap-7.img"
    write(
        image, entry(_1=1), entry(_1=0x1000, _2=3, _4=PRESENT), entry(_1=0x8000, _2=5, _4=LAZY),
        entry(_1=2**46, _2=2**18, _4=LAZY),
    )  # fmt: skip
    assert find_missing(image) == [(0x8000, 5), (2**46, 2**18)]


def test_what_the_dump_has_not_seen_is_added_once(tmp_path: Path) -> None:
    image = tmp_path / "pagemap-7.img"
    present, lazy = entry(_1=0x3000, _2=2, _4=PRESENT), entry(_1=0x9000, _2=1, _4=LAZY)
    write(image, entry(_1=1), present, lazy)
    pairs = [(0x20000, 4), (0x5000, 3), (0x21000, 4), (0x20000, 1)]
    data = b"".join(struct.pack("=QQ", *pair) for pair in pairs)
    (tmp_path / FOLLOWING).write_bytes(data)
    add_following(tmp_path, 7)
    added = [(0x20000, 1), (0x21000, 3), (0x24000, 1)]
    assert find_missing(image) == [(0x5000, 3), (0x9000, 1), *added]
    assert [one.number(1) for one in Image(image).entries][:2] == [1, 0x3000]


@pytest.mark.parametrize(
    ("script", "size", "worth"),
    [(OWN, LEAST, True), (OWN, LEAST // 8, False), (SHARED, LEAST, False),
     (f"{OWN}; {SHARED.replace('memory', 'more')}", LEAST, False)],
)  # fmt: skip
def test_whose_memory_follows(script: str, size: int, *, worth: bool) -> None:
    words = [sys.executable, "-c", script.format(size=size) + HOLD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        assert (choose_way(process.pid, whole=False) == Way.LATER) is worth
        process.kill()
