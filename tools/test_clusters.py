"""Run the tests that boot clusters, and those that fail a second time: `test_clusters.py WORKERS`.

A machine that others use takes its processors away for seconds, and a node that is not run for its
token time is fenced, rightly. So what fails is run once more, with nothing beside it and on new
clusters. What passes only then is named at the end, and its logs are kept: somebody should look.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-P", "-m", "pytest", "-m", "(node or cluster) and not slow", "tests"]
FAILED = TOP / ".pytest_cache/v/cache/lastfailed"
TESTS_FAILED = 1
MOST = 60
"""More that fail are no accident."""


def run(*options: str) -> int:
    """Run pytest with `options`; return its exit status."""
    return subprocess.run([*PYTEST, *options], cwd=TOP, check=False).returncode


def failed() -> list[str]:
    """Return the tests that failed in the last run."""
    return sorted(json.loads(FAILED.read_text()))


def main(workers: str) -> int:
    """Run them; return the exit status for all."""
    FAILED.unlink(missing_ok=True)
    status = run("-n", workers, "--dist", "loadfile")
    if status != TESTS_FAILED or len(first := failed()) > MOST:
        return status
    print(f"\n{len(first)} failed; once more, one after the other:", flush=True)
    status = run("--last-failed", "--last-failed-no-failures", "none")
    if status == 0:
        print("Failed at first, and passed when run again; the logs are in build/test-logs:")
        print(*first, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
