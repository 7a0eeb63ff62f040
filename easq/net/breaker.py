"""A circuit breaker without I/O or clock, for a model that is busy or keeps failing."""

from __future__ import annotations

from math import inf

#: failures in a row that open the breaker
MOST_FAILURES = 3
#: shortest and longest pause before a call while the breaker is open, in seconds; doubled after each failed call
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Breaker:
    """A circuit breaker. While it is closed, calls are not delayed.

    While it is open, one call runs at a time, each after a pause; the first that succeeds closes it. `now` is the
    time in seconds on any monotonic clock.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = 0.0
        self._next_at = -inf

    @property
    def is_open(self) -> bool:
        """Whether calls run one at a time."""
        return self._pause_s > 0

    def wait_s(self, now: float, *, running: int) -> float:
        """Return the seconds until another call may begin while `running` calls are in flight.

        Returns inf if a running call has to end first.
        """
        if not self.is_open:
            return 0.0
        return inf if running else max(0.0, self._next_at - now)

    def succeeded(self) -> None:
        """Close the breaker."""
        self._failures, self._pause_s, self._next_at = 0, 0.0, -inf

    def failed(self, now: float) -> None:
        """Count a failure; the third in a row opens the breaker."""
        self._failures += 1
        if self.is_open or self._failures >= MOST_FAILURES:
            self._open(now, 0.0)

    def busy(self, now: float, asked_s: float | None) -> None:
        """Open the breaker: the model is busy, and may have asked for a pause of `asked_s`."""
        self._open(now, asked_s or 0.0)

    def _open(self, now: float, asked_s: float) -> None:
        if now < self._next_at:
            return  # a call that began before the breaker was opened
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._next_at = now + min(max(self._pause_s, asked_s), LONGEST_PAUSE_S)
