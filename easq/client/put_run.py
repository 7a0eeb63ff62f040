"""Puts of one item or of many, with the outcome of each: stored, failed, or not attempted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from easq.client.items import Item, Items
from easq.errors import EasqError, ServerError, Unreachable

if TYPE_CHECKING:
    from easq.client.journal import Journal
    from easq.client.queue import QueueClient
    from easq.model import Ack
    from easq.net.pipeline import Task, TaskOutcome
    from easq.net.settings import NetworkSettings
    from easq.protocol.operations import Caller, Operation, Put

    #: an item, its number, and the seconds since another run may have put it (None: it certainly did not)
    Numbered: TypeAlias = tuple[Item, int, float | None]

#: returns the put of an item with an idempotency key, or the error for which the item cannot be put
MakePut: TypeAlias = "Callable[[Item, str], Put | EasqError]"

#: time for requests in flight after Ctrl-C, in seconds
GRACE_S = 5.0
#: time for the thread that reads the input to notice the end of the run, in seconds
_READER_S = 1.0
#: maximum number of failures that are stored for the report; further ones are only counted
MAX_REPORTED = 100


class PutReporter(Protocol):
    """Reports the outcomes of a run while it goes on."""

    def stored(self, number: int, item: Item, ack: Ack) -> None:
        """Report that an item is stored. Raises an error if the report cannot be written."""

    def failed(self, where: str, error: EasqError) -> None:
        """Report the failure of the item at the place `where`; empty for a failure of the input itself."""

    def flush(self) -> None:
        """Write out all reports. Raises an error if they cannot be written."""

    def progress(self) -> None:
        """Update the progress display."""


@dataclass
class PutCounts:
    """Counts of a run: stored + failed + not attempted = all items."""

    items: Items
    stop_at_failure: bool
    is_journaled: bool = False
    stored_before: int = 0  #: by earlier runs with the same journal
    stored_now: int = 0
    failed: int = 0
    size: int = 0  #: bytes of the items stored now
    failures: list[tuple[str, EasqError]] = field(default_factory=list)
    first_failed: Item | None = None
    stored_after_failure: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    is_broken: bool = False  #: the run ended before its input did
    knows_keys: bool = False  #: the service knows idempotency keys
    _doubts: int = 0
    _old_doubts: int = 0

    @property
    def stored(self) -> int:
        """Number of items stored, by this run and earlier runs."""
        return self.stored_before + self.stored_now

    @property
    def ended(self) -> int:
        """Number of items that are stored or failed."""
        return self.stored + self.failed

    @property
    def possible_duplicates(self) -> int:
        """Number of items that may be in the queue twice: they were sent again after a lost answer.

        If the service has recognised one idempotency key, it recognises all keys that are not too old. Then only items
        with older keys are counted.
        """
        return self._old_doubts if self.knows_keys else self._doubts

    def add_stored(self, item: Item) -> int:
        """Count a stored item. Return its number among all stored items, starting at 0."""
        number = self.stored
        self.stored_now += 1
        self.size += len(item.data)
        if self.stop_at_failure and self.failures:
            self.stored_after_failure.append(item.where)
        return number

    def add_failed(self, item: Item, error: EasqError) -> None:
        """Count an item that failed."""
        self.failed += 1
        self.first_failed = self.first_failed or item
        self.add_failure(item.where, error)

    def add_failure(self, where: str, error: EasqError) -> None:
        """Store a failure for the report, up to MAX_REPORTED failures."""
        if len(self.failures) < MAX_REPORTED:
            self.failures.append((where, error))

    def add_answer(self, *, is_duplicate: bool, doubt_s: float | None) -> None:
        """Count the answer to a put.

        Args:
            is_duplicate: the service recognised the idempotency key.
            doubt_s: seconds since an earlier attempt that may have stored the item; None if there was no such attempt.
        """
        from easq.client.journal import REMEMBERED_S

        self.knows_keys = self.knows_keys or is_duplicate
        if doubt_s is not None and not is_duplicate:
            self._doubts += 1
            self._old_doubts += doubt_s >= REMEMBERED_S

    def distinct_failures(self) -> list[tuple[str, EasqError]]:
        """Return the failures with their places; failures with the same message are combined into one."""
        found: dict[str, list[tuple[str, EasqError]]] = {}
        for where, error in self.failures:
            found.setdefault(error.message, []).append((where, error))
        distinct = []
        for same in found.values():
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            distinct.append((same[0][0] + more, same[0][1]))
        return distinct

    def rest(self, *, unread: bool) -> int | None:
        """Return the number of items that no run attempted; None if it is not known, because input is `unread`."""
        rest = None if unread else self.items.rest()
        return None if rest is None else max(self.items.taken + rest - self.ended, 0)


def put_one(client: QueueClient, put: Put) -> Ack:
    """Put one item. The message of an error says so if the item may be stored nevertheless."""
    from easq.net.failures import had_no_effect

    try:
        return client.send(put)
    except EasqError as error:
        raise error if had_no_effect(error) else in_doubt(error) from error


class PutRun:
    """One run that puts many items, several at a time, with or without a journal."""

    def __init__(
        self,
        settings: NetworkSettings,
        stream: tuple[str, Caller],
        make_put: MakePut,
        counts: PutCounts,
        reporter: PutReporter,
        *,
        workers: int,
        rate: float | None,
        journal: Journal | None,
        on_notice: Callable[[str], None],
    ) -> None:
        """Prepare to put the items of `counts` into the `stream`; nothing is read yet."""
        from easq.net.pipeline import Pipeline

        self._settings, self._stream, self._make_put = settings, stream, make_put
        self._counts, self._reporter, self._journal = counts, reporter, journal
        self._broken: EasqError | None = None  # the error that ended the journal, the report or the input
        self._pipeline = Pipeline(
            settings, workers=workers, rate=rate, stop_at_failure=counts.stop_at_failure, on_notice=on_notice
        )

    def stop(self) -> None:
        """Begin no further put; puts in flight have GRACE_S seconds. May be called by a signal handler."""
        self._pipeline.stop(grace_s=GRACE_S)

    def run(self) -> bool:
        """Put all items, count and report the outcomes. Return whether the thread that reads the input has ended.

        Raises the error of the input if nothing was put before.
        """
        from easq.net.pipeline import asking
        from easq.protocol.replies import read_put

        steps = asking(*self._stream, self._settings, read_put)
        try:
            for batch in self._pipeline.run(self._tasks(), steps):
                self._take(batch)
                if self._broken is not None:
                    self.stop()
                self._reporter.progress()
        except EasqError as error:  # a file that could not be read to its end
            if not self._counts.stored_now and not self._counts.failed:
                raise
            self._broken = self._broken or error
        if self._broken is not None:
            self._counts.is_broken = True
            self._counts.add_failure("", self._broken)
            self._reporter.failed("", self._broken)
        return self._pipeline.read_all(within_s=_READER_S)

    def _tasks(self) -> Iterator[Task[Numbered, Operation]]:
        """Yield the puts. With a journal, an item has the same idempotency key in every run."""
        from secrets import token_hex

        from easq.net.pipeline import Task

        items, run = self._counts.items, token_hex(8)
        if self._journal is None:
            for number, item in enumerate(items):
                yield Task((item, number, None), self._make_put(item, f"{run}-{number}"), len(item.data))
            return
        for item, entry in self._journal.left((item, item.identity) for item in items):
            put = self._make_put(item, self._journal.key(entry.number))
            yield Task((item, entry.number, entry.doubt_s), put, len(item.data))

    def _take(self, batch: Sequence[TaskOutcome[Numbered, Ack]]) -> None:
        """Count the outcomes, write them to the journal, and then report them. After a failure of these, only count."""
        rows: list[tuple[int, Item, Ack]] = []
        for outcome in batch:
            item, _, doubt_s = outcome.what
            error = outcome.error
            if outcome.result is not None:
                ack = outcome.result
                doubt_s = 0.0 if doubt_s is None and outcome.times.doubt else doubt_s
                self._counts.add_answer(is_duplicate=ack.duplicate, doubt_s=doubt_s)
                rows.append((self._counts.add_stored(item), item, ack))
            elif error is not None:
                error = error if _is_refused(outcome) else in_doubt(error)
                self._counts.add_failed(item, error)
                self._reporter.failed(item.where, error)
        if self._broken is not None:
            return
        try:
            self._write_journal(batch)
            for row in rows:
                self._reporter.stored(*row)
            self._reporter.flush()
        except EasqError as error:
            self._broken = error

    def _write_journal(self, batch: Sequence[TaskOutcome[Numbered, Ack]]) -> None:
        if self._journal is None:
            return
        stored = [outcome.what[1] for outcome in batch if outcome.error is None]
        refused = [outcome.what[1] for outcome in batch if outcome.error and _is_refused(outcome)]
        if refused:
            self._journal.refused(refused)
        if stored:
            self._journal.stored(stored)


def _is_refused(outcome: TaskOutcome[Numbered, Ack]) -> bool:
    """Return whether it is certain that no attempt of this run stored the item."""
    from easq.net.failures import had_no_effect

    return outcome.error is not None and not outcome.times.doubt and had_no_effect(outcome.error)


def in_doubt(error: EasqError) -> EasqError:
    """Return a copy of `error`; its message adds that the item may be stored nevertheless."""
    kind = ServerError if isinstance(error, ServerError) else Unreachable
    return kind(
        f"{error.message}; whether it was stored is not known", hint=error.hint, status=error.http_status
    )
