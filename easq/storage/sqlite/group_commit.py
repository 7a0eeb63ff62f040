"""Group commit: what waits is one transaction, written on the event loop, and one sync in a thread makes it durable.

While a sync is under way the loop goes on, and what comes meanwhile is the next transaction: the sync is the batching
window, there is no timer. Writing is a copy into the system's cache; a thread that shares the interpreter with a busy
loop would wait up to 5 ms after each of SQLite's steps (measured: half of all puts a second). What takes long, batches
with much data and copying the log back, is done in the thread all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from json.encoder import encode_basestring
from math import inf
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from easq.errors import QueueFull, StorageError
from easq.model import Tags
from easq.storage.embedded import Settle
from easq.storage.rules.changes import (
    Change,
    Committed,
    DeliveryRecorded,
    Ended,
    GroupChanged,
    Keyed,
    KeysForgotten,
    Removed,
    Stored,
    Truncated,
)
from easq.storage.rules.entries import INDEX_BITS
from easq.storage.sqlite.data_file import LOG_BYTES, DataFile, is_full, sync

log = logging.getLogger(__name__)

#: one transaction takes at most so many jobs, and stops taking after so many payload bytes
BATCH_JOBS, BATCH_BYTES = 512, 4 * 1024**2
#: the first batch after a pause goes off when it has so many jobs
OPENING_JOBS = 16
#: a batch with more payload is written in the thread
INLINE_BYTES = 128 * 1024
#: writing a removed or changed row takes as long as so many bytes of payload: 10 us, three statements
_ROW_BYTES = 128
#: the write-ahead log is copied back, between batches, after so many written bytes (an estimate)
CHECKPOINT_BYTES = LOG_BYTES
#: on a disk without any room what removes is tried again so often, in seconds
ROOM_S = 0.5
#: the write-ahead log is cut to nothing when there was nothing to write for so long, in seconds
IDLE_S = 2.0
#: a transaction waits so many milliseconds for another program that writes to the file
BUSY_MS = 5000
#: a warning is logged when the write-ahead log stays longer than this; SQLite truncates it to this length, in bytes
LONG_LOG_BYTES = 64 * 1024**2
_SAY_S = 60.0
#: with a log longer than this, in bytes, puts are refused
MOST_LOG_BYTES = 1024**3
#: a file above this size, in bytes, with more free pages than used ones, is vacuumed when there is nothing to write
LARGE_FILE_BYTES = 64 * 1024**2
#: seconds of one slice of the vacuum, and of the idle time before each; a new job waits for one slice at most
SLICE_S, SLICE_AFTER_S = 0.01, 0.02
#: Entries go in many at a time: after each step of a statement the writer waits for the interpreter's lock, 5 ms when
#: the event loop is busy (measured: a third of all puts a second). SQLite takes 32,766 values, before 3.32 999.
_INTO_ITEM = "INSERT INTO item (id, stream, priority, size, request_id, tags, data) VALUES"
_INSERTS = [(many, f"{_INTO_ITEM} {', '.join(['(?, ?, ?, ?, ?, ?, ?)'] * many)}") for many in (128, 32, 8, 1)]
_INSERT_TIMED = (
    "INSERT INTO item (id, stream, priority, size, request_id, tags, data, due_ms, expires_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(slots=True, eq=False)
class CommitJob:
    """Changes that are one atomic step, and who is told. `stream` names a stream to be made."""

    changes: Sequence[Change]
    settle: Settle | None
    future: asyncio.Future[None]
    stream: str = ""
    error: Exception | None = None
    again: bool = False  # there was no room for it: it comes with the next batch
    stored: list[Stored] = field(init=False)  # of the changes
    size: int = field(init=False)  # payload bytes of these, and the `_weight` of the other changes

    def __post_init__(self) -> None:
        self.stored = [change for change in self.changes if isinstance(change, Stored)]
        self.size = 0
        for change in self.stored:
            self.size += len(change.frame.data)
        if len(self.changes) > len(self.stored):
            self.size += sum(map(_weight, self.changes))


def _weight(change: Change) -> int:
    """Return how many bytes of payload take as long to write as the change; 0 for `Stored`, whose payload counts."""
    match change:
        case Truncated():
            return INLINE_BYTES + 1
        case Removed():
            return _ROW_BYTES * len(change.indexes)
        case Stored():
            return 0
    return _ROW_BYTES


class GroupCommit:
    """Owns the one connection that writes. Jobs are durable, and settled, in the order of `submit`.

    `settled` is called on the event loop with each batch that is through: every job is durable or has its error.
    `failed` is called there when the disk failed beside any batch; nothing is written any more.
    """

    def __init__(
        self,
        file: DataFile,
        connection: sqlite3.Connection,
        ids: Mapping[str, int],
        *,
        syncs: bool,
        settled: Callable[[Sequence[CommitJob]], None],
        failed: Callable[[StorageError], None],
    ) -> None:
        self.full = False  # the disk: the last puts found no space
        self.full_at = -inf  # when that was seen last, by the loop's clock
        self.stops = False  # nobody waits for room any more
        self._file = file
        self._connection = connection
        self._ids = ids
        self._syncs = syncs
        self._settled = settled
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="easq-writer", daemon=True)
        self._waiting: deque[CommitJob] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._opening: asyncio.Handle | None = None  # of the first batch, after there was nothing to do
        self._tidying: asyncio.TimerHandle | None = None  # tidies the file, not before `_tidy_at`
        self._tidy_at = inf
        self._log: int | None = None  # the write-ahead log, to be synced
        self._log_was_long = False  # whether the log was too long after the last checkpoint
        self._said_at: dict[str, float] = {}  # warning -> when it was last logged
        self._shrinks = False  # whether the file is being vacuumed
        self._slice_pages = 64  # pages of one slice of the vacuum
        self._broken: BaseException | None = None  # why nothing is written any more
        # SQLite syncs when it copies the log back; what it appends to the log is synced here
        for pragma in (
            "synchronous = NORMAL",
            "wal_autocheckpoint = 0",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "cache_size = -32000",
            f"journal_size_limit = {LONG_LOG_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        self._written = CHECKPOINT_BYTES  # what an earlier run left in the log is copied back soon
        file.make_ballast()
        self._thread.start()

    def submit(self, job: CommitJob) -> None:
        """The job waits for its batch. The first one takes what comes in the same turn of the loop, but does not wait
        for many: clients that were all answered at once would all come again at once, and wait for one sync together.
        """
        self._waiting.append(job)
        if self._idle.is_set():
            self._idle.clear()
            self._opening = self._loop.call_soon(self._next)
        elif self._opening is not None and len(self._waiting) >= OPENING_JOBS:
            self._opening.cancel()
            self._next()

    async def drained(self) -> None:
        """All that was submitted is through."""
        await self._idle.wait()

    async def close(self) -> None:
        """All that was submitted is through, the log is copied back, and the connection is closed.

        As the last one, it takes the log away: others that read the file are closed before it. After a failure of the
        disk, when nothing is to be written any more, they are closed after it.
        """
        await self.drained()
        if self._tidying is not None:
            self._tidying.cancel()
        done: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._in_thread(partial(self._checkpoint, "TRUNCATE"), done.set_result)
        self._break(await done)
        self._tasks.put(None)
        self._thread.join()
        self._connection.close()
        if self._log is not None:
            os.close(self._log)

    # -- batches -------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """The next batch is under way; without one there is nothing to do, and a while later the log is cut."""
        self._opening = None
        batch, size = self._take()
        if not batch:
            self._idle.set()
            self._tidy_later()
        elif self._broken is not None:
            self._loop.call_soon(self._end, batch, self._broken)
        elif size > INLINE_BYTES:
            self._in_thread(partial(self._write_and_sync, batch), partial(self._end, batch))
        else:
            self._write(batch)
            if self._syncs:
                self._in_thread(self._sync, partial(self._end, batch))
            else:
                self._loop.call_soon(self._end, batch, None)

    def _take(self) -> tuple[list[CommitJob], int]:
        """All that waits, up to the limits of a batch, and its payload in bytes."""
        batch: list[CommitJob] = []
        size = 0
        while self._waiting and len(batch) < BATCH_JOBS and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        return batch, size

    def _in_thread(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        """The work is done in the thread, one after the other; `then` is called on the loop with what it raised.

        An executor costs three times as much for each hand-over, and a sync is as short as that.
        """

        def run() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:
                error = raised
            self._loop.call_soon_threadsafe(then, error)

        self._tasks.put(run)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def _end(self, batch: list[CommitJob], error: BaseException | None) -> None:
        """The batch is through: durable, but for jobs with an error; nothing of it is known after `error`."""
        if error is not None:
            self._fail_batch(batch, error)
        again = [job for job in batch if job.again]
        self._settled([job for job in batch if not job.again] if again else batch)
        if again:
            for job in reversed(again):
                job.again = False
                self._waiting.appendleft(job)
            self._loop.call_later(ROOM_S, self._next)
        elif self._written >= CHECKPOINT_BYTES:
            self._in_thread(partial(self._checkpoint, "PASSIVE"), self._go_on)
        else:
            self._next()

    def _go_on(self, error: BaseException | None) -> None:
        """What was done between two batches is done, or has failed."""
        self._break(error)
        self._next()

    def _break(self, error: BaseException | None) -> None:
        """After an `error` nothing is written any more."""
        if error is not None and self._broken is None:
            self._broken = error
            self._failed(self._failure(error))

    @property
    def _is_untidy(self) -> bool:
        """Whether there is something to tidy, on a disk that has not failed."""
        return self._broken is None and (self._shrinks or self._written > 0)

    def _tidy_later(self) -> None:
        """Tidy the file after a pause that begins now. A timer that was started in an earlier pause is used again: one
        for each batch would cost 9 % of a put among the timers of 2,000 long polls.
        """
        if not self._is_untidy:
            return
        self._tidy_at = self._loop.time() + (SLICE_AFTER_S if self._shrinks else IDLE_S)
        if self._tidying is not None and self._tidying.when() > self._tidy_at:
            self._tidying.cancel()
            self._tidying = None
        if self._tidying is None:
            self._tidying = self._loop.call_at(self._tidy_at, self._tidy)

    def _tidy(self) -> None:
        """Cut the log to nothing and put space aside again, if nothing was written for a while."""
        self._tidying = None
        if not (self._is_untidy and self._idle.is_set()):
            return  # the pause after the batch that is under way starts the timer
        if self._loop.time() < self._tidy_at:
            self._tidying = self._loop.call_at(self._tidy_at, self._tidy)
            return
        self._idle.clear()
        self._in_thread(self._cut, self._go_on)

    def _cut(self) -> None:
        """Vacuum one slice of the file; or truncate the log, which also checks whether a vacuum is needed."""
        if self._shrinks and self._written < CHECKPOINT_BYTES:
            self._give_back()
        else:
            self._checkpoint("TRUNCATE")
            self._file.make_ballast()

    def _is_sparse(self) -> bool:
        """Return whether the file is above LARGE_FILE_BYTES, and more than half of its pages are free."""
        execute = self._connection.execute
        (pages,) = execute("PRAGMA page_count").fetchone()
        (size,) = execute("PRAGMA page_size").fetchone()
        (free,) = execute("PRAGMA freelist_count").fetchone()
        return bool(pages * size > LARGE_FILE_BYTES and free * 2 > pages)

    def _give_back(self) -> None:
        """Return free pages of the file to the disk, as many as take about `SLICE_S`."""
        began_at = time.monotonic()
        try:
            # not `execute`: the pragma yields an empty row for each page, and before Python 3.13 it stops at the first
            self._connection.executescript(f"PRAGMA incremental_vacuum({self._slice_pages})")
        except sqlite3.Error as error:
            if not (is_full(error) or _is_busy(error)):
                raise
            self._shrinks = False
            return
        took_s = max(time.monotonic() - began_at, 1e-4)
        self._written += self._slice_pages * 8192
        self._slice_pages = max(8, min(4096, int(self._slice_pages * min(2.0, SLICE_S / took_s))))
        if not self._is_sparse():
            self._shrinks, self._written = False, CHECKPOINT_BYTES

    def _write_and_sync(self, batch: list[CommitJob]) -> None:
        self._write(batch)
        if self._syncs:
            self._sync()

    def _sync(self) -> None:
        """What was written to the log is on the disk. Raises OSError: then nothing is known of it."""
        if self._log is None:
            path = Path(f"{self._file.path}-wal")
            if not path.exists():
                return  # no transaction has changed anything yet
            self._log = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            sync(path.parent)
        getattr(os, "fdatasync", os.fsync)(self._log)

    # -- one transaction -----------------------------------------------------------------------------------------------

    def _write(self, batch: list[CommitJob]) -> None:
        """Each job is durable or has its error. A full disk refuses what stores and goes on with what removes.

        When there is no room at all, that comes again, as long as the service runs.
        """
        try:
            if self._fits(batch) or (self._has_cut() and self._fits(batch)):
                self.full = self.full and not any(job.stored for job in batch)
                return
        except sqlite3.Error as error:
            self._fail_batch(batch, error)
            return
        if not self.full:
            self._warn("full", "the disk is full: puts are refused until there is room")
        self.full, self.full_at = True, self._loop.time()
        for job in batch:
            if job.stored:
                job.error = QueueFull("the disk of the queue service is full")
        if all(job.stored for job in batch):
            return
        try:
            self._file.drop_ballast()
            self._checkpoint("TRUNCATE")
            self._transact(batch, storing=False)
        except sqlite3.Error as error:
            if not is_full(error) or any(job.stream for job in batch):
                self._fail_batch(batch, error)
                return
            for job in batch:
                if self.stops:
                    job.error = QueueFull("the disk of the queue service is full")
                job.again = job.error is None

    def _fits(self, batch: list[CommitJob]) -> bool:
        """Write the batch, and return whether there was room for it. Raises sqlite3.Error for a failed disk."""
        try:
            self._transact(batch, storing=True)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            return False
        return True

    def _has_cut(self) -> bool:
        """Truncate the log, and return whether that freed space on the disk."""
        before = self._file.log_bytes()
        self._checkpoint("TRUNCATE")
        return self._file.log_bytes() < before

    def _fail_batch(self, batch: list[CommitJob], error: BaseException) -> None:
        """Whatever became of the batch, it is not acknowledged, and nothing is written after it."""
        self._broken = error
        for job in batch:
            job.again = False
            job.error = self._failure(error)

    def _failure(self, error: BaseException) -> StorageError:
        """Return the error for callers; its `__cause__` is `error`."""
        failure = StorageError(f"{self._file.path}: {error}")
        failure.__cause__ = error
        return failure

    def _transact(self, batch: list[CommitJob], *, storing: bool) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for job in batch:
                if job.stream:
                    execute("INSERT OR IGNORE INTO stream (name) VALUES (?)", (job.stream,))
            taken = batch if storing else [job for job in batch if not job.stored]
            self._store([change for job in taken for change in job.stored])
            for job in taken:
                if len(job.changes) > len(job.stored):
                    for change in job.changes:
                        if not isinstance(change, Stored):
                            self._record(change)
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._written += sum(job.size for job in batch) * 2 + 8192 * len(batch)

    def _store(self, stored: list[Stored]) -> None:
        last: dict[int, int] = {}
        rows = []
        timed = []
        for change in stored:
            number, frame = self._ids[change.stream], change.frame
            last[number] = frame.index
            row = (
                number << INDEX_BITS | frame.index,
                number,
                change.priority,
                len(frame.data),
                frame.request_id,
                _as_json(frame.tags),
                frame.data,
            )
            if change.due_ms is None and change.expires_ms is None:
                rows.append(row)
            else:
                timed.append((*row, change.due_ms, change.expires_ms))
        for many, statement in _INSERTS:
            while len(rows) >= many:
                self._connection.execute(statement, [value for row in rows[:many] for value in row])
                del rows[:many]
        if timed:
            self._connection.executemany(_INSERT_TIMED, timed)
        self._connection.executemany(
            "UPDATE stream SET last = max(last, ?) WHERE id = ?",
            [(index, number) for number, index in last.items()],
        )

    def _record(self, change: Change) -> None:
        execute, number = self._connection.execute, self._ids[change.stream]
        base = number << INDEX_BITS
        match change:
            case Removed():
                entries = [(base | index,) for index in change.indexes]
                for statement in _FORGET_ONE:
                    self._connection.executemany(statement, entries)
            case Truncated():
                for statement in _FORGET_RANGE:
                    execute(statement, (base, base + change.below))
            case Committed():
                row = (base | change.index, change.group, change.given_up)
                execute("INSERT OR REPLACE INTO committed VALUES (?, ?, ?)", row)
            case DeliveryRecorded():
                execute(
                    "INSERT OR REPLACE INTO touched SELECT ?, ?, ?, ?, ?, ?, ?, ?"
                    " WHERE EXISTS (SELECT 1 FROM item WHERE id = ?)",
                    (
                        base | change.index,
                        change.group,
                        change.record.deliveries,
                        change.record.failures,
                        change.record.code,
                        change.record.reason,
                        change.record.losses,
                        change.record.busy_ms,
                        base | change.index,
                    ),
                )
            case Keyed():
                kept = (number, change.key, change.number, change.index, change.request_id, change.digest)
                execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)", kept)
            case KeysForgotten():
                execute("DELETE FROM idempotency WHERE stream = ? AND number < ?", (number, change.below))
            case GroupChanged(is_stored=True):
                known = (number, change.group, change.filter, change.left_ms)
                execute("INSERT OR REPLACE INTO consumer_group VALUES (?, ?, ?, ?)", known)
            case GroupChanged():
                execute("DELETE FROM consumer_group WHERE stream = ? AND name = ?", (number, change.group))
            case Ended():
                execute("UPDATE stream SET ended = ? WHERE id = ?", (change.ended, number))
            case _:
                raise AssertionError(change)

    def _checkpoint(self, mode: str) -> None:
        """The log is copied back, as far as there is room and nobody reads. Raises sqlite3.Error for a failed disk."""
        if self._broken is not None:
            return
        execute = self._connection.execute
        execute("PRAGMA busy_timeout = 0")  # do not wait for other programs that read the file
        try:
            is_done = self._copy_log(mode)
            if not is_done and self._file.can_grow_by_ballast(self._connection):
                self._file.drop_ballast()
                is_done = self._copy_log(mode)
        finally:
            execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        # 1: so that the log is truncated when there is nothing to write
        self._written = 0 if is_done and mode == "TRUNCATE" else 1
        self._shrinks = self._is_sparse()
        self._watch_log()

    def _copy_log(self, mode: str) -> bool:
        """Copy the log back; return whether all of it was copied. A full or busy disk is no error: the log stays."""
        try:
            (is_read, *_) = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            if not (is_full(error) or _is_busy(error)):
                raise
            self._warn("checkpoint", f"checkpoint: {error}")
            return False
        return not is_read

    def _watch_log(self) -> None:
        """Log a warning when another program that reads the file prevents the log from being truncated."""
        size = self._file.log_bytes()
        if size <= LONG_LOG_BYTES:
            self._log_was_long = False
            return
        if self._log_was_long:  # after one checkpoint only, the reason may be a single large transaction
            self._warn(
                "log",
                f"{self._file.path}-wal has {size >> 20} MiB and cannot be truncated while another program reads the"
                f" data file: end that program; above {MOST_LOG_BYTES >> 20} MiB puts are refused",
            )
        self._log_was_long = True

    def _warn(self, about: str, text: str) -> None:
        """Log the warning, once a minute at most."""
        now = time.monotonic()
        if now - self._said_at.get(about, -inf) >= _SAY_S:
            self._said_at[about] = now
            log.warning("%s", text)


_FORGET_ONE = (
    "DELETE FROM item WHERE id = ?",
    "DELETE FROM committed WHERE item = ?",
    "DELETE FROM touched WHERE item = ?",
)
_FORGET_RANGE = (
    "DELETE FROM item WHERE id >= ? AND id < ?",
    "DELETE FROM committed WHERE item >= ? AND item < ?",
    "DELETE FROM touched WHERE item >= ? AND item < ?",
)


def _as_json(tags: Tags) -> str:
    """The tags as a JSON object, in half the time of an encoder that takes any object."""
    pairs = [f"{encode_basestring(key)}:{encode_basestring(value)}" for key, value in tags.items()]
    return f"{{{','.join(pairs)}}}"


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
