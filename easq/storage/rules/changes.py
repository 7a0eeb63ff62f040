"""The changes that an engine stores after a step of a stream: one or a few rows each."""

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
    """An item was stored under the idempotency key; `digest` is the SHA-256 of its data."""

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
    """The group has committed an entry, or has given it up; another group still retains the entry."""

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
    """The state of a group is stored in place of the earlier one, or deleted if `is_stored` is False.

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
