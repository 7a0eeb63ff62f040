"""A rate limiter for connections: a client that reconnects without a pause must not keep the service busy.

The Python SDK connects hundreds of times a second to a service that closes its connections with a close frame. A
delayed answer slows the SDK down; a refusal does not.
"""

from __future__ import annotations

from easq.model import Consumer

#: size of a bucket in connections, and connections that are added to it each second
BURST, PER_SECOND = 5.0, 5.0
#: most consumers that are remembered
_MAX_KNOWN = 1000


class RateLimiter:
    """A token bucket for each consumer."""

    def __init__(self) -> None:
        self._left: dict[Consumer, tuple[float, float]] = {}  # consumer -> (tokens left, when)

    def delay(self, consumer: Consumer, now: float) -> float:
        """Count a connection at time `now`, and return the seconds by which its answer is delayed."""
        left, since = self._left.pop(consumer, (BURST, now))
        left = min(BURST, left + (now - since) * PER_SECOND) - 1.0
        self._left[consumer] = (left, now)
        if len(self._left) > _MAX_KNOWN:
            del self._left[next(iter(self._left))]
        return max(0.0, -left / PER_SECOND)
