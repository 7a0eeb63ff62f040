"""What a step made of a stream has to be stored: each change one row, or a few, of an engine that keeps things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from easq.model import Frame
from easq.storage.rules.effects import DeliveryRecord


@dataclass(frozen=True, slots=True)
class Stored:
    """The frame is stored under its index.

    `due_ms` and `expires_ms`, in Unix milliseconds, are the times before and after which it is not to be delivered.
    They are only stored; no rule reads them yet.
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
    """The idempotency keys of the stream with a lower number are forgotten."""

    stream: str
    below: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The entries are gone, with all that groups remember of them."""

    stream: str
    indexes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Truncated:
    """All entries under `below` are gone, with all that groups remember of them."""

    stream: str
    below: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The group has committed an entry, or given it up, that another group still holds."""

    stream: str
    group: str
    index: int
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class DeliveryRecorded:
    """What the group remembers of an entry."""

    stream: str
    group: str
    index: int
    record: DeliveryRecord


@dataclass(frozen=True, slots=True)
class GroupChanged:
    """The group is stored, replacing what was stored of it, or deleted.

    `filter` is the text of its filters; `left_ms` when its last consumer left, in Unix milliseconds.
    """

    stream: str
    group: str
    is_stored: bool
    filter: str = ""
    left_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream's end mark."""

    stream: str
    ended: bool


Change: TypeAlias = (
    Stored | Keyed | KeysForgotten | Removed | Truncated | Committed | DeliveryRecorded | GroupChanged | Ended
)
