"""Possible contents of a disk after a power cut: images made from a trace of a service's writes, syncs and answers.

A write that was not synced when the power went may be on the disk, or not, or in part: each of its 512-byte sectors is
kept or dropped by chance. What was synced is there. An answer counts as given when its send *began*, a sync as done
when it *ended*.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
#: traces what matters, with all bytes in hexadecimal; -D: the service is the child of whoever started strace
STRACE = (
    *("strace", "-D", "-f", "-y", "-xx", "-s", "4194304"),
    *("-e", "trace=pwrite64,write,ftruncate,fsync,fdatasync,sendto,sendmsg,writev"),
)

_START = re.compile(r"^(\d+) +(\w+)\(\d+<((?:\\x[0-9a-f]{2})*)>(.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True)
class Write:
    """A write to a file at an offset has begun."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A truncation of a file to a length has begun."""

    file: str
    length: int


@dataclass(frozen=True)
class Sync:
    """All writes to the file that had begun before number `upto` of the events are on the disk."""

    file: str
    upto: int


@dataclass(frozen=True)
class Send:
    """Sending these bytes to a client has begun."""

    data: bytes


Event = Write | Truncate | Sync | Send


def read_trace(path: Path, files: Sequence[str]) -> list[Event]:
    """The events of a trace, in order; of files those whose names end with one of `files`."""
    events: list[Event] = []
    syncing: dict[str, tuple[str, int]] = {}  # thread -> (file, number of events when its sync began)
    with path.open(encoding="ascii") as lines:
        for line in lines:
            started = _START.match(line)
            if started:
                thread, call, name, rest = started.groups()
                target = _decoded(name).decode(errors="replace")
                events += _started(call, target, rest, files)
                if call in {"fsync", "fdatasync"} and target.endswith(tuple(files)):
                    syncing[thread] = (target, len(events))
                    if rest.rstrip().endswith("= 0"):
                        events.append(Sync(*syncing.pop(thread)))
                continue
            resumed = _RESUMED.match(line)
            if resumed and resumed[2] in {"fsync", "fdatasync"} and resumed[1] in syncing:
                assert resumed[3].rstrip().endswith("= 0"), line
                events.append(Sync(*syncing.pop(resumed[1])))
    return events


def _started(call: str, target: str, rest: str, files: Sequence[str]) -> Iterator[Event]:
    pieces = [_decoded(found[1]) for found in _BYTES.finditer(rest)]
    assert not any(found[2] for found in _BYTES.finditer(rest)), "the trace cuts data off"
    if target.startswith(("socket:", "TCP:")):
        if call in {"sendto", "sendmsg", "write", "writev"}:
            yield Send(b"".join(pieces))
    elif target.endswith(tuple(files)):
        if call == "pwrite64":
            (offset,) = re.findall(r'", \d+, (\d+)', rest)
            yield Write(target, int(offset), pieces[0])
        elif call == "ftruncate":
            (length,) = re.findall(r"^, (\d+)", rest)
            yield Truncate(target, int(length))
        else:
            assert call in {"fsync", "fdatasync"}, (call, target)


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class _File:
    durable: bytearray
    pending: list[tuple[int, Write | Truncate]] = field(default_factory=list)  # with the number of the event

    def apply(self, change: Write | Truncate, content: bytearray) -> None:
        if isinstance(change, Truncate):
            del content[change.length :]
            content.extend(bytes(change.length - len(content)))
            return
        end = change.offset + len(change.data)
        content.extend(bytes(max(0, end - len(content))))
        content[change.offset : end] = change.data

    def sync(self, upto: int) -> None:
        for number, change in self.pending:
            if number < upto:
                self.apply(change, self.durable)
        self.pending = [(number, change) for number, change in self.pending if number >= upto]

    def after_a_cut(self, chance: random.Random, kept: float) -> bytes:
        content = bytearray(self.durable)
        for _, change in self.pending:
            if isinstance(change, Truncate):
                if chance.random() < kept:
                    self.apply(change, content)
                continue
            for sector in _sectors(change):
                if chance.random() < kept:
                    self.apply(sector, content)
        return bytes(content)


def _sectors(write: Write) -> Iterator[Write]:
    at = 0
    while at < len(write.data):
        size = min(SECTOR - (write.offset + at) % SECTOR, len(write.data) - at)
        yield Write(write.file, write.offset + at, write.data[at : at + size])
        at += size


@dataclass(frozen=True)
class Image:
    """The files as a cut left them, and how many events had happened."""

    files: dict[str, bytes]
    events: int


def images(
    events: Sequence[Event], before: dict[str, bytes], count: int, seed: int, first: int = 0
) -> Iterator[Image]:
    """`count` cuts at random moments after event `first`; `before` holds the files as the trace found them."""
    chance = random.Random(seed)
    moments = sorted(chance.randrange(first, len(events) + 1) for _ in range(count))
    files = {name: _File(bytearray(content)) for name, content in before.items()}
    number = 0
    for moment in moments:
        while number < moment:
            event = events[number]
            if isinstance(event, (Write, Truncate)):
                files.setdefault(event.file, _File(bytearray())).pending.append((number, event))
            elif isinstance(event, Sync):
                files.setdefault(event.file, _File(bytearray())).sync(event.upto)
            number += 1
        kept = chance.choice((0.0, 0.5, 0.9, 1.0, chance.random()))
        yield Image({name: file.after_a_cut(chance, kept) for name, file in files.items()}, moment)
