"""What the kernel command line tells a node."""

from __future__ import annotations

import pytest

from ssi.common.errors import UsageError
from ssi.node.settings import Settings, parse_settings


def test_reads_its_own_words_and_no_others() -> None:
    settings = parse_settings(
        "mem=160M quiet ssi.node=5 ssi.token_ms=300 ssi.cluster=x root=/dev/y"
    )
    assert settings == Settings(node=5, token_ms=300, cluster="x")


def test_has_defaults() -> None:
    assert parse_settings("ssi.node=127\n") == Settings(node=127)


@pytest.mark.parametrize(
    "cmdline", ["", "quiet", "node=5", "ssi.node=0", "ssi.node=128", "ssi.node=", "ssi.node=x",
                "ssi.node=1 ssi.colour=red"],
)  # fmt: skip
def test_refuses(cmdline: str) -> None:
    with pytest.raises(UsageError):
        parse_settings(cmdline)


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5"])
def test_refuses_a_token_time_that_is_none(value: str) -> None:
    with pytest.raises(UsageError, match="token_ms"):
        parse_settings(f"ssi.node=1 ssi.token_ms={value}")
