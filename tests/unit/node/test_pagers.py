"""Which processes do not wait for their memory, and what follows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ssi.node.migration.images import COMMON_MAGIC, Fields
from ssi.node.migration.pagers import LEAST, find_missing, is_worth

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


def test_what_follows(tmp_path: Path) -> None:
    image = tmp_path / "pagemap-7.img"
    entries = [
        entry(_1=1), entry(_1=0x1000, _2=3, _4=PRESENT), entry(_1=0x8000, _2=5, _4=LAZY),
        entry(_1=2**46, _2=2**18, _4=LAZY),
    ]  # fmt: skip
    image.write_bytes(COMMON_MAGIC.to_bytes(4, "little") + bytes(4) + b"".join(entries))
    assert find_missing(image) == [(0x8000, 5), (2**46, 2**18)]


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
        assert is_worth(process.pid) is worth
        process.kill()
