"""What a build shows of its progress: a bar on a terminal, timed lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ssi.host.build.options import Report

talk = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where it is shown."""

EVERY_S = 20.0
"""Between two lines of a step that takes long."""


def render_time(seconds: float) -> str:
    """Return `seconds` as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Lines:
    """Progress as lines, each with the time since the start: for logs and CI."""

    def __init__(self) -> None:
        self._start = self._step_start = self._last = time.monotonic()

    def _say(self, text: str) -> None:
        talk.print(f"[{time.monotonic() - self._start:6.1f} s] {text}", markup=False)

    def step(self, name: str) -> None:
        """Say that a step begins."""
        self._step_start = self._last = time.monotonic()
        self._say(name)

    def progress(self, done: int, total: int) -> None:
        """Say now and then how far it is, and what is left at this pace."""
        now = time.monotonic()
        if now - self._last < EVERY_S or not done:
            return
        self._last = now
        left = (now - self._step_start) / done * max(0, total - done)
        self._say(f"  {done} of {total}, {render_time(left)} left")

    def note(self, text: str) -> None:
        """Say it."""
        self._say(text)


class Bars:
    """Progress as a bar for each step."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def _finish(self) -> None:
        if self._task is not None:
            done = max(1.0, self._bars.tasks[-1].completed)
            self._bars.update(self._task, total=done, completed=done)
            self._bars.stop_task(self._task)

    def step(self, name: str) -> None:
        """Begin a bar."""
        self._finish()
        self._task = self._bars.add_task(name, total=None)

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print it above the bars."""
        self._bars.console.print(text, markup=False)

    def close(self) -> None:
        """Fill the last bar."""
        self._finish()


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """Yield a report that shows progress on standard error."""
    if not talk.is_terminal:
        yield Lines()
        return
    columns = (
        SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=talk) as bars:
        report = Bars(bars)
        yield report
        report.close()
