"""Copies the write-ahead log back into the data file, and returns free pages of the file to the disk."""

from __future__ import annotations

import logging
import sqlite3
import time
from math import inf

from easq.storage.sqlite.data_file import LOG_BYTES, DataFile, is_full

log = logging.getLogger(__name__)

#: written bytes (an estimate) after which the write-ahead log is copied back, between batches
CHECKPOINT_BYTES = LOG_BYTES
#: milliseconds that a transaction waits for another program that writes to the file
BUSY_MS = 5000
#: a warning is logged when the write-ahead log stays longer than this; SQLite truncates it to this length, in bytes
LONG_LOG_BYTES = 64 * 1024**2
#: seconds before the same warning is logged again
_SAY_S = 60.0
#: with a log longer than this, in bytes, puts are refused
MOST_LOG_BYTES = 1024**3
#: a file above this size, in bytes, with more free pages than used ones, is vacuumed when there is nothing to write
LARGE_FILE_BYTES = 64 * 1024**2
#: seconds of one slice of the vacuum; a new job waits for one slice at most
SLICE_S = 0.01


class Checkpoints:
    """Checkpoints and vacuum of the data file over the one connection that writes, between its transactions."""

    def __init__(self, file: DataFile, connection: sqlite3.Connection) -> None:
        #: bytes written to the log since it was copied back (an estimate); at first an earlier run may have left some
        self.written = CHECKPOINT_BYTES
        #: whether the file is being vacuumed
        self.shrinks = False
        self._file = file
        self._connection = connection
        self._log_was_long = False  # after the last checkpoint
        self._said_at: dict[str, float] = {}  # warning -> when it was last logged
        self._slice_pages = 64  # pages of one slice of the vacuum
        connection.execute(f"PRAGMA journal_size_limit = {LONG_LOG_BYTES}")

    @property
    def is_due(self) -> bool:
        """Whether the log is long enough to be copied back before the next batch."""
        return self.written >= CHECKPOINT_BYTES

    def frees_space(self) -> bool:
        """Truncate the log, and return whether that freed space on the disk."""
        before = self._file.log_bytes()
        self.run("TRUNCATE")
        return self._file.log_bytes() < before

    @property
    def has_work(self) -> bool:
        """Whether there is something to copy back or to vacuum."""
        return self.shrinks or self.written > 0

    def tidy(self) -> None:
        """Vacuum one slice of the file; or truncate the log, which also checks whether a vacuum is needed."""
        if self.shrinks and not self.is_due:
            self._give_back()
        else:
            self.run("TRUNCATE")
            self._file.make_ballast()

    def run(self, mode: str) -> None:
        """Copy the log back, as far as there is room and no other program reads. Raises sqlite3.Error for a failed
        disk.
        """
        execute = self._connection.execute
        execute("PRAGMA busy_timeout = 0")  # do not wait for other programs that read the file
        try:
            is_done = self._copy_log(mode)
            if not is_done and self._file.can_grow_by_ballast(self._connection):
                self._file.drop_ballast()
                is_done = self._copy_log(mode)
        finally:
            execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        # 1: the log will be truncated when there is nothing to write
        self.written = 0 if is_done and mode == "TRUNCATE" else 1
        self.shrinks = self._is_sparse()
        self._watch_log()

    def _copy_log(self, mode: str) -> bool:
        """Copy the log back; return whether all of it was copied. A full or busy disk is no error: the log stays."""
        try:
            (is_read, *_) = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            if not (is_full(error) or _is_busy(error)):
                raise
            self.warn("checkpoint", f"checkpoint: {error}")
            return False
        return not is_read

    def _watch_log(self) -> None:
        """Log a warning when another program that reads the file prevents the log from being truncated."""
        size = self._file.log_bytes()
        if size <= LONG_LOG_BYTES:
            self._log_was_long = False
            return
        if self._log_was_long:  # after one checkpoint only, the reason may be a single large transaction
            self.warn(
                "log",
                f"{self._file.path}-wal has {size >> 20} MiB and cannot be truncated while another program reads the"
                f" data file: end that program; above {MOST_LOG_BYTES >> 20} MiB puts are refused",
            )
        self._log_was_long = True

    def _is_sparse(self) -> bool:
        """Return whether the file is above LARGE_FILE_BYTES, and more than half of its pages are free."""
        execute = self._connection.execute
        (pages,) = execute("PRAGMA page_count").fetchone()
        (size,) = execute("PRAGMA page_size").fetchone()
        (free,) = execute("PRAGMA freelist_count").fetchone()
        return bool(pages * size > LARGE_FILE_BYTES and free * 2 > pages)

    def _give_back(self) -> None:
        """Return free pages of the file to the disk for about `SLICE_S`."""
        began_at = time.monotonic()
        try:
            # not `execute`: the pragma yields an empty row for each page, and before Python 3.13 it stops at the first
            self._connection.executescript(f"PRAGMA incremental_vacuum({self._slice_pages})")
        except sqlite3.Error as error:
            if not (is_full(error) or _is_busy(error)):
                raise
            self.shrinks = False
            return
        took_s = max(time.monotonic() - began_at, 1e-4)
        self.written += self._slice_pages * 8192
        self._slice_pages = max(8, min(4096, int(self._slice_pages * min(2.0, SLICE_S / took_s))))
        if not self._is_sparse():
            self.shrinks, self.written = False, CHECKPOINT_BYTES

    def warn(self, about: str, text: str) -> None:
        """Log the warning, at most once a minute."""
        now = time.monotonic()
        if now - self._said_at.get(about, -inf) >= _SAY_S:
            self._said_at[about] = now
            log.warning("%s", text)


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
