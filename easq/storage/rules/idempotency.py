"""The numbering of idempotency keys, and the choice of keys to delete: old ones, once there are enough newer ones."""

from __future__ import annotations

from collections import deque

#: a key is stored for at least this number of seconds, and while it is among this number of newest keys of its stream
REMEMBER_S, REMEMBER_KEYS = 600.0, 100_000
#: number of keys that are deleted at a time
_STEP = 1000


class KeyWindow:
    """Numbers the keys of one stream in the order of arrival, and finds the number below which keys may be deleted."""

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
        """Return the number below which keys may be deleted; 0 while fewer than one batch of keys may be."""
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
