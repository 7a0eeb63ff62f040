"""The embedded, durable engine: one SQLite file, written by group commit.

A second, read-only connection reads. Only entries that are visible in the rules are read, and these are durable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path

from easq.errors import EasqError, QueueFull, StorageError
from easq.model import Frame, Tags
from easq.storage.base import DeadLetterPolicy, Timing
from easq.storage.embedded import EmbeddedStorage
from easq.storage.engine import Settle
from easq.storage.rules.changes import Change, Keyed
from easq.storage.rules.effects import DeliveryRecord
from easq.storage.rules.entries import INDEX_BITS
from easq.storage.rules.filters import stored_filters
from easq.storage.rules.idempotency import KeyWindow
from easq.storage.rules.stream import Stream
from easq.storage.sqlite.checkpoints import MOST_LOG_BYTES
from easq.storage.sqlite.data_file import RESERVE_BYTES, DataFile, has_no_room, is_denied
from easq.storage.sqlite.group_commit import CommitJob, GroupCommit

log = logging.getLogger(__name__)

#: free space is checked again after this number of seconds, or of put bytes; after fewer bytes when little is left
SPACE_S, SPACE_BYTES = 0.5, 4 * 1024**2
#: earlier versions of SQLite can lose data of the write-ahead log if two connections write; easq itself has one
SAFE_SQLITE = (3, 51, 3)


class SqliteStorage(EmbeddedStorage):
    """Entries in the file `path`. With durability `fsync`, acknowledged data survives power loss; with `os`, a killed
    process.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: str = "fsync",
        timing: Timing | None = None,
        recover: bool = False,
        wall_ms: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(timing or Timing(), wall_ms)
        self._recover = recover
        self.durability = durability
        self._path = path
        if sqlite3.sqlite_version_info < SAFE_SQLITE:
            self.caution = (
                f"SQLite {sqlite3.sqlite_version} is below {'.'.join(map(str, SAFE_SQLITE))}: another program that"
                " writes to the data file may damage it"
            )
        self._file = DataFile(path)
        self._ids: dict[str, int] = {}
        self._writer: GroupCommit | None = None
        self._space_checked = 0.0
        self._unchecked_bytes = 0  # bytes that may still be put before the next check
        self._space_low = False
        self._log_long = False

    # -- opening -------------------------------------------------------------------------------------------------------

    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        await super().start(on_failure)
        self._loop = asyncio.get_running_loop()
        try:
            connection = self._file.open(recover=self._recover)
            self._writer = GroupCommit(
                self._file,
                connection,
                self._ids,
                syncs=self.durability == "fsync",
                settled=self._settle_batch,
                failed=self._fail,
            )
            self._reader = self._file.connect("ro")
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._file.refuse()
            if is_denied(error):
                raise StorageError(f"{self._path} cannot be written: {error}") from error
            if has_no_room(error):
                raise StorageError(
                    f"{self._file.path} cannot be opened: its disk is full",
                    hint="make room, then start again; no item was changed",
                ) from error
            raise StorageError(
                f"{self._path} cannot be read as easq's data: {error}",
                hint="name another file with --storage sqlite:PATH, or put a good copy in its place",
            ) from error
        except OSError as error:
            self._file.refuse()
            raise StorageError(f"{error.filename or self._path}: {error.strerror}") from error
        except EasqError:
            self._file.refuse()
            raise

    def _fail(self, error: Exception) -> None:
        if self._failure is None and not is_denied(error.__cause__):
            self._file.mark_failed()
        super()._fail(error)

    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        if stream in self._rules:
            return
        writer = self._open_writer
        try:
            if self._reader.execute("SELECT 1 FROM stream WHERE name = ?", (stream,)).fetchone() is None:
                job = CommitJob([], None, self._loop.create_future(), stream=stream)
                writer.submit(job)
                await job.future
            self._restore(stream, dead_letters)
        except sqlite3.Error as error:
            raise StorageError(f"{self._path} is damaged: {error}") from error

    def _restore(self, stream: str, dead_letters: DeadLetterPolicy | None) -> None:
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
        rules = Stream(
            timing=self._timing,
            tags_of=lambda index: self.load_tags(stream, index),
            last=last,
            ended=bool(ended),
        )
        for entry, priority, size in self._reader.execute(
            "SELECT id, priority, size FROM item WHERE id >= ? AND id < ? ORDER BY id", (base, end)
        ):
            rules.entries.insert(entry - base, priority, size)
        committed: dict[str, list[int]] = {}
        given_up: dict[str, list[int]] = {}
        records: dict[str, list[tuple[int, DeliveryRecord]]] = {}
        for entry, group, is_given_up in self._reader.execute(
            "SELECT item, name, given_up FROM committed WHERE item >= ? AND item < ?", (base, end)
        ):
            committed.setdefault(group, []).append(entry - base)
            if is_given_up:
                given_up.setdefault(group, []).append(entry - base)
        for entry, group, *counts in self._reader.execute(
            "SELECT item, name, deliveries, failures, code, reason, losses, busy_ms FROM touched"
            " WHERE item >= ? AND item < ?",
            (base, end),
        ):
            records.setdefault(group, []).append((entry - base, DeliveryRecord(*counts)))
        now = self._loop.time()
        for group, filter in self._reader.execute(
            "SELECT name, filter FROM consumer_group WHERE stream = ?", (number,)
        ):
            rules.restore_group(
                group,
                committed.get(group, ()),
                given_up.get(group, ()),
                records.get(group, ()),
                now,
                stored_filters(filter, now, self._wall_ms()),
            )
        (last_key,) = self._reader.execute(
            "SELECT coalesce(max(number), 0) FROM idempotency WHERE stream = ?", (number,)
        ).fetchone()
        self._adopt(stream, rules, KeyWindow(last_key), dead_letters)

    async def streams(self) -> Sequence[str]:
        return [name for (name,) in self._reader.execute("SELECT name FROM stream ORDER BY id")]

    async def close(self) -> None:
        if self._writer is None:
            return
        self._writer.stops = True
        try:
            await super().close()
        finally:
            writer, self._writer = self._writer, None
            await writer.drained()
            if self._failure is None:
                self._reader.close()
            await writer.close()
            self._reader.close()
            self._file.drop_lock()

    # -- reading -------------------------------------------------------------------------------------------------------

    def load(self, stream: str, index: int) -> Frame | None:
        row = self._read("SELECT tags, data FROM item WHERE id = ?", self._id(stream, index))
        return None if row is None else Frame(index, json.loads(row[0]), row[1])

    def load_tags(self, stream: str, index: int) -> Tags:
        row = self._read("SELECT tags FROM item WHERE id = ?", self._id(stream, index))
        tags: Tags = {} if row is None else json.loads(row[0])
        return tags

    def _read(self, statement: str, entry: int) -> tuple[str, bytes] | None:
        try:
            row: tuple[str, bytes] | None = self._reader.execute(statement, (entry,)).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return row

    def find(self, stream: str, request_id: str, start: int, most: int) -> list[int]:
        base = self._ids[stream] << INDEX_BITS
        try:
            rows = self._reader.execute(
                "SELECT id FROM item WHERE request_id = ? AND stream = ? AND id >= ? ORDER BY id LIMIT ?",
                (request_id, self._ids[stream], base + min(start, (1 << INDEX_BITS) - 1), most),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return [entry - base for (entry,) in rows]

    def recall(self, stream: str, key: str) -> Keyed | None:
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
        failure.__cause__ = error
        self._fail(failure)
        return failure

    # -- writing -------------------------------------------------------------------------------------------------------

    def check_space(self) -> None:
        if self._is_space_low():
            raise QueueFull(
                "the disk of the queue service is full", hint="delete or commit items, or make room"
            )
        if self._log_long:
            raise QueueFull(
                "the write-ahead log of the queue service is too long",
                hint="end the other program that reads its data file",
            )

    def has_space(self) -> bool:
        # after a while it is tried again: without puts nobody would notice that there is room again
        known_full = self._open_writer.full and (
            self._loop.time() - self._open_writer.full_at < self._timing.backoff_s[-1]
        )
        return not (known_full or self._is_space_low() or self._log_long)

    def _is_space_low(self) -> bool:
        """Return whether little room was left at the last check, which is at most `SPACE_S` or `SPACE_BYTES` ago."""
        now = self._loop.time()
        is_used = self._unchecked_bytes <= 0 and not self._space_low
        if is_used or now - self._space_checked >= SPACE_S:
            self._space_checked = now
            try:
                room = self._file.room_bytes(self._reader)
            except sqlite3.Error as error:
                raise self._broken(error) from error
            self._space_low = room < RESERVE_BYTES
            self._unchecked_bytes = min(SPACE_BYTES, (room - RESERVE_BYTES) // 2)
            self._log_long = self._file.log_bytes() > MOST_LOG_BYTES
        return self._space_low

    @property
    def _open_writer(self) -> GroupCommit:
        if self._writer is None:
            raise StorageError(f"{self._path} is not open")
        return self._writer

    def submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        job = CommitJob(changes, settle, self._loop.create_future())
        self._unchecked_bytes -= job.size
        if self._space_low:
            self._space_checked = -inf  # puts are refused, so this job frees space: check again
        if self._failure is not None:
            job.future.set_exception(StorageError(f"the storage failed: {self._failure}"))
        else:
            self._open_writer.submit(job)
        return job.future

    def _settle_batch(self, batch: Sequence[CommitJob]) -> None:
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
