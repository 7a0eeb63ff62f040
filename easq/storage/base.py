"""The Storage interface: one page, what holds after each verb.

A stream is named by text (`NAME` for an input, `NAME/sink` for its sink). Each verb is one atomic step: it happens
whole or not at all, also across a crash, and has happened durably (at the engine's level) when the await returns.
Policy (limits of a put, who may take over a name, when a silent connection is lost) is the caller's. Rules that need
the time are given `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from easq.model import NO_INDEX, Ack, Consumer, Frame, Tags
from easq.protocol.replies import ConsumerLine, GroupLine, HeldLine
from easq.storage.rules.scans import NO_SCAN_LIMIT, ScanLimit

#: one read answers at most so many bytes of payload
MOST_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stream may hold; `evict` drops the oldest items to make room, otherwise a put is refused."""

    max_items: int = 1_000_000
    max_bytes: int = 10 * 1024**3
    evict: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the rules wait, in seconds."""

    #: a lost consumer's items go to others after this; the same user gets them at once
    leave_grace_s: float = 2.0
    #: a group holds items back this long after its last consumer left
    group_retention_s: float = 60.0
    #: delay before the redelivery that follows the k-th failure; the last value goes for all further ones
    backoff_s: tuple[float, ...] = (0.0, 1.0, 5.0, 15.0, 60.0)
    #: an item that was busy for so long in all, waiting or at a consumer, has failed; 0: no limit
    busy_limit_s: float = 600.0
    #: consumers that left are listed this long
    forget_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a watch asks for. `window` is at least 1; `after` the highest index that is not wanted.

    `process` names the consumer's process, or is empty: a process that reconnects within the grace period keeps its
    pending items.
    """

    window: int
    after: int = NO_INDEX
    tags: Tags = field(default_factory=dict)
    auto_commit: bool = False
    process: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a group gave an item up: how often it was delivered and failed there, and the last code and reason."""

    group: str
    deliveries: int
    failures: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetterPolicy:
    """What becomes of an item that failed `max_failures` times in a group (0: it is never given up).

    `rear_copy` is appended to the stream `rear`, in the same step in which the item counts as committed for the group;
    without room there (`rear_limits`) the item stays. When the last group gave it up and none committed, `answer` is
    appended to the stream `sink`, where somebody may wait for a result; no limit holds there.
    """

    max_failures: int
    rear: str
    rear_limits: Limits
    rear_copy: Callable[[Frame, Failure], Frame]
    sink: str = ""
    answer: Callable[[Frame, Failure], Frame] = lambda frame, _: frame


@dataclass(frozen=True, slots=True)
class Lease:
    """One item handed to a consumer connection: the frame, and how often it was delivered to the group, this time
    included.
    """

    frame: Frame
    deliveries: int


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What attributes tell of a stream at one moment; claimed items count as gone.

    `epoch` counts how often acknowledged items may have been lost, where the engine can tell.
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
    """Where an item stands for a group: its owner's user name if pending, else how many items would be pushed
    before it.
    """

    owner: str | None
    ahead: int


def is_enough(frames: Sequence[Frame], wanted: int) -> bool:
    """Whether a read gave all that was asked for, or as many bytes as one answer holds (no item is above 30 MiB)."""
    return len(frames) >= wanted or sum(len(frame.data) for frame in frames) > MOST_BYTES // 2


class Storage(ABC):
    """Where entries live. Unknown streams raise KeyError: `open` comes first."""

    #: the word for `meta.durability`: fsync, os, memory, redis-fsync ...
    durability: str
    #: a warning for the operator, shown at the start; empty if there is none
    caution: str = ""

    @abstractmethod
    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        """The engine is ready. `on_failure` is called once if it fails later; nothing is acknowledged after that.

        Raises StorageError when the storage is foreign, damaged or locked.
        """

    @abstractmethod
    async def close(self) -> None:
        """All that was acknowledged is stored, files are closed and the lock is free."""

    @abstractmethod
    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        """The stream exists; what it held before is there, and what was pending is ready.

        The streams that `dead_letters` names are opened first.
        """

    @abstractmethod
    async def streams(self) -> Sequence[str]:
        """The names of all stored streams, opened or not."""

    @abstractmethod
    async def append(self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = "") -> Ack:
        """The item is stored under a new index, higher than any before, and may be read and delivered.

        With an idempotency `key` that stored an item before, nothing happens, and the answer is the first one's, also
        when that item is long consumed: for 10 minutes, and for the last 100,000 keys of the stream, at least.
        Raises KeyReused when that item had other data.

        Raises QueueFull and StreamEnded (nothing stored); StorageError when it is not known whether it was stored.
        """

    @abstractmethod
    async def read(
        self, stream: str, *, start: int, length: int, tags: Tags, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        """Up to `length` items with index >= `start` and all of `tags`, by index. Nothing changes.

        More than MOST_BYTES of payload end the list early, after one item at least. `start` NEWEST is the last item.
        When the time of `limit` is over, the list is what was found until then. Raises Unavailable when its caller is
        gone before all entries were examined.
        """

    @abstractmethod
    async def take(
        self,
        stream: str,
        *,
        start: int,
        length: int,
        tags: Tags,
        minimum: int,
        limit: ScanLimit = NO_SCAN_LIMIT,
    ) -> list[Frame]:
        """As `read`, and the items are claimed: gone for everyone until `release`, for good with `settle`.

        Fewer than `minimum` matches (see `is_enough`): nothing is claimed, and the answer is empty.
        """

    @abstractmethod
    async def release(self, stream: str, indexes: Sequence[int]) -> None:
        """Claimed items that still exist are back where they were; if the storage is away, once it is there again."""

    @abstractmethod
    async def settle(self, stream: str, indexes: Sequence[int]) -> None:
        """Claimed items are gone for all groups; if the storage is away, once it is there again."""

    @abstractmethod
    async def wait(
        self,
        stream: str,
        *,
        start: int,
        tags: Tags,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        """Return when a matching item may have arrived, after `timeout_s`, or when `gone` is done.

        An item wakes one taker (`taking`); if that one is gone, the next.
        """

    @abstractmethod
    async def wake(self, stream: str) -> None:
        """Every `wait` returns: a reader that was woken has left without taking, or the service stops."""

    @abstractmethod
    async def attach(self, stream: str, consumer: Consumer, subscription: Subscription, *, now: float) -> int:
        """A connection of the consumer is known, under a number never given before; an older one of the same name
        is closed. A new connection of the same process gets the pending items of the older one.
        """

    @abstractmethod
    async def detach(self, stream: str, session: int, *, lost: bool, now: float) -> None:
        """The connection is gone. Closed: its items are ready at once. Lost: at once for the same user, for others
        after the grace.

        A lost connection counts as a failure of its items unless their process reconnects within the grace period. For
        a consumer that names no process, the first `FREE_LOSSES` losses of an item do not count.
        """

    @abstractmethod
    async def lease(self, stream: str, session: int, *, index_only: bool) -> list[Lease]:
        """Waits until items are there for this connection and returns them, pending at it.

        Empty: the connection was replaced. Raises StreamEnded when the stream ended and its group has committed all.
        """

    @abstractmethod
    async def still_leased(self, stream: str, session: int, index: int) -> bool:
        """Return whether a leased item is still pending at the connection and will not be leased to it again.

        To be asked right before the item is sent: the process may have stood still since the lease, and others may
        have got and committed the item.
        """

    @abstractmethod
    async def commit(self, stream: str, group: str, indexes: Sequence[int]) -> int:
        """The items are done for `group` and never delivered to it again; returns how many were present and not
        yet committed.

        An item that no other group retains is removed. A group retains the items that it has not committed and that
        match the filter of one of its consumers, or of one that left within the retention period.
        """

    @abstractmethod
    async def negative(
        self,
        stream: str,
        group: str,
        indexes: Sequence[int],
        *,
        code: str,
        reason: str,
        now: float,
        delay_s: float | None = None,
    ) -> int:
        """Make items that are pending in `group` ready again after the back-off, and return how many.

        They go to another consumer than before, if there is one. Code Shutdown: at once, without counting a failure.
        Code Busy: after `delay_s`; it counts as a failure only once the item was busy for `busy_limit_s` in all.
        """

    @abstractmethod
    async def delete(self, stream: str, indexes: Sequence[int]) -> int:
        """The items are gone for all groups, pending or not; returns how many were present."""

    @abstractmethod
    async def truncate(self, stream: str, below: int) -> int:
        """All items with an index lower than `below` are gone for all groups; returns how many. Later indexes go
        on from before. Many are removed in steps, the oldest first; a crash in between keeps the rest.
        """

    @abstractmethod
    async def locate(self, stream: str, group: str, index: int) -> Location | None:
        """Where the item stands for `group`; None when it is not present."""

    @abstractmethod
    async def count(
        self, stream: str, *, tags: Tags, priority: int | None, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> int:
        """How many items are present with all of `tags` and, if given, of this priority class.

        Raises Unavailable when the caller of `limit` is gone before all entries were examined.
        """

    @abstractmethod
    async def attributes(self, stream: str, *, now: float) -> StreamStats:
        """The stream as it is at this moment."""

    @abstractmethod
    async def sessions(self, stream: str) -> Mapping[Consumer, int]:
        """The connected consumers and their connection numbers."""

    @abstractmethod
    async def active(self, stream: str, session: int, *, now: float) -> None:
        """The connection showed life at `now`."""

    @abstractmethod
    async def idle(self, stream: str, consumer: Consumer, *, now: float, process: str = "") -> float | None:
        """Return the seconds since the last heartbeat of the consumer's connection; None if it has none at any server,
        or one of the same `process`.
        """

    @abstractmethod
    async def end(self, stream: str, *, ended: bool) -> None:
        """The stream's end mark is stored or taken back."""
