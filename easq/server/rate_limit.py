"""How fast one consumer may connect again: a client that reconnects without a pause must not keep the service busy.

The Python SDK connects hundreds of times a second to a service that closes in good order; an answer that comes later is
what slows it down, a refusal is not.
"""

from __future__ import annotations

from easq.model import Consumer

#: connections that are answered at once, and how many more there are a second
BURST, PER_SECOND = 5.0, 5.0
#: consumers that are remembered
_MAX_KNOWN = 1000


class RateLimiter:
    """A bucket of connections for each consumer."""

    def __init__(self) -> None:
        self._left: dict[Consumer, tuple[float, float]] = {}  # consumer -> (connections left, when)

    def delay(self, consumer: Consumer, now: float) -> float:
        """How many seconds the answer to a connection that comes `now` has to wait."""
        left, since = self._left.pop(consumer, (BURST, now))
        left = min(BURST, left + (now - since) * PER_SECOND) - 1.0
        self._left[consumer] = (left, now)
        if len(self._left) > _MAX_KNOWN:
            del self._left[next(iter(self._left))]
        return max(0.0, -left / PER_SECOND)
