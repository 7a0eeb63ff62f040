"""Which idempotency keys may be deleted: old ones, once there are enough newer ones."""

from __future__ import annotations

from collections import deque

#: a key is stored for so many seconds, and as long as it is among so many last ones of its stream
REMEMBER_S, REMEMBER_KEYS = 600.0, 100_000
#: so many keys are deleted at a time
_STEP = 1000


class KeyWindow:
    """Numbers the keys of one stream in the order of arrival, and tells below which number they may be deleted."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self._forgotten = 0
        self._marks: deque[tuple[float, int]] = deque()  # (when, last number then)

    def next(self, now: float) -> int:
        """Return the number of a key that arrives at `now`."""
        self.last += 1
        if not self._marks or self.last - self._marks[-1][1] >= _STEP:
            self._marks.append((now, self.last))
        return self.last

    def forget(self, now: float) -> int:
        """Return the number below which keys may be deleted; 0 when there are too few such keys to be worth it."""
        old = 0
        while self._marks and now - self._marks[0][0] >= REMEMBER_S:
            old = self._marks.popleft()[1]
        if old:
            self._marks.appendleft((now - REMEMBER_S, old))
        below = min(old, self.last - REMEMBER_KEYS + 1)
        if below - self._forgotten < _STEP:
            return 0
        self._forgotten = below
        return below
