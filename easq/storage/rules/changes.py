"""The changes that a step of a stream asks to be stored: one row each, or a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from easq.model import Frame
from easq.storage.rules.effects import DeliveryRecord


@dataclass(frozen=True, slots=True)
class Stored:
    """The frame is stored under its index.

    `due_ms` and `expires_ms` are the times before and after which it must not be delivered, in Unix milliseconds. They
    are only stored; no rule reads them yet.
    """

    stream: str
    frame: Frame
    priority: int
    due_ms: int | None = None
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Keyed:
    """The idempotency key has stored an item whose data has this SHA-256."""

    stream: str
    key: str
    index: int
    request_id: str
    digest: bytes
    number: int


@dataclass(frozen=True, slots=True)
class KeysForgotten:
    """The idempotency keys of the stream with a lower number are deleted."""

    stream: str
    below: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The entries are deleted, with their state in all groups."""

    stream: str
    indexes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Truncated:
    """All entries below `below` are deleted, with their state in all groups."""

    stream: str
    below: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The group has committed an entry, or given it up, that another group still retains."""

    stream: str
    group: str
    index: int
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class DeliveryRecorded:
    """The delivery record of an entry in the group has changed."""

    stream: str
    group: str
    index: int
    record: DeliveryRecord


@dataclass(frozen=True, slots=True)
class GroupChanged:
    """The group is stored, replacing the stored one, or deleted (`is_stored` is False).

    `filter` is the text of its filters; `left_ms` is the time at which its last consumer left, in Unix milliseconds.
    """

    stream: str
    group: str
    is_stored: bool
    filter: str = ""
    left_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The end mark of the stream."""

    stream: str
    ended: bool


Change: TypeAlias = (
    Stored | Keyed | KeysForgotten | Removed | Truncated | Committed | DeliveryRecorded | GroupChanged | Ended
)
