"""Log lines about those who send nonsense: one in a while, so that nobody can fill the log."""

from __future__ import annotations

import logging
import time


class Complaints:
    """What is logged about one peer, or about all who are to share a line."""

    EVERY_S = 10.0

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = 0.0
        self._kept_back = 0

    def add(self, who: object, text: object) -> None:
        """Log that `who` did what `text` says, or count it if there was a line just now."""
        now = time.monotonic()
        if now < self._next:
            self._kept_back += 1
            return
        more = f" (and {self._kept_back} more)" if self._kept_back else ""
        self._logger.warning("%s: %s%s", who, text, more)
        self._next, self._kept_back = now + self.EVERY_S, 0
