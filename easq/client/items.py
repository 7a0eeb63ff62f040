"""Items to send: literals, lines of files, whole files, or JSON records. Each item is read when it is needed."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING

from easq.errors import EasqError, PayloadTooLarge, UsageError
from easq.model import Tags

if TYPE_CHECKING:
    pass

LINES, WHOLE, JSON = "lines", "whole", "json"
FORMATS = (LINES, WHOLE, JSON)

#: maximum time for counting the items that were not attempted, in seconds
_COUNT_S = 3.0
#: an item up to this size is read without asking the queue for its limit, in bytes; most limits are lower
_UNASKED_BYTES = 8 * 1024 * 1024
#: maximum size of an item in bytes, whatever the queue allows: larger frames cannot be read back
MOST_BYTES = 64 * 1024 * 1024
#: maximum size of a request to a model that is called directly, in bytes
MOST_REQUEST_BYTES = 256 * 1024 * 1024
#: maximum size of a JSON record: factor for the bytes of the payload (\u0001 takes 6), and bytes for its tags
_JSON_FACTOR, _JSON_EXTRA = 6, 128 * 1024
#: bytes read at a time to skip a line that is too long
_SKIP_BYTES = 1024 * 1024
#: the name of stdin among files
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Item:
    """One payload to send, and its place in the input. `error` is set if the item cannot be sent."""

    data: bytes
    source: str = ""
    line: int = 0
    tags: Tags = field(default_factory=dict)
    priority: int | None = None
    content_type: str = ""
    error: EasqError | None = None

    @property
    def where(self) -> str:
        """The place in the input as text, empty for a literal."""
        if not self.line:
            return self.source
        return f"line {self.line}" if self.source in ("", STDIN) else f"line {self.line} of {self.source}"

    @property
    def identity(self) -> bytes:
        """Bytes that identify the content: two items have the same bytes only if they are equal but for their place."""
        told = (
            sorted(self.tags.items()),
            self.priority,
            self.content_type,
            self.error and self.error.message,
        )
        return ascii(told).encode() + b"\0" + self.data


class Items:
    """The items of one command, read one after the other.

    Of each item at most one byte more than the limit is read, so that an endless item does not fill the memory.
    """

    def __init__(
        self,
        sources: Sequence[bytes | str],
        form: str,
        *,
        stdin: Callable[[], IO[bytes]],
        keep_tags: bool = False,
        limit: Callable[[], int] = lambda: MOST_BYTES,
    ) -> None:
        """Prepare to read `sources`: payloads as bytes, names of files as text.

        Args:
            form: LINES, WHOLE or JSON.
            stdin: returns standard input, the file with the name `-`.
            limit: returns the maximum size of an item in bytes. It is called at most once, for the first large item, in
                the thread that reads.
        """
        self._sources, self._keep_tags, self._stdin = sources, keep_tags, stdin
        self._ask_limit = limit
        self._give_up_at = math.inf
        self.form = form
        self._items = self._read()
        self.skipped = 0  #: empty lines so far
        self.taken = 0  #: items yielded so far
        self.bytes = 0  #: bytes read so far

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self.taken += 1
            yield item

    @property
    def total_bytes(self) -> int | None:
        """Total size of the input in bytes; None if it is not known before reading."""
        if any(isinstance(source, bytes) or source == STDIN for source in self._sources):
            return None
        found = [os.stat(source) for source in self._sources if os.path.exists(source)]
        return sum(file.st_size for file in found) if all(stat.S_ISREG(f.st_mode) for f in found) else None

    @property
    def single(self) -> bool:
        """Whether there is exactly one item."""
        return len(self._sources) == 1 and (self.form == WHOLE or isinstance(self._sources[0], bytes))

    @property
    def has_many_sources(self) -> bool:
        """Whether there is more than one source: files and literals."""
        return len(self._sources) > 1

    def rest(self) -> int | None:
        """Return the number of items that were not read yet; None for stdin, and if counting takes too long."""
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
            return open(self._stdin().fileno(), "rb", closefd=False)
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
                yield self._record(data, source, number)
            else:
                yield Item(data, source, number)

    def _record(self, text: bytes, source: str, line: int) -> Item:
        from easq.client.records import read_record

        try:
            record = read_record(text, keep_tags=self._keep_tags)
        except ValueError as error:
            return Item(b"", source, line, error=UsageError(str(error)))
        return Item(record.data, source, line, record.tags, record.priority, record.content_type)

    def _read_bounded(self, read: Callable[[int], bytes], source: str, end: bytes) -> tuple[bytes, int]:
        """Return the data of `read` up to `end`, at most one byte more than the limit; and the limit in bytes."""
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
        """Skip the rest of a line. Return False if `rest` counts items, and its time is over."""
        while piece := _read(lambda: file.readline(_SKIP_BYTES), source):
            self.bytes += len(piece)
            if piece.endswith(b"\n"):
                return True
            if time.monotonic() > self._give_up_at:
                return False
        return True


def _too_large(limit: int, what: str = "it") -> EasqError:
    return PayloadTooLarge(f"{what} is larger than {limit} bytes, the limit of an item")


def _read(read: Callable[[], bytes], source: str) -> bytes:
    try:
        return read()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
