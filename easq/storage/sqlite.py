"""The embedded, durable engine: one SQLite file, one writer thread, group commit.

The writer takes everything that waits, makes it one transaction, and settles it; the fsync under way is the batching
window, there is no timer. Readers use a second, read-only connection on the event loop: what is visible is durable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from easq.errors import EasqError, QueueFull, StorageError
from easq.model import Frame, Tags
from easq.storage.base import Appended, Burial, Limits, Timing
from easq.storage.changes import (
    Change,
    Committed,
    Ended,
    GroupKept,
    Keyed,
    KeysForgotten,
    Removed,
    Stored,
    Touched,
    Truncated,
)
from easq.storage.core import Stream
from easq.storage.datafile import RESERVE_BYTES, DataFile
from easq.storage.effects import Touch
from easq.storage.embedded import Embedded, Settle
from easq.storage.keys import KeyWindow

log = logging.getLogger(__name__)

#: bits of an entry's id that hold its index
INDEX_BITS = 53
#: one transaction takes at most so many jobs, and stops taking after so many payload bytes
BATCH_JOBS, BATCH_BYTES = 512, 4 * 1024**2
#: the write-ahead log is copied back, between batches, after so many written bytes (an estimate)
CHECKPOINT_BYTES = 16 * 1024**2
#: the write-ahead log is cut to nothing when there was nothing to write for so long, in seconds
IDLE_S = 2.0
#: SQLite before it can, with two writing connections, leave a write-ahead log torn; easq has one, and says so
SAFE_SQLITE = (3, 51, 3)

#: durability -> `PRAGMA synchronous`
_SYNCHRONOUS = {"fsync": "FULL", "os": "NORMAL"}


@dataclass(slots=True, eq=False)
class _Job:
    """Changes that are one atomic step, and who is told. `stream` names a stream to be made."""

    changes: Sequence[Change]
    settle: Settle | None
    future: asyncio.Future[None]
    stream: str = ""
    error: Exception | None = None

    @property
    def stores(self) -> bool:
        return any(isinstance(change, Stored) for change in self.changes)

    def size(self) -> int:
        return sum(len(change.frame.data) for change in self.changes if isinstance(change, Stored))


class Sqlite(Embedded):
    """Entries in the file `path`. Durability `fsync`: what is acknowledged survives power loss; `os`: a killed
    process.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: str = "fsync",
        timing: Timing | None = None,
        recover: bool = False,
    ) -> None:
        super().__init__(timing or Timing())
        self._recover = recover
        self.durability = durability
        self._path = path
        self._file = DataFile(path)
        self._ids: dict[str, int] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._space_checked = 0.0
        self._space_low = False
        self._full = False

    # -- opening ---------------------------------------------------------------------------------------------------

    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        await super().start(on_failure)
        self._loop = asyncio.get_running_loop()
        if sqlite3.sqlite_version_info < SAFE_SQLITE:
            log.debug("SQLite %s: below 3.51.3, one writing connection only", sqlite3.sqlite_version)
        try:
            self._writer = self._file.open(recover=self._recover)
            self._prepare_writer()
            self._reader = self._file.connect("ro")
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._file.drop_lock()
            raise StorageError(
                f"{self._path} cannot be read as easq's data: {error}",
                hint="name another file with --storage sqlite:PATH, or put a good copy in its place",
            ) from error
        except OSError as error:
            self._file.drop_lock()
            raise StorageError(f"{error.filename or self._path}: {error.strerror}") from error
        except EasqError:
            self._file.drop_lock()
            raise
        self._thread = threading.Thread(target=self._write_all, name="easq-writer", daemon=True)
        self._thread.start()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._file.mark_failed()
        super()._fail(error)

    def _prepare_writer(self) -> None:
        for pragma in (
            f"synchronous = {_SYNCHRONOUS[self.durability]}",
            "wal_autocheckpoint = 0",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "cache_size = -32000",
        ):
            self._writer.execute(f"PRAGMA {pragma}")
        self._written = CHECKPOINT_BYTES  # what an earlier run left in the log is copied back soon
        self._file.make_ballast()

    async def open(self, stream: str, burial: Burial | None = None) -> None:
        if stream in self._cores:
            return
        job = _Job([], None, asyncio.get_running_loop().create_future(), stream=stream)
        self._jobs.put(job)
        await job.future
        try:
            self._restore(stream, burial)
        except sqlite3.Error as error:
            raise StorageError(f"{self._path} is damaged: {error}") from error

    def _restore(self, stream: str, burial: Burial | None) -> None:
        number, last, ended = self._reader.execute(
            "SELECT id, last, ended FROM stream WHERE name = ?", (stream,)
        ).fetchone()
        if (number + 1) >> (63 - INDEX_BITS):
            raise StorageError(
                f"{self._path} holds {number} streams, and there is no room for more",
                hint="name another file with --storage sqlite:PATH",
            )
        self._ids[stream] = number
        base, end = number << INDEX_BITS, (number + 1) << INDEX_BITS
        core = Stream(
            timing=self._timing,
            tags_of=lambda index: self._load_tags(stream, index),
            last=last,
            ended=bool(ended),
        )
        for entry, priority, size in self._reader.execute(
            "SELECT id, priority, size FROM item WHERE id >= ? AND id < ? ORDER BY id", (base, end)
        ):
            core.entries.insert(entry - base, priority, size)
        committed: dict[str, list[int]] = {}
        given_up: dict[str, list[int]] = {}
        touched: dict[str, list[tuple[int, Touch]]] = {}
        for entry, group, is_given_up in self._reader.execute(
            "SELECT item, name, given_up FROM committed WHERE item >= ? AND item < ?", (base, end)
        ):
            committed.setdefault(group, []).append(entry - base)
            if is_given_up:
                given_up.setdefault(group, []).append(entry - base)
        for entry, group, *counts in self._reader.execute(
            "SELECT item, name, deliveries, failures, code, reason FROM touched WHERE item >= ? AND item < ?",
            (base, end),
        ):
            touched.setdefault(group, []).append((entry - base, Touch(*counts)))
        now = self._loop.time()
        for (group,) in self._reader.execute("SELECT name FROM consumer_group WHERE stream = ?", (number,)):
            core.restore_group(
                group, committed.get(group, ()), given_up.get(group, ()), touched.get(group, ()), now
            )
        (last_key,) = self._reader.execute(
            "SELECT coalesce(max(number), 0) FROM idempotency WHERE stream = ?", (number,)
        ).fetchone()
        self._adopt(stream, core, KeyWindow(last_key), burial)

    async def streams(self) -> Sequence[str]:
        return [name for (name,) in self._reader.execute("SELECT name FROM stream ORDER BY id")]

    async def close(self) -> None:
        if self._thread is None:
            return
        try:
            await super().close()
        finally:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            self._reader.close()
            self._writer.close()
            self._file.drop_lock()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _load(self, stream: str, index: int) -> Frame | None:
        row = self._read("SELECT tags, data FROM item WHERE id = ?", self._id(stream, index))
        return None if row is None else Frame(index, json.loads(row[0]), row[1])

    def _load_tags(self, stream: str, index: int) -> Tags:
        row = self._read("SELECT tags FROM item WHERE id = ?", self._id(stream, index))
        tags: Tags = {} if row is None else json.loads(row[0])
        return tags

    def _read(self, statement: str, entry: int) -> tuple[str, bytes] | None:
        try:
            row: tuple[str, bytes] | None = self._reader.execute(statement, (entry,)).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return row

    def _find(self, stream: str, request_id: str) -> list[int]:
        try:
            rows = self._reader.execute(
                "SELECT id FROM item WHERE request_id = ? AND stream = ?", (request_id, self._ids[stream])
            ).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        base = self._ids[stream] << INDEX_BITS
        return [entry - base for (entry,) in rows]

    def _recall(self, stream: str, key: str) -> Keyed | None:
        try:
            row = self._reader.execute(
                "SELECT item, request_id, digest, number FROM idempotency WHERE stream = ? AND key = ?",
                (self._ids[stream], key),
            ).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return None if row is None else Keyed(stream, key, *row)

    def _id(self, stream: str, index: int) -> int:
        return self._ids[stream] << INDEX_BITS | index

    def _broken(self, error: Exception) -> StorageError:
        failure = StorageError(f"{self._path}: {error}")
        self._fail(failure)
        return failure

    # -- writing ---------------------------------------------------------------------------------------------------

    async def append(
        self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = ""
    ) -> Appended:
        if self._is_space_low():
            raise QueueFull(
                "the disk of the queue service is full", hint="delete or commit items, or make room"
            )
        return await super().append(stream, frame, priority=priority, limits=limits, key=key)

    def _has_space(self) -> bool:
        return not (self._full or self._is_space_low())

    def _is_space_low(self) -> bool:
        now = self._loop.time()
        if now - self._space_checked >= 1.0:
            self._space_checked = now
            self._space_low = self._file.free_bytes() < RESERVE_BYTES
        return self._space_low

    def _submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        job = _Job(changes, settle, self._loop.create_future())
        if self._failure is not None:
            job.future.set_exception(StorageError(f"the storage failed: {self._failure}"))
        else:
            self._jobs.put(job)
        return job.future

    def _write_all(self) -> None:
        """The writer thread: batches until `None` comes."""
        dirty = True
        while True:
            batch, last = self._next_batch(IDLE_S if dirty else None)
            if batch:
                dirty = True
                self._write(batch)
                self._tell(batch)
                if self._written >= CHECKPOINT_BYTES:
                    self._checkpoint("PASSIVE")
            elif not last:
                self._checkpoint("TRUNCATE")
                self._file.make_ballast()
                dirty = False
            if last:
                self._checkpoint("TRUNCATE")
                return

    def _next_batch(self, timeout_s: float | None) -> tuple[list[_Job], bool]:
        """All that waits, up to the limits of a batch, and whether the end was reached."""
        batch: list[_Job] = []
        size = 0
        try:
            job = self._jobs.get(timeout=timeout_s)
            while job is not None:
                batch.append(job)
                size += job.size()
                if len(batch) >= BATCH_JOBS or size >= BATCH_BYTES:
                    return batch, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _write(self, batch: list[_Job]) -> None:
        """Each job is durable or has its error. A full disk refuses what stores and goes on with what removes."""
        try:
            self._transact(batch, storing=True)
            self._full = self._full and not any(job.stores for job in batch)
            return
        except sqlite3.Error as error:
            if not _is_full(error):
                self._fail_batch(batch, error)
                return
            if not self._full:
                log.warning("the disk is full: puts are refused until there is room")
            self._full = True
            for job in batch:
                if job.stores:
                    job.error = QueueFull("the disk of the queue service is full")
        try:
            self._file.drop_ballast()
            self._checkpoint("TRUNCATE")
            self._transact(batch, storing=False)
        except sqlite3.Error as error:
            self._fail_batch(batch, error)

    def _fail_batch(self, batch: list[_Job], error: Exception) -> None:
        for job in batch:
            job.error = StorageError(f"{self._path}: {error}")

    def _transact(self, batch: list[_Job], *, storing: bool) -> None:
        execute = self._writer.execute
        execute("BEGIN IMMEDIATE")
        try:
            for job in batch:
                if job.stream:
                    execute("INSERT OR IGNORE INTO stream (name) VALUES (?)", (job.stream,))
            taken = batch if storing else [job for job in batch if not job.stores]
            self._store([change for job in taken for change in job.changes if isinstance(change, Stored)])
            for job in taken:
                for change in job.changes:
                    if not isinstance(change, Stored):
                        self._record(change)
            execute("COMMIT")
        except sqlite3.Error:
            if self._writer.in_transaction:
                execute("ROLLBACK")
            raise
        self._written += sum(job.size() for job in batch) * 2 + 8192 * len(batch)

    def _store(self, stored: list[Stored]) -> None:
        last: dict[int, int] = {}
        rows = []
        for change in stored:
            number, frame = self._ids[change.stream], change.frame
            last[number] = frame.index
            rows.append(
                (
                    number << INDEX_BITS | frame.index,
                    number,
                    change.priority,
                    len(frame.data),
                    frame.request_id,
                    json.dumps(dict(frame.tags), ensure_ascii=False, separators=(",", ":")),
                    frame.data,
                )
            )
        self._writer.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._writer.executemany(
            "UPDATE stream SET last = max(last, ?) WHERE id = ?",
            [(index, number) for number, index in last.items()],
        )

    def _record(self, change: Change) -> None:
        execute, number = self._writer.execute, self._ids[change.stream]
        base = number << INDEX_BITS
        match change:
            case Removed():
                entries = [(base | index,) for index in change.indexes]
                for statement in _FORGET_ONE:
                    self._writer.executemany(statement, entries)
            case Truncated():
                for statement in _FORGET_RANGE:
                    execute(statement, (base, base + change.below))
            case Committed():
                row = (base | change.index, change.group, change.given_up)
                execute("INSERT OR REPLACE INTO committed VALUES (?, ?, ?)", row)
            case Touched():
                execute(
                    "INSERT OR REPLACE INTO touched SELECT ?, ?, ?, ?, ?, ?"
                    " WHERE EXISTS (SELECT 1 FROM item WHERE id = ?)",
                    (
                        base | change.index,
                        change.group,
                        change.touch.deliveries,
                        change.touch.failures,
                        change.touch.code,
                        change.touch.reason,
                        base | change.index,
                    ),
                )
            case Keyed():
                kept = (number, change.key, change.number, change.index, change.request_id, change.digest)
                execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)", kept)
            case KeysForgotten():
                execute("DELETE FROM idempotency WHERE stream = ? AND number < ?", (number, change.below))
            case GroupKept(kept=True):
                execute("INSERT OR IGNORE INTO consumer_group VALUES (?, ?)", (number, change.group))
            case GroupKept():
                execute("DELETE FROM consumer_group WHERE stream = ? AND name = ?", (number, change.group))
            case Ended():
                execute("UPDATE stream SET ended = ? WHERE id = ?", (change.ended, number))
            case _:
                raise AssertionError(change)

    def _tell(self, batch: list[_Job]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle_batch, batch)
        except RuntimeError:
            log.warning("the event loop ended before %d writes were acknowledged", len(batch))

    def _settle_batch(self, batch: Iterable[_Job]) -> None:
        for job in batch:
            if isinstance(job.error, StorageError):
                self._fail(job.error)
            if job.settle is not None:
                job.settle(job.error)
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(None)
            else:
                job.future.set_exception(job.error)
        if self._failure is None:
            self._settled()

    def _checkpoint(self, mode: str) -> None:
        try:
            self._writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            # the log still holds what was not copied back; a full disk must not stop the service
            log.warning("checkpoint: %s", error)
        self._written = 0


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


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
