"""`cluster_mkinitrd` in a node makes the ramdisk that `ssi build ramdisk` makes on the host."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pytest
import zstandard

from support.clusters import Cluster, Images, Ssi, started

RELEASE = "etc/ssi-release"
"""The one file that differs: it names the kernel that the ramdisk was made for."""


def read_archive(packed: bytes) -> dict[str, tuple[int, bytes]]:
    """Return mode and contents of what is in a ramdisk, by path."""
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()
    entries: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        fields = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        name_start = position + 110
        name = data[name_start : name_start + fields[11] - 1].decode()
        start = (name_start + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = fields[1], data[start : start + fields[6]]
        position = (start + fields[6] + 3) & ~3


@pytest.fixture(scope="module")
def roomy(ssi: Ssi) -> Iterator[Cluster]:
    """A node with room for it: it takes 110 MB, and one of 160 would swap for minutes."""
    with started(ssi, 1, "-m", "320") as cluster:
        yield cluster


def test_makes_the_same(roomy: Cluster, images: Images) -> None:
    version = roomy.run(1, "uname", "-r").strip()
    try:
        roomy.run(1, "cluster_mkinitrd", "--uml", "/tmp/ramdisk", version)
        made = read_archive(base64.b64decode(roomy.run(1, "base64", "/tmp/ramdisk")))
    finally:
        roomy.run(1, "rm", "-f", "/tmp/ramdisk")
    built = read_archive(images.ramdisk.read_bytes())
    assert f'KERNEL="{version}"' in made.pop(RELEASE)[1].decode()
    del built[RELEASE]
    assert made.keys() == built.keys()
    assert [name for name in made if made[name] != built[name]] == []


def test_refuses_what_is_no_version(roomy: Cluster) -> None:
    result = roomy.try_run(1, "cluster_mkinitrd", "--uml", "/tmp/ramdisk", "newest")
    assert result.status == 2
    assert "uname -r" in result.err
