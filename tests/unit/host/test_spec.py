"""Clusters' numbers, folders and kept wishes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import SsiError, UsageError
from ssi.host.cluster.spec import (
    FIRST_ID,
    LAST_ID,
    ClusterPlace,
    ClusterSpec,
    choose_running,
    list_kept,
    list_running,
    parse_cluster,
)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.host.cluster.spec.runtime_dir", lambda: tmp_path / "run")
    monkeypatch.setattr("ssi.host.cluster.spec.state_dir", lambda: tmp_path / "state")


def run(*numbers: int) -> None:
    for number in numbers:
        ClusterPlace(number).runtime.mkdir(parents=True)


specs = st.builds(
    ClusterSpec, id=st.integers(FIRST_ID, LAST_ID),
    kernel=st.just(Path("/a b/linux")), ramdisk=st.just(Path("/ramdisk")), root_source=st.text(),
    memory_mib=st.integers(1), swap_mib=st.integers(1), token_ms=st.integers(1),
    publish=st.lists(st.text()).map(tuple),
)  # fmt: skip


@given(specs)
def test_spec_survives_its_file(spec: ClusterSpec) -> None:
    assert ClusterSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "x", "10000", "20000", "1", "-10001", "10001 ", "1000\u0661"])
def test_refuses_what_is_no_cluster(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cluster(text)
    assert caught.value.hint


def test_lists_clusters_and_nothing_else(tmp_path: Path) -> None:
    assert list_running() == []
    run(10003, 10001)
    (tmp_path / "run" / "x").mkdir()
    (tmp_path / "run" / "10002").write_text("a file")
    assert [place.id for place in list_running()] == [10001, 10003]
    assert list_kept() == []


def test_the_only_running_cluster_is_meant() -> None:
    run(10007)
    assert choose_running(None) == ClusterPlace(10007)


def test_no_cluster_is_meant_when_none_runs() -> None:
    with pytest.raises(SsiError, match="no cluster is running"):
        choose_running(None)


def test_one_of_several_must_be_named() -> None:
    run(10001, 10002)
    with pytest.raises(UsageError, match="10001, 10002"):
        choose_running(None)
    assert choose_running(10002) == ClusterPlace(10002)


def test_a_cluster_that_does_not_run_is_refused() -> None:
    run(10001)
    with pytest.raises(SsiError, match="10002 is not running"):
        choose_running(10002)
