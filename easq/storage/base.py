"""The Storage interface: the behaviour of each verb, on one page.

A stream is named by text (`NAME` for an input, `NAME/sink` for its sink). Each verb is one atomic step: it happens
whole or not at all, also across a crash, and it is durable (at the level of the engine) when the await returns. Policy
belongs to the caller: limits of a put, who may take over a name, when a silent connection is lost. `now` is a time of a
monotonic clock, in seconds.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from easq.model import NO_INDEX, Ack, Consumer, Frame, Tags
from easq.protocol.attributes import ConsumerLine, GroupLine, HeldLine
from easq.protocol.operations import Negative
from easq.storage.rules.scans import NO_SCAN_LIMIT, ScanLimit

#: most payload bytes that one read returns
MOST_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a stream may hold. With `evict`, the oldest items are dropped to make room, otherwise a put is
    refused.
    """

    max_items: int = 1_000_000
    max_bytes: int = 10 * 1024**3
    evict: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """The waiting times of the rules, in seconds."""

    #: time after which a lost consumer's items go to others; the same user gets them at once
    leave_grace_s: float = 2.0
    #: time for which a group retains items after its last consumer left
    group_retention_s: float = 60.0
    #: delay before the redelivery that follows the k-th failure; the last value goes for all further ones
    backoff_s: tuple[float, ...] = (0.0, 1.0, 5.0, 15.0, 60.0)
    #: total time after which a busy item has failed, waiting or at a consumer; 0: no limit
    busy_limit_s: float = 600.0
    #: time for which a consumer that left is still listed
    forget_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Subscription:
    """The parameters of a watch. `window` is at least 1; `after` is the highest index that is not wanted.

    `process` names the process of the consumer, or is empty. A process that reconnects within the grace period keeps
    its pending items.
    """

    window: int
    after: int = NO_INDEX
    tags: Tags = field(default_factory=dict)
    auto_commit: bool = False
    process: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """The items with an index of at least `start` and with all of `tags`, at most `length`. NEWEST is the last item."""

    start: int
    tags: Tags = field(default_factory=dict)
    length: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a group gave an item up: its deliveries and failures there, and the last code and reason."""

    group: str
    deliveries: int
    failures: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetterPolicy:
    """The policy for an item that has failed `max_failures` times in a group (0: it is never given up).

    `rear_copy` makes the dead letter, which is appended to the stream `rear` in the same step in which the item counts
    as committed for the group. Without room there (`rear_limits`) the item stays. When the last group has given the
    item up and no group committed it, `answer` is appended to the stream `sink`, where somebody may wait for a result;
    no limit applies there.
    """

    max_failures: int
    rear: str
    rear_limits: Limits
    rear_copy: Callable[[Frame, Failure], Frame]
    sink: str = ""
    answer: Callable[[Frame, Failure], Frame] = lambda frame, _: frame


@dataclass(frozen=True, slots=True)
class Lease:
    """One item that is delivered to a connection: the frame, and its delivery count in the group, including this
    one.
    """

    frame: Frame
    deliveries: int


@dataclass(frozen=True, slots=True)
class StreamStats:
    """The state of a stream as attributes show it; claimed items count as removed.

    `epoch` is the number of times that acknowledged items may have been lost; None if the engine does not count it.
    """

    length: int
    size: int
    first: int
    last: int
    next: int
    ended: bool
    consumers: Sequence[ConsumerLine]
    groups: Sequence[GroupLine]
    held: Sequence[HeldLine]
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """The place of an item for a group: the user at which it is pending, else the number of items before it."""

    owner: str | None
    ahead: int


def is_enough(frames: Sequence[Frame], wanted: int) -> bool:
    """Return whether a read returned the `wanted` number of items, or as many as one answer may hold (an item has at
    most 30 MiB).
    """
    return len(frames) >= wanted or sum(len(frame.data) for frame in frames) > MOST_BYTES // 2


class Storage(ABC):
    """Stores the entries of streams, and delivers them. `open` comes first: unknown streams raise KeyError."""

    #: the word for `meta.durability`: fsync, os, memory, redis-fsync ...
    durability: str
    #: a warning for the operator, shown at the start; empty if there is none
    caution: str = ""

    @abstractmethod
    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        """Start the engine. `on_failure` is called once if it fails later; nothing is acknowledged after that.

        Raises StorageError when the storage belongs to another program, is damaged or locked.
        """

    @abstractmethod
    async def close(self) -> None:
        """Store all that was acknowledged, close files, and release the lock."""

    @abstractmethod
    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        """Open the stream, and create it if it does not exist. Stored items are there, and pending ones are ready.

        The streams that `dead_letters` names are opened first.
        """

    @abstractmethod
    async def streams(self) -> Sequence[str]:
        """Return the names of all stored streams, opened or not."""

    @abstractmethod
    async def append(self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = "") -> Ack:
        """Store the item under a new index, higher than any before; it may be read and delivered from then on.

        If the idempotency `key` stored an item before, nothing is stored, and the answer is the first one, even if that
        item was consumed since. Keys are stored for 10 minutes, and the last 100,000 of the stream, at least. Raises
        KeyReused when that item had other data.

        Raises QueueFull and StreamEnded (nothing is stored); StorageError when it is unknown whether it was stored.
        """

    @abstractmethod
    async def read(
        self, stream: str, selection: Selection, *, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        """Return the items of the selection, by index. Nothing changes.

        More than MOST_BYTES of payload end the list early, after one item at least. When the time of `limit` is over,
        the list has the items found until then. Raises Unavailable when its caller is gone before all entries were
        examined.
        """

    @abstractmethod
    async def take(
        self, stream: str, selection: Selection, *, minimum: int, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        """Return what `read` returns, and claim these items: they are hidden from everyone until `release` or `settle`.

        With fewer than `minimum` matches (see `is_enough`) nothing is claimed, and the list is empty.
        """

    @abstractmethod
    async def release(self, stream: str, indexes: Sequence[int]) -> None:
        """Show claimed items again if they still exist. If the storage is away, this is done once it is back."""

    @abstractmethod
    async def settle(self, stream: str, indexes: Sequence[int]) -> None:
        """Delete claimed items for all groups. If the storage is away, this is done once it is back."""

    @abstractmethod
    async def wait(
        self,
        stream: str,
        selection: Selection,
        *,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        """Return when an item of the selection may have arrived, after `timeout_s`, or when `gone` is done.

        An item wakes only one wait with `taking`. If its caller is gone, the item wakes the next one.
        """

    @abstractmethod
    async def wake(self, stream: str) -> None:
        """End every `wait`: a woken reader has left without taking its item, or the service stops."""

    @abstractmethod
    async def attach(self, stream: str, consumer: Consumer, subscription: Subscription, *, now: float) -> int:
        """Add a connection of the consumer, and return its number, which is never used again.

        An older connection of the consumer is closed. A new connection of the same process gets the pending items of
        the older one. Raises StreamEnded.
        """

    @abstractmethod
    async def detach(self, stream: str, session: int, *, lost: bool, now: float) -> None:
        """Remove the connection. Items of a closed connection are ready at once. Items of a lost connection are ready
        at once for the same user, and after the grace period for others.

        A lost connection counts as a failure of its items unless their process reconnects within the grace period. For
        a consumer that names no process, the first `FREE_LOSSES` losses of an item do not count.
        """

    @abstractmethod
    async def lease(self, stream: str, session: int, *, index_only: bool) -> list[Lease]:
        """Wait for items for this connection, and return them; they are pending there.

        Returns none when the connection was replaced. Raises StreamEnded when the stream has ended, and its group has
        committed everything.
        """

    @abstractmethod
    async def still_leased(self, stream: str, session: int, index: int) -> bool:
        """Return whether a leased item is still pending at the connection and will not be leased to it again.

        Called right before the item is sent: the process may have stood still since the lease, and another consumer may
        have got and committed the item.
        """

    @abstractmethod
    async def commit(self, stream: str, group: str, indexes: Sequence[int]) -> int:
        """Commit the items for `group`, which never gets them again; return how many were present and not yet
        committed.

        An item that no other group retains is removed. A group retains the items that it has not committed and that
        match the filter of one of its consumers, or of one that left within the retention period.
        """

    @abstractmethod
    async def negative(
        self,
        stream: str,
        group: str,
        negative: Negative,
        *,
        now: float,
    ) -> int:
        """Make those of the items that are pending in `group` ready again after the back-off, and return how many.

        They go to another consumer than before, if there is one. Code Shutdown: at once, without counting a failure.
        Code Busy: after `delay_s`; it counts as a failure only once the item was busy for `busy_limit_s` in all.
        """

    @abstractmethod
    async def delete(self, stream: str, indexes: Sequence[int]) -> int:
        """Delete the items for all groups, pending or not; return how many were present."""

    @abstractmethod
    async def truncate(self, stream: str, below: int) -> int:
        """Delete all items with an index lower than `below` for all groups; return how many there were.

        The numbering of later items continues. Many items are deleted in steps, the oldest first: after a crash in
        between, the rest is still there.
        """

    @abstractmethod
    async def locate(self, stream: str, group: str, index: int) -> Location | None:
        """Return the place of the item for `group`; None when it is not present."""

    @abstractmethod
    async def count(
        self, stream: str, *, tags: Tags, priority: int | None, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> int:
        """Return how many items are present with all of `tags` and, if given, of this priority.

        Raises Unavailable when the caller of `limit` is gone before all entries were examined.
        """

    @abstractmethod
    async def attributes(self, stream: str, *, now: float) -> StreamStats:
        """Return the present state of the stream."""

    @abstractmethod
    async def sessions(self, stream: str) -> Mapping[Consumer, int]:
        """Return the connected consumers and the numbers of their connections."""

    @abstractmethod
    async def active(self, stream: str, session: int, *, now: float) -> None:
        """Record a heartbeat of the connection at `now`."""

    @abstractmethod
    async def idle(self, stream: str, consumer: Consumer, *, now: float, process: str = "") -> float | None:
        """Return the seconds since the last heartbeat of the consumer's connection; None if it has none at any server,
        or one of the same `process`.
        """

    @abstractmethod
    async def end(self, stream: str, *, ended: bool) -> None:
        """Set or remove the end mark of the stream."""
