"""The journal of a bulk put: it stores which records were put, so that a later run continues after a kill.

The journal is an append-only file of lines; only its owner can read it. It holds numbers and hashes, but no payload, no
address and no token. Every line begins with a checksum over itself and the line before it:

    CHECK easq-journal 1 RUN TARGET HOW   RUN is the prefix of the idempotency keys; TARGET is a hash of the address,
                                          HOW a hash of the options of all puts
    CHECK begun LIMIT TIME                records with a number below LIMIT may have been sent since TIME (Unix seconds)
    CHECK ok RANGES COUNT HASH            the records in RANGES are stored; HASH is that of the first COUNT records
    CHECK no RANGES COUNT HASH            the records in RANGES were certainly not stored; the next run sends them again

A last line without a line feed was cut off by a kill, and is removed. Its records are sent again with the same keys.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from easq.errors import StorageError, UsageError
from easq.net import files

T = TypeVar("T")

#: minimum time for which a service remembers an idempotency key, in seconds (docs/guarantees.md, P3)
REMEMBERED_S = 600.0
#: number of records in one `begun` line, because each line is a write
_AHEAD = 64
#: maximum length of a line in bytes; the numbers of the largest batch need less
_MAX_LINE = 1024 * 1024
_WORDS = "easq-journal 1"
_LINE = re.compile(rb"([0-9a-f]{16}) ([ -~]*)\n")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


class Numbers:
    """A set of record numbers, stored as ranges: acknowledged records are nearly consecutive."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # each one past its range

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def __len__(self) -> int:
        return sum(end - start for start, end in zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Add the numbers from `start` to below `end`."""
        at = bisect_right(self._starts, start)
        if at and self._ends[at - 1] >= start:
            at -= 1
            start, end = self._starts[at], max(end, self._ends[at])
        last = at
        while last < len(self._starts) and self._starts[last] <= end:
            end = max(end, self._ends[last])
            last += 1
        self._starts[at:last], self._ends[at:last] = [start], [end]


@dataclass(frozen=True, slots=True)
class Entry:
    """The number of a record that is to be sent, and whether an earlier run may have sent it."""

    number: int
    doubt_s: float | None  #: seconds since an earlier run may have sent it; None if it certainly was not sent


class Journal:
    """A journal file, opened for one run; a context manager.

    Raises UsageError if the file is no journal, is damaged, or belongs to another address or input.
    """

    def __init__(self, path: str, *, target: str, how: str) -> None:
        """Open a journal. `target` is the address, `how` the options of all puts. Only their hashes are stored."""
        self.path = path
        self._lock = threading.Lock()
        self._input = hashlib.sha256()
        self._read = self._limit = 0
        self._stored, self._refused = Numbers(), Numbers()
        self._checks: list[tuple[int, str]] = []
        self._since: list[tuple[int, float]] = []
        self._old_limit = 0
        self._failed: OSError | None = None
        self._last = b""  # the checksum of the last line
        self.run = ""
        self.stored_before = 0  #: number of records that earlier runs stored
        self._file, self._fd = _open(path)
        try:
            self._load(_hash(target), _hash(how))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def key(self, number: int) -> str:
        """Return the idempotency key of a record, which is the same in every run."""
        return f"{self.run}-{number}"

    # reading the input, in one thread

    def left(self, records: Iterable[tuple[T, bytes]]) -> Iterator[tuple[T, Entry]]:
        """Yield the records that are not stored yet. Before a record is yielded, the journal has it as begun.

        Each of `records` is a record with the bytes that identify it. No record is yielded before the input up to there
        is compared with the hashes in the journal. Raises UsageError if the input is not the same.
        """
        held: list[tuple[T, Entry]] = []
        checks = iter(sorted(set(self._checks)))
        check = next(checks, None)
        number = 0
        for record, identity in records:
            with self._lock:
                self._input.update(len(identity).to_bytes(8, "big"))
                self._input.update(identity)
                self._read = number + 1
            if number not in self._stored:
                held.append((record, Entry(number, self._doubt_s(number))))
            number += 1
            known = check is None
            while check is not None and check[0] == number:
                self._check(check)
                check, known = next(checks, None), True
            if known:
                for entry in held:
                    self._begin(entry[1].number)
                    yield entry
                held.clear()
        if check is not None:
            raise self._other(f"it ends after {number} records")

    def _check(self, check: tuple[int, str]) -> None:
        if self._input.hexdigest()[:16] != check[1]:
            raise self._other(f"its first {check[0]} records differ")

    def _other(self, why: str) -> UsageError:
        return UsageError(
            f"the input is not the one of the journal {self.path}: {why}",
            hint="give the same input again, or begin another journal",
        )

    def _doubt_s(self, number: int) -> float | None:
        if number >= self._old_limit or number in self._refused:
            return None
        # the first `begun` line with a limit above the number has the time
        since = next((at for limit, at in self._since if number < limit), 0.0)
        return max(time.time() - since, 0.0)

    def _begin(self, number: int) -> None:
        if number >= self._limit:
            self._limit = number + _AHEAD
            with self._lock:
                self._append(f"begun {self._limit} {time.time():.0f}")

    # writing the outcomes, in another thread

    def stored(self, numbers: list[int]) -> None:
        """Write that these records are stored, and sync the file."""
        self._tell("ok", numbers)
        with self._lock:
            self._sync()

    def refused(self, numbers: list[int]) -> None:
        """Write that these records were refused, so that they are certainly not stored."""
        self._tell("no", numbers)

    def _tell(self, word: str, numbers: list[int]) -> None:
        with self._lock:
            line = f"{word} {_ranges(numbers)} {self._read} {self._input.hexdigest()[:16]}"
            self._append(line)

    # the file

    def _append(self, text: str) -> None:
        if self._failed is not None:
            raise self._unwritable(self._failed)
        line = text.encode("ascii")
        check = hashlib.sha256(self._last + line).hexdigest()[:16].encode("ascii")
        data = check + b" " + line + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._failed = error  # the file ends in half a line now: nothing may follow it
            raise self._unwritable(error) from error
        self._last = check

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write the journal {self.path}: {error.strerror}")

    def _load(self, target: str, how: str) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            whole = self._first(self._line(file), target, how)
            while whole and (line := self._line(file)):
                if not line.endswith(b"\n"):
                    break
                self._take(self._checked(line))
                whole += len(line)
        if whole < os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, whole)  # the beginning of a line that a kill cut off
        os.fchmod(self._fd, 0o600)
        self.stored_before = len(self._stored)
        self._old_limit = self._limit
        if not whole:
            self.run = secrets.token_hex(8)
            self._append(f"{_WORDS} {self.run} {target} {how}")
            self._sync()
            files.sync_folder(self._file.parent)

    def _line(self, file: IO[bytes]) -> bytes:
        line = file.readline(_MAX_LINE)
        if len(line) == _MAX_LINE:
            raise self._damaged("it holds what easq put did not write")
        return line

    def _first(self, line: bytes, target: str, how: str) -> int:
        """Check the first line. Return its length, 0 if the journal is empty."""
        if not line:
            return 0
        words = self._checked(line).split(" ")
        if " ".join(words[:2]) != _WORDS or len(words) != 5:
            raise self._damaged("it is no journal of easq put, or one of another version")
        self.run = words[2]
        for known, given, what in ((words[3], target, "address"), (words[4], how, "set of put options")):
            if known != given:
                raise UsageError(
                    f"the journal {self.path} belongs to another {what}",
                    hint="repeat the command as it was, or begin another journal",
                )
        return len(line)

    def _checked(self, line: bytes) -> str:
        """Return the text of a line. Raises UsageError for a wrong checksum."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise self._damaged("it holds what easq put did not write")
        check, text = match.groups()
        if hashlib.sha256(self._last + text).hexdigest()[:16].encode("ascii") != check:
            raise self._damaged(f"the checksum of {text[:40].decode()!r} is wrong")
        self._last = check
        return text.decode("ascii")

    def _take(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        parts = rest.split(" ")
        try:
            if word == "begun":
                self._limit = max(self._limit, int(parts[0]))
                self._since.append((int(parts[0]), float(parts[1])))
                return
            if word not in ("ok", "no"):
                raise ValueError
            into = self._stored if word == "ok" else self._refused
            for start, end in _parse(parts[0]):
                into.add(start, end)
            self._checks.append((int(parts[1]), parts[2]))
        except (ValueError, IndexError) as error:
            raise self._damaged(f"{text[:40]!r} says nothing") from error

    def _damaged(self, why: str) -> UsageError:
        return UsageError(
            f"the journal {self.path} cannot be trusted: {why}",
            hint="begin another journal; what it knew to be stored would be put again",
        )


def _open(path: str) -> tuple[Path, int]:
    """Open or create the journal. Return its real path, with the user's own links resolved, and its descriptor.

    Raises UsageError.
    """
    try:
        file = files.real_path(Path(path))
        fd = files.open_regular(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot use {path} as a journal: {getattr(error, 'strerror', error)}") from error
    try:
        files.lock(fd, wait=False)
    except BlockingIOError as error:
        os.close(fd)
        raise UsageError(f"the journal {path} is in use by another run") from error
    except OSError as error:
        os.close(fd)
        raise UsageError(f"cannot use {path} as a journal: {error.strerror}") from error
    return file, fd


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _ranges(numbers: list[int]) -> str:
    """Return ranges as text, such as `0-3,7`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] + 1 == number:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)


def _parse(text: str) -> Iterator[tuple[int, int]]:
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(text)
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first:
            raise ValueError(text)
        yield first, last + 1
