"""The user's defaults, as the 2002 HOWTO wrote them, and what else may be in that file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import SsiError, UsageError
from ssi.host.config import Config, parse_config, read_config

PATH = Path("/home/ann/.ssiuml/ssiuml.conf")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")


def test_reads_the_keys_of_the_howto() -> None:
    config = parse_config(
        "# my cluster\n\nKERNEL=/k/linux\n  ROOT=~/images/root_fs  # the large one\n"
        'INITRD="../my ramdisks/a.img"\n', PATH,
    )  # fmt: skip
    assert config == Config(
        kernel=Path("/k/linux"), root=Path("/home/ann/images/root_fs"),
        ramdisk=Path("/home/ann/.ssiuml/../my ramdisks/a.img"),
    )  # fmt: skip


def test_the_last_line_of_a_key_counts_and_an_empty_one_takes_it_back() -> None:
    assert parse_config("ROOT=/a\nROOT=/b\n", PATH).root == Path("/b")
    assert parse_config("ROOT=/a\nROOT=\n", PATH).root is None


def test_obsolete_keys_are_told_and_ignored() -> None:
    config = parse_config("CIDEV=/x\nINITRD_MEMEXP=$HOME/y\n", PATH)
    assert config == Config(notes=config.notes)
    assert [note.split()[:2] for note in config.notes] == [
        [f"{PATH}:1:", "CIDEV"], [f"{PATH}:2:", "INITRD_MEMEXP"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["COLOUR=red", "kernel=/k", "KERNEL", "KERNEL = /k", "KERNEL=/my kernel", "KERNEL='/k",
     "export KERNEL=/k", "KERNEL=$HOME/k", "KERNEL=`which linux`", "KERNEL=$(touch /tmp/x)",
     "KERNEL=~nobody-at-all/k"],
)  # fmt: skip
def test_refuses_and_names_the_line(line: str) -> None:
    with pytest.raises(UsageError, match=rf"^{PATH}:2: "):
        parse_config(f"# first\n{line}\n", PATH)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_config(text, PATH)


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none") == Config()


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ssiuml.conf"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SsiError, match="cannot be read"):
        read_config(path)


def test_a_file_of_the_user_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssiuml").mkdir()
    (tmp_path / ".ssiuml/ssiuml.conf").write_text("KERNEL=linux\n")
    assert read_config().kernel == tmp_path / ".ssiuml/linux"
