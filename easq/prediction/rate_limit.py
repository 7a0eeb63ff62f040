"""A limit on the rate of look-ups, shared by all processes of a user.

The time of the last look-up is stored in a file, whether or not it was answered. If the file cannot be used, the time
is held in memory, and each process has a limit of its own.
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
        """Prepare a limiter that all processes with the same `file` share; None: for this process alone."""
        self._file = file
        self.spacing_s = spacing_s
        self._lock = threading.Lock()
        self._last = float("-inf")  # Unix seconds

    def take(self) -> float:
        """Return 0.0 if the caller may look up now, and nobody else for a spacing; else the seconds to wait."""
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
            now = (
                time.time()
            )  # after the lock is held: else a process that waited for it would see a time in the future
            left_s = self._left(last, now)
            if not left_s:
                os.ftruncate(fd, 0)
                os.pwrite(fd, repr(now).encode(), 0)
            return left_s

    def _left(self, last: float, now: float) -> float:
        """Return the rest of the spacing, in seconds; 0.0 for a time in the future: the clock was set back."""
        return self.spacing_s - (now - last) if 0 <= now - last < self.spacing_s else 0.0
