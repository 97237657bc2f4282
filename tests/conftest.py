"""What the summary of a run says of the machine it ran on."""

from __future__ import annotations

import threading
import time

import pytest

LOOK_S = 0.05
PAUSE_S = 0.5


class Pauses:
    """Times in which the machine did not run this process, though it wanted to; seconds."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(LOOK_S):
            now = time.monotonic()
            if now - began > PAUSE_S:
                self.seen.append(now - began)
            began = now

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()
        self._thread.join()


PAUSES = pytest.StashKey[Pauses]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[PAUSES] = Pauses()


def pytest_unconfigure(config: pytest.Config) -> None:
    if pauses := config.stash.get(PAUSES, None):
        pauses.end()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how often the machine stood still: nodes are fenced by that, rightly."""
    if seen := config.stash[PAUSES].seen:
        terminalreporter.write_line(
            f"The machine stood still {len(seen)} times, for {max(seen):.1f} s at most: "
            "a node that is not run for its token time is fenced."
        )
