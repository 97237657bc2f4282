"""What the command line loads: a script with many commands waits for each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ssi.cli.main import VERBS
from ssi.host.paths import TOP

SHOW = """\
import sys
from ssi.cli.main import make_parser
make_parser(sys.argv[1])
print(*(name for name in ("rich", "shtab", "elftools", "ssi.host.build") if name in sys.modules))
"""

QUICK = ("exec", "ls", "console", "kill", "migrate", "net", "rm", "stop", "logs")


@pytest.mark.parametrize("verb", QUICK)
def test_what_is_asked_often_loads_no_more_than_it_needs(verb: str) -> None:
    assert verb in VERBS
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHOW, verb], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(TOP / "src")},
    )  # fmt: skip
    assert done.stdout.split() == []
