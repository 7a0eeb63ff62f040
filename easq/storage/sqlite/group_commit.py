"""Group commit: jobs that wait become one transaction, written on the event loop; one sync in a thread makes it
durable.

While a sync is under way the event loop goes on, and the jobs that arrive meanwhile become the next transaction: the
sync is the batching window, there is no timer. Writing is a copy into the system's cache. A thread that shares the
interpreter with a busy event loop would wait up to 5 ms after each step of SQLite (measured: half of all puts a
second). Large batches, and copying the log back, are done in the thread all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from easq.errors import QueueFull, StorageError
from easq.storage.engine import Settle
from easq.storage.rules.changes import Change, Stored
from easq.storage.sqlite.checkpoints import Checkpoints
from easq.storage.sqlite.data_file import DataFile, is_full, sync
from easq.storage.sqlite.rows import INLINE_BYTES, RowWriter, weight

log = logging.getLogger(__name__)

#: most jobs in one transaction, and the payload bytes after which it takes no further job
BATCH_JOBS, BATCH_BYTES = 512, 4 * 1024**2
#: number of jobs with which the first batch after a pause begins
OPENING_JOBS = 16
#: seconds after which, on a full disk, jobs that only remove are tried again
ROOM_S = 0.5
#: seconds without anything to write after which the write-ahead log is truncated
IDLE_S = 2.0
#: seconds without anything to write after which the next slice of a vacuum begins
SLICE_AFTER_S = 0.02


@dataclass(slots=True, eq=False)
class CommitJob:
    """Changes that are one atomic step, and the functions to call. `stream` names a stream to be created."""

    changes: Sequence[Change]
    settle: Settle | None
    future: asyncio.Future[None]
    stream: str = ""
    error: Exception | None = None
    again: bool = False  # there was no room for it: it is tried again with the next batch
    stored: list[Stored] = field(init=False)  # of the changes
    size: int = field(init=False)  # payload bytes of these, and the `weight` of the other changes

    def __post_init__(self) -> None:
        self.stored = [change for change in self.changes if isinstance(change, Stored)]
        self.size = 0
        for change in self.stored:
            self.size += len(change.frame.data)
        if len(self.changes) > len(self.stored):
            self.size += sum(map(weight, self.changes))


class GroupCommit:
    """Owns the one connection that writes. Jobs become durable, and are settled, in the order of `submit`.

    `settled` is called on the event loop with each finished batch: every job is durable or has its error. `failed` is
    called there when the disk failed outside a batch; nothing is written any more.
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
        self.full = False  # the last puts found no space on the disk
        self.full_at = -inf  # when that was noticed last, by the clock of the loop
        self.stops = False  # jobs that find no room are refused, not tried again
        self._file = file
        self._connection = connection
        self._syncs = syncs
        self._settled = settled
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="easq-writer", daemon=True)
        self._waiting: deque[CommitJob] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._opening: asyncio.Handle | None = None  # begins the first batch after a pause
        self._tidying: asyncio.TimerHandle | None = None  # tidies the file, not before `_tidy_at`
        self._tidy_at = inf
        self._log: int | None = None  # the write-ahead log, to be synced
        self._broken: BaseException | None = None  # why writing has stopped for good
        # SQLite syncs when it copies the log back; what it appends to the log is synced by `_sync`
        for pragma in (
            "synchronous = NORMAL",
            "wal_autocheckpoint = 0",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "cache_size = -32000",
        ):
            connection.execute(f"PRAGMA {pragma}")
        self._checkpoints = Checkpoints(file, connection)
        self._rows = RowWriter(connection, ids)
        file.make_ballast()
        self._thread.start()

    def submit(self, job: CommitJob) -> None:
        """Add the job to the next batch.

        The first batch after a pause takes all jobs of the same turn of the event loop, but does not wait for many:
        clients that were all answered at once would all return at once, and wait for one sync together.
        """
        self._waiting.append(job)
        if self._idle.is_set():
            self._idle.clear()
            self._opening = self._loop.call_soon(self._next)
        elif self._opening is not None and len(self._waiting) >= OPENING_JOBS:
            self._opening.cancel()
            self._next()

    async def drained(self) -> None:
        """Wait until all submitted jobs are settled."""
        await self._idle.wait()

    async def close(self) -> None:
        """Settle all submitted jobs, copy the log back, and close the connection.

        As the last connection, it removes the log: other connections to the file are closed before. After a failure of
        the disk, when nothing may be written any more, they are closed after it.
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
        """Begin the next batch; without jobs, start the timer that tidies the file."""
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
        """Return the waiting jobs, up to the limits of a batch, and their size in bytes."""
        batch: list[CommitJob] = []
        size = 0
        while self._waiting and len(batch) < BATCH_JOBS and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        return batch, size

    def _in_thread(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        """Do the work in the thread; call `then` on the event loop with the exception that it raised, or None.

        An executor takes three times as long to start the work, and that is as long as a sync takes.
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
        """Settle the batch. After `error` none of its jobs is acknowledged."""
        if error is not None:
            self._fail_batch(batch, error)
        again = [job for job in batch if job.again]
        self._settled([job for job in batch if not job.again] if again else batch)
        if again:
            for job in reversed(again):
                job.again = False
                self._waiting.appendleft(job)
            self._loop.call_later(ROOM_S, self._next)
        elif self._checkpoints.is_due:
            self._in_thread(partial(self._checkpoint, "PASSIVE"), self._go_on)
        else:
            self._next()

    def _go_on(self, error: BaseException | None) -> None:
        """Go on after the work between two batches, which failed with `error` unless that is None."""
        self._break(error)
        self._next()

    def _break(self, error: BaseException | None) -> None:
        """Stop writing for good after an `error`."""
        if error is not None and self._broken is None:
            self._broken = error
            self._failed(self._failure(error))

    def _tidy_later(self) -> None:
        """Tidy the file after a pause that begins now.

        A timer that was started in an earlier pause is used again: one for each batch would cost 9 % of a put among the
        timers of 2,000 long polls.
        """
        if self._broken is not None or not self._checkpoints.has_work:
            return
        self._tidy_at = self._loop.time() + (SLICE_AFTER_S if self._checkpoints.shrinks else IDLE_S)
        if self._tidying is not None and self._tidying.when() > self._tidy_at:
            self._tidying.cancel()
            self._tidying = None
        if self._tidying is None:
            self._tidying = self._loop.call_at(self._tidy_at, self._tidy)

    def _tidy(self) -> None:
        """Truncate the log, make the ballast again, or vacuum a slice, if nothing was written for a while."""
        self._tidying = None
        if self._broken is not None or not (self._checkpoints.has_work and self._idle.is_set()):
            return  # the pause after the batch that is under way starts the timer
        if self._loop.time() < self._tidy_at:
            self._tidying = self._loop.call_at(self._tidy_at, self._tidy)
            return
        self._idle.clear()
        self._in_thread(self._checkpoints.tidy, self._go_on)

    def _write_and_sync(self, batch: list[CommitJob]) -> None:
        self._write(batch)
        if self._syncs:
            self._sync()

    def _sync(self) -> None:
        """Sync the log. Raises OSError: then nobody knows what is on the disk."""
        if self._log is None:
            path = Path(f"{self._file.path}-wal")
            if not path.exists():
                return  # no transaction has changed anything yet
            self._log = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            sync(path.parent)
        getattr(os, "fdatasync", os.fsync)(self._log)

    # -- one transaction -----------------------------------------------------------------------------------------------

    def _write(self, batch: list[CommitJob]) -> None:
        """Write the batch; each job is durable after the sync, or has its error.

        A full disk refuses jobs that store items, and accepts those that only remove. Without any room for these
        either, they are tried again, as long as the service runs.
        """
        try:
            if self._fits(batch) or (self._checkpoints.frees_space() and self._fits(batch)):
                self.full = self.full and not any(job.stored for job in batch)
                return
        except sqlite3.Error as error:
            self._fail_batch(batch, error)
            return
        if not self.full:
            self._checkpoints.warn("full", "the disk is full: puts are refused until there is room")
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

    def _fail_batch(self, batch: list[CommitJob], error: BaseException) -> None:
        """Give every job of the batch an error, and stop writing for good."""
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
            self._rows.store([change for job in taken for change in job.stored])
            for job in taken:
                if len(job.changes) > len(job.stored):
                    for change in job.changes:
                        if not isinstance(change, Stored):
                            self._rows.record(change)
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._checkpoints.written += sum(job.size for job in batch) * 2 + 8192 * len(batch)

    def _checkpoint(self, mode: str) -> None:
        """Copy the log back, unless the disk has failed. Raises sqlite3.Error."""
        if self._broken is None:
            self._checkpoints.run(mode)
