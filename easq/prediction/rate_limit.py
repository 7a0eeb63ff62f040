"""Whose turn it is to ask where asking is rationed: once in so many seconds, over all processes of a user.

The time of the last question stands in a file, whether or not it was answered. Where the file cannot be used, it
is kept in memory: then each process has turns of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from easq.net import files


class Turn:
    """Usable from several threads at once."""

    def __init__(self, file: Path | None, spacing_s: float) -> None:
        """Questions are at least `spacing_s` apart among all that name the same `file`."""
        self._file = file
        self.spacing_s = spacing_s
        self._lock = threading.Lock()
        self._last = float("-inf")  # Unix seconds

    def take(self) -> float:
        """0.0: it is the caller's turn, and nobody else's for a spacing. Else the seconds until there is one."""
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
            )  # not before the lock: else one who waited for it would see a time of the future
            left_s = self._left(last, now)
            if not left_s:
                os.ftruncate(fd, 0)
                os.pwrite(fd, repr(now).encode(), 0)
            return left_s

    def _left(self, last: float, now: float) -> float:
        """Seconds that are left of the spacing; a time of the future says nothing, the clock was set back."""
        return self.spacing_s - (now - last) if 0 <= now - last < self.spacing_s else 0.0
