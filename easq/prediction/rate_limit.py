"""A rate limiter for look-ups, shared by all processes of a user.

The time of the last look-up, answered or not, is stored in a file. If the file cannot be used, the time is stored in
memory, and each process has its own limit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from easq.net import files


class LookupLimiter:
    """Allows one look-up in `spacing_s` seconds. Thread-safe."""

    def __init__(self, file: Path | None, spacing_s: float) -> None:
        """Prepare a limiter. All processes with the same `file` share it; with None, it is for this process only."""
        self._file = file
        self.spacing_s = spacing_s
        self._lock = threading.Lock()
        self._last = float("-inf")  # Unix seconds

    def take(self) -> float:
        """Return 0.0 if the caller may look up now, otherwise the seconds to wait.

        After 0.0, no other caller may look up for `spacing_s` seconds.
        """
        with self._lock:
            left_s = self._left(self._last, time.time())
            if not left_s and self._file is not None and self.spacing_s:
                with contextlib.suppress(OSError):
                    left_s = self._take_for_all(self._file)
            if not left_s:
                self._last = time.time()
            return left_s

    def _take_for_all(self, file: Path) -> float:
        files.make_private_folder(file.parent)
        fd = files.open_regular(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        with open(fd, "r+b", buffering=0) as opened:
            files.lock(fd, wait=True)
            try:
                last = float(opened.read(64))
            except ValueError:
                last = float("-inf")
            # read the clock after the lock is taken: otherwise the stored time may be in the future of this process
            now = time.time()
            left_s = self._left(last, now)
            if not left_s:
                os.ftruncate(fd, 0)
                os.pwrite(fd, repr(now).encode(), 0)
            return left_s

    def _left(self, last: float, now: float) -> float:
        """Return the seconds until the next look-up. If `last` is in the future, the clock was set back: return 0.0."""
        return self.spacing_s - (now - last) if 0 <= now - last < self.spacing_s else 0.0
