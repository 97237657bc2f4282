"""Configuration fragments: merged, and seen to have come true."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import BuildError
from ssi.host.build import kconfig

OPTIONS = st.dictionaries(
    st.from_regex(r"CONFIG_[A-Z0-9_]{1,8}", fullmatch=True),
    st.sampled_from(["y", "n", "100", '"-ssi"']),
)


@given(OPTIONS)
def test_what_is_written_is_read(options: dict[str, str]) -> None:
    assert kconfig.parse_config(kconfig.render_config(options)) == options
    assert kconfig.find_lost(options, options) == []


def test_an_option_that_is_lost_is_named(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=y\n")
    wanted = {"CONFIG_A": "y", "CONFIG_B": "y", "CONFIG_C": "n", "CONFIG_D": "n"}
    with pytest.raises(BuildError, match="CONFIG_B=y, CONFIG_D=n"):
        kconfig.check_survival(wanted, config)


def test_contradicting_fragments(tmp_path: Path) -> None:
    one, two = tmp_path / "1.config", tmp_path / "2.config"
    one.write_text("CONFIG_A=y\n")
    two.write_text("# CONFIG_A is not set\n")
    with pytest.raises(BuildError, match=r"CONFIG_A is y in 1\.config and n in 2\.config"):
        kconfig.merge_fragments([one, two])


def test_every_group_of_ours_has_a_reason() -> None:
    fragments = kconfig.list_fragments()
    assert kconfig.merge_fragments(fragments)
    for path in fragments:
        for group in path.read_text().strip().split("\n\n"):
            assert group.startswith("# "), f"{path.name}: no reason above {group.splitlines()[0]}"


def test_a_node_cannot_read_the_hosts_files() -> None:
    assert kconfig.merge_fragments(kconfig.list_fragments())["CONFIG_HOSTFS"] == "n"
