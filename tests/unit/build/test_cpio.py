"""The archive writer, against the real cpio."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.host.build import cpio

TOOL = shutil.which("cpio") or shutil.which("busybox")
pytestmark = pytest.mark.skipif(TOOL is None, reason="apt-get install cpio, or busybox")

NAMES = st.text("abcäö-._ ", min_size=1, max_size=12).filter(lambda name: name.strip(". "))


def archive(*entries: cpio.Entry) -> bytes:
    sink = io.BytesIO()
    assert cpio.write_archive(entries, sink) == len(sink.getvalue())
    return sink.getvalue()


def cpio_argv(*words: str) -> list[str]:
    assert TOOL
    return [TOOL, *(["cpio"] if TOOL.endswith("busybox") else []), *words]


def unpack(data: bytes, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(cpio_argv("-id"), input=data, cwd=folder, check=True, capture_output=True)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(files=st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=5))
def test_files_come_back(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    entries = [cpio.make_file(name, partial(bytes, data)) for name, data in files.items()]
    unpack(archive(*entries), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_folders_links_modes(tmp_path: Path) -> None:
    data = archive(
        cpio.make_file("/a/b/run", lambda: b"#!/bin/sh\n", executable=True),
        cpio.make_link("/a/link", "b/run"), cpio.make_folder("/a/b"), cpio.make_folder("/a"),
    )  # fmt: skip
    unpack(data, tmp_path / "out")
    assert (tmp_path / "out/a/link").readlink() == Path("b/run")
    assert stat.S_IMODE((tmp_path / "out/a/b/run").stat().st_mode) == 0o755


def test_devices_are_listed_as_such() -> None:
    data = archive(cpio.make_character_device("/dev/console", 5, 1))
    listed = subprocess.run(cpio_argv("-itv"), input=data, check=True, capture_output=True).stdout
    line = listed.decode().splitlines()[0]
    assert line.startswith("crw-------")
    assert "5," in line
    assert line.endswith("dev/console")


def test_order_of_making_does_not_matter() -> None:
    entries = [cpio.make_folder("/b"), cpio.make_file("/b/c", lambda: b"x"), cpio.make_folder("/a")]
    assert archive(*entries) == archive(*reversed(entries))
