"""When a model that is busy, or fails again and again, is called next: a circuit breaker without I/O or clock."""

from __future__ import annotations

from math import inf

#: so many failures in a row open it
MOST_FAILURES = 3
#: the pause before a call while it is open, in seconds: doubled after each that did not succeed, between these
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Breaker:
    """Closed, calls go out as they come. Open, one goes out at a time, each after a pause, until one succeeds.

    `now` is in seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = 0.0
        self._next_at = -inf

    @property
    def is_open(self) -> bool:
        """Whether calls go out one at a time."""
        return self._pause_s > 0

    def wait_s(self, now: float, *, running: int) -> float:
        """Return in how many seconds a call may begin beside `running` others; inf while one of these has to end."""
        if not self.is_open:
            return 0.0
        return inf if running else max(0.0, self._next_at - now)

    def succeeded(self) -> None:
        """Close it."""
        self._failures, self._pause_s, self._next_at = 0, 0.0, -inf

    def failed(self, now: float) -> None:
        """Count a failure; the third in a row opens it."""
        self._failures += 1
        if self.is_open or self._failures >= MOST_FAILURES:
            self._open(now, 0.0)

    def busy(self, now: float, asked_s: float | None) -> None:
        """Open it: the model takes nothing now, and may have said for how long."""
        self._open(now, asked_s or 0.0)

    def _open(self, now: float, asked_s: float) -> None:
        if now < self._next_at:
            return  # a call that began before it was opened
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._next_at = now + min(max(self._pause_s, asked_s), LONGEST_PAUSE_S)
