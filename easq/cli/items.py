"""Where payloads come from: a literal, lines, whole files, JSON records; and how to send them in order."""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from easq.errors import EasqError, PayloadTooLarge, UsageError
from easq.model import DELIVERY_COUNT, HEADER_PREFIX, REQUEST_ID, Tags, tag_problem

if TYPE_CHECKING:
    from concurrent.futures import Future
    from queue import SimpleQueue

    from easq.cli.app import App

T = TypeVar("T")

LINES, WHOLE, JSON = "lines", "whole", "json"
FORMATS = (LINES, WHOLE, JSON)

#: how long what was not attempted is counted, in seconds
_COUNT_S = 3.0
#: bytes of an item that are read before the queue is asked for its limit; most limits are lower
_UNASKED_BYTES = 8 * 1024 * 1024
#: bytes of an item at most, also if a queue allows more or does not say: larger frames cannot be read back
MOST_BYTES = 64 * 1024 * 1024
#: bytes of a request at most to a model that is called directly
MOST_REQUEST_BYTES = 256 * 1024 * 1024
#: seconds to wait for a queue to tell its limit
_ASK_S = 2.0
#: bytes of a JSON record: at most so many for each byte of the payload (\u0001), and so many more for its tags
_JSON_FACTOR, _JSON_EXTRA = 6, 128 * 1024
#: bytes that are read at a time to skip a line that is too long
_SKIP_BYTES = 1024 * 1024
#: the name of stdin among files
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Item:
    """One payload to send, and where it stood; `error` says why it cannot be sent."""

    data: bytes
    source: str = ""
    line: int = 0
    tags: Tags = field(default_factory=dict)
    priority: int | None = None
    content_type: str = ""
    error: EasqError | None = None

    @property
    def where(self) -> str:
        """Its place in words, empty for a literal."""
        if not self.line:
            return self.source
        return f"line {self.line}" if self.source in ("", STDIN) else f"line {self.line} of {self.source}"

    @property
    def identity(self) -> bytes:
        """What tells it from another item, wherever it stood."""
        told = (
            sorted(self.tags.items()),
            self.priority,
            self.content_type,
            self.error and self.error.message,
        )
        return ascii(told).encode() + b"\0" + self.data


class Items:
    """The items of one command line, read one after the other.

    Of each at most one byte more than the limit is read, so that one without an end does not fill the memory.
    """

    def __init__(
        self,
        app: App,
        sources: Sequence[bytes | str],
        form: str,
        *,
        keep_tags: bool = False,
        limit: Callable[[], int] = lambda: MOST_BYTES,
    ) -> None:
        """Prepare to read `sources`.

        `limit` returns how many bytes an item may have. It is called once, for a large item, in the thread that reads.
        """
        self._app, self._sources, self._keep_tags = app, sources, keep_tags
        self._ask_limit = limit
        self._give_up_at = math.inf
        self.form = form
        self._items = self._read()
        self.skipped = 0  #: empty lines so far
        self.taken = 0  #: items given so far
        self.bytes = 0  #: read so far

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self.taken += 1
            yield item

    @property
    def total_bytes(self) -> int | None:
        """How much there is to read, None where only reading tells."""
        if any(isinstance(source, bytes) or source == STDIN for source in self._sources):
            return None
        found = [os.stat(source) for source in self._sources if os.path.exists(source)]
        return sum(file.st_size for file in found) if all(stat.S_ISREG(f.st_mode) for f in found) else None

    @property
    def single(self) -> bool:
        """Whether there is one item and no more."""
        return len(self._sources) == 1 and (self.form == WHOLE or isinstance(self._sources[0], bytes))

    @property
    def has_many_sources(self) -> bool:
        """Whether several files and literals are named."""
        return len(self._sources) > 1

    def rest(self) -> int | None:
        """How many items were not asked for; None where that would mean to wait, for stdin or long."""
        if STDIN in self._sources:
            return None
        self._give_up_at, count = time.monotonic() + _COUNT_S, 0
        for count, _ in enumerate(self._items, 1):  # noqa: B007
            if time.monotonic() > self._give_up_at:
                return None
        return count if time.monotonic() <= self._give_up_at else None

    def _read(self) -> Iterator[Item]:
        for number, source in enumerate(self._sources, 1):
            if isinstance(source, bytes):
                yield Item(source, f"-d ({number} of {len(self._sources)})" if self.has_many_sources else "")
            elif self.form == WHOLE:
                with self._open(source) as file:
                    yield self._whole(file, source)
            else:
                with self._open(source) as file:
                    yield from self._lines(file, source)

    def _open(self, source: str) -> IO[bytes]:
        if source == STDIN:
            return open(self._app.stdin().fileno(), "rb", closefd=False)
        try:
            return open(source, "rb")
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error.strerror}") from error

    def _whole(self, file: IO[bytes], source: str) -> Item:
        data, room = self._read_bounded(file.read, source, b"")
        if not data and source == STDIN:
            raise UsageError("nothing came on stdin; an empty item is put with -d ''")
        if len(data) > room:
            name = "stdin" if source == STDIN else source
            return Item(b"", source, error=_too_large(room, name if self.single else "it"))
        return Item(data, source)

    def _lines(self, file: IO[bytes], source: str) -> Iterator[Item]:
        number = 0
        while True:
            line, room = self._read_bounded(file.readline, source, b"\n")
            if not line:
                return
            number += 1
            data = line.removesuffix(b"\n")
            if len(data) > room:
                yield Item(b"", source, number, error=_too_large(room))
                if not self._skip_line(file, source):
                    return
            elif not data or (self.form == JSON and data.isspace()):
                self.skipped += 1
            elif self.form == JSON:
                yield read_record(data, source, number, keep_tags=self._keep_tags)
            else:
                yield Item(data, source, number)

    def _read_bounded(self, read: Callable[[int], bytes], source: str, end: bytes) -> tuple[bytes, int]:
        """Return what `read` gives up to `end`, at most one byte more than the limit; and the limit."""
        room = self._room(_UNASKED_BYTES)
        data = _read(lambda: read(room + 1), source)
        if len(data) > room and not (end and data.endswith(end)):
            room = self._room(self._limit)
            if len(data) <= room:
                data += _read(lambda: read(room + 1 - len(data)), source)
        self.bytes += len(data)
        return data, room

    def _room(self, payload_bytes: int) -> int:
        return payload_bytes if self.form != JSON else payload_bytes * _JSON_FACTOR + _JSON_EXTRA

    @cached_property
    def _limit(self) -> int:
        return self._ask_limit()

    def _skip_line(self, file: IO[bytes], source: str) -> bool:
        """Skip the rest of a line. Return False if, while items are only counted, it does not end in time."""
        while piece := _read(lambda: file.readline(_SKIP_BYTES), source):
            self.bytes += len(piece)
            if piece.endswith(b"\n"):
                return True
            if time.monotonic() > self._give_up_at:
                return False
        return True


def queue_limit(app: App, *, sink: bool | None = None) -> int:
    """Return how many bytes an item may have by the attributes of the queue, or of its sink (None: as -k says)."""
    from easq.client.queue import QueueClient

    # not by App.queue: it may warn, which the thread that reads must not
    client = QueueClient.over(app.transport, app.stream_url(sink=sink), app.caller())
    try:
        said = client.attributes(deadline_s=_ASK_S).get("meta.maxPayloadBytes", "")
    except EasqError:
        return MOST_BYTES
    known = said.isascii() and said.isdigit() and len(said) <= 12
    return min(int(said), MOST_BYTES) if known else MOST_BYTES


def _too_large(limit: int, what: str = "it") -> EasqError:
    return PayloadTooLarge(f"{what} is larger than {limit} bytes, the limit of an item")


def find_items(
    app: App,
    given: Sequence[bytes | str],
    paths: Sequence[str],
    form: str | None,
    *,
    keep_tags: bool = False,
    piped: str = WHOLE,
    limit: Callable[[], int] = lambda: MOST_BYTES,
) -> Items:
    """Return the items that the command line names.

    Args:
        given: the values of -d as bytes and of -f as text, in the order given.
        paths: the arguments PATH.
        form: the --input-format; None for the default of each source.
        piped: the form of stdin if nothing is named.
        limit: returns how many bytes an item may have; called for the first large one.

    Raises UsageError if nothing is named, for PATH beside -d or -f, and for a file that cannot be read.
    """
    if given and paths:
        raise UsageError("PATH and -d or -f exclude each other")
    files = [source for source in (*given, *paths) if isinstance(source, str)]
    if given and not files and form is not None:
        raise UsageError("-d gives one literal item; --input-format is for files and stdin")
    if files.count(STDIN) > 1:
        raise UsageError("stdin (-) is given twice, and can be read once")
    for file in files:
        if file != STDIN:
            _check_readable(file, hint="" if given else "use -d STR to send the text itself")
    if given:
        for file in files:
            app.printer.info(f"Opening data file: {file}")
        return Items(app, given, form or LINES, keep_tags=keep_tags, limit=limit)
    if paths:
        return Items(app, paths, form or WHOLE, keep_tags=keep_tags, limit=limit)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("nothing to send", hint="-d STRING, -f FILE, PATH..., or pipe it in")
    return Items(app, [STDIN], form or piped, keep_tags=keep_tags, limit=limit)


def _check_readable(path: str, *, hint: str = "") -> None:
    """Raises UsageError for what is certainly no file to read; it is not opened, for it may be a pipe."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}", hint=hint) from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot read {path}: it is a folder")
    if not os.access(path, os.R_OK):
        raise UsageError(f"cannot read {path}: Permission denied")


def _read(read: Callable[[], bytes], source: str) -> bytes:
    try:
        return read()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error


def read_record(text: bytes, source: str, line: int, *, keep_tags: bool) -> Item:
    """The item in one line of `get -o json`; index, n and times are left behind.

    requestId and ts@* are the server's to give again, unless `keep_tags`; Header:Content-Type becomes the
    header that it was, and deliveryCount belonged to a delivery.
    """
    try:
        return _record(text, source, line, keep_tags=keep_tags)
    except ValueError as error:
        return Item(b"", source, line, error=UsageError(str(error)))


def _record(text: bytes, source: str, line: int, *, keep_tags: bool) -> Item:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    tags = record.get("tags") or {}
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise ValueError("tags is not an object of texts")
    priority = record.get("priority")
    if priority is not None and (type(priority) is not int or priority < 0):
        raise ValueError(f"priority {priority!r} is not a whole number from 0")
    kept = {k: v for k, v in tags.items() if keep_tags or not (k == REQUEST_ID or k.startswith("ts@"))}
    content_type = kept.get(f"{HEADER_PREFIX}Content-Type", "")
    if not content_type.isascii() or not content_type.isprintable():
        raise ValueError(f"tag {HEADER_PREFIX}Content-Type is {content_type!r}, which no header may carry")
    kept = {k: v for k, v in kept.items() if not k.startswith(HEADER_PREFIX) and k != DELIVERY_COUNT}
    for name, value in kept.items():
        problem = tag_problem(name, value)
        if problem:
            raise ValueError(f"{f'{name}={value}'!r} {problem}")
    return Item(_payload(record), source, line, kept, priority, content_type)


def _payload(record: Mapping[str, Any]) -> bytes:
    data, encoding = record.get("data"), record.get("encoding", "utf8")
    if not isinstance(data, str):
        raise ValueError("no data, which must be text")
    if encoding == "utf8":
        try:
            return data.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("data is no UTF-8: it holds a lone surrogate") from error
    if encoding != "base64":
        raise ValueError(f"encoding {encoding!r} is neither utf8 nor base64")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"data is not base64: {error}") from error


def in_order(
    items: Iterator[Item],
    work: Callable[[Item], T],
    *,
    workers: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Item, T | EasqError]]:
    """Each item with what `work` made of it, in the items' order, `workers` at a time.

    Once `stop` says so no further item is begun; what was begun is still given back.
    """

    def attempt(item: Item) -> T | EasqError:
        if item.error is not None:
            return item.error
        try:
            return work(item)
        except EasqError as error:
            return error

    if workers == 1:
        while not stop() and (item := next(items, None)) is not None:
            yield item, attempt(item)
        return
    begun: deque[tuple[Item, Future[T | EasqError]]] = deque()
    pool = _Workers(workers, attempt)
    more = True
    try:
        while more or begun:
            while more and len(begun) < workers and not stop():
                item = next(items, None)
                if item is None:
                    more = False
                    break
                begun.append((item, pool.begin(item)))
            if not begun:
                break
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.end()


class _Workers(Generic[T]):
    """Threads that end with the program: those of ThreadPoolExecutor would hold up Ctrl-C until the last answer."""

    def __init__(self, count: int, work: Callable[[Item], T]) -> None:
        from queue import SimpleQueue

        self._count, self._work = count, work
        self._waiting: SimpleQueue[tuple[Item, Future[T]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def begin(self, item: Item) -> Future[T]:
        """What comes of the work on `item`, which begins as soon as one of the threads is free."""
        from concurrent.futures import Future

        future: Future[T] = Future()
        self._waiting.put((item, future))
        if len(self._threads) < self._count:
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()
        return future

    def end(self) -> None:
        """Each thread ends after what it does now; nobody waits for that."""
        for _ in self._threads:
            self._waiting.put(None)

    def _run(self) -> None:
        while (begun := self._waiting.get()) is not None:
            item, future = begun
            try:
                future.set_result(self._work(item))
            except BaseException as error:
                future.set_exception(error)
