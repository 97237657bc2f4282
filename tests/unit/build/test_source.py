"""Which kernel sources are taken, and our patches."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssi.common.errors import BuildError, UsageError
from ssi.host.build import source
from ssi.host.build.source import Series, choose_package, read_kernel_version, source_inputs

SERIES = Series((6, 13), ("7.2",), ("sid",))
OTHERS = ["linux-source", "linux-source-7.2-rt", "linux-sources"]


@pytest.mark.parametrize(
    ("versions", "chosen", "tested"),
    [
        (["6.12", "7.2", "7.3"], "7.2", True),
        (["6.1", "6.12", "6.13"], "6.13", False),
        (["6.9", "6.16", "7.10", "7.9"], "7.10", False),
    ],
)
def test_a_tested_series_first_then_the_newest(
    versions: list[str],
    chosen: str,
    tested: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    names = OTHERS + [f"linux-source-{version}" for version in versions]
    assert choose_package(names, SERIES) == (f"linux-source-{chosen}", tested)


@pytest.mark.parametrize("names", [[], OTHERS, ["linux-source-6.12"]])
def test_too_old(names: list[str]) -> None:
    with pytest.raises(BuildError, match=r"of 6\.13 or newer") as caught:
        choose_package(names, SERIES)
    assert "--source" in (caught.value.hint or "")


def test_our_files_are_whole() -> None:
    assert Series.from_toml(source.SERIES.read_text()).tested
    listed = source.read_patches()
    assert sorted(listed) == sorted(source.PATCHES.glob("*.patch"))
    for patch in listed:
        reason = patch.read_text().partition("\n---\n")[0]
        assert len(reason.splitlines()) > 3, f"{patch.name} does not say why"


def test_unknown_key() -> None:
    with pytest.raises(UsageError, match="wanted"):
        Series.from_toml('oldest = "6.13"\ntested = []\nsuites = []\nwanted = 1\n')


def test_a_tree_counts_by_its_files_times(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 13\n")
    assert read_kernel_version(tmp_path) == "7.2.13"
    before = source_inputs(tmp_path)
    assert source_inputs(tmp_path) == before
    (tmp_path / "new.c").touch()
    assert source_inputs(tmp_path)["source"] != before["source"]


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such"):
        source_inputs(tmp_path / "missing.tar.xz")
