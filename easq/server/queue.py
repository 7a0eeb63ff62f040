"""The operations of one stream and their rules: limits, reserved tags, long polls, and who may watch.

A queue has two streams, its input and its sink. The states of an entry are drawn in `storage/rules/stream.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from easq.errors import AnotherWatcher, BadRequest, NotFound, PayloadTooLarge
from easq.model import (
    DELIVERY_COUNT,
    HEADER_PREFIX,
    NEWEST,
    NO_INDEX,
    PATH,
    REQUEST_ID,
    TS_SINK,
    TS_SOURCE,
    Ack,
    Attributes,
    Consumer,
    Frame,
    SearchResult,
)
from easq.protocol import operations as op
from easq.protocol.media_type import sniff
from easq.protocol.request_ids import new_request_id
from easq.server.dead_letters import answer, rear_copy
from easq.server.rate_limit import RateLimiter
from easq.storage.base import DeadLetterPolicy, Limits, Selection, Storage, Subscription, is_enough
from easq.storage.rules.scans import ScanLimit

#: the window of a watch that asks for none, and the highest that is granted, in items
DEFAULT_WINDOW, MAX_WINDOW = 10, 10_000
#: most items that an auto-committing watch has fetched and not yet written
AUTO_COMMIT_WINDOW = 64
#: most items in the answer to one get
MAX_LENGTH = 10_000
#: longest wait of a long poll, in seconds
MAX_WAIT_S = 3600.0
#: time between the answer to a long poll and its timeout, in seconds: the Python SDK's socket gives up at the timeout
ANSWER_EARLY_S = 0.2
#: time limit of one scan of a long poll, in seconds, even when less is left of its timeout
LEAST_SCAN_S = 0.5
#: time that a second watch under a consumer name waits for the end of the first, in seconds
TAKEOVER_WAIT_S = 1.0
#: pause between two checks of the first watch, in seconds
_POLL_S = 0.25
#: age of a session's last heartbeat from which another watch can take over its consumer name, in seconds
ALIVE_S = 5.0
#: suffix of the name of a rear store's stream
REAR_SUFFIX = "#rear"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TYPE_TAG, _ENCODING_TAG = f"{HEADER_PREFIX}Content-Type", f"{HEADER_PREFIX}Content-Encoding"
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Limits of a queue, and the number of failures that makes an item a dead letter."""

    max_payload: int = 8 * 1024**2  # bytes of one item
    limits: Limits = field(default_factory=Limits)
    max_failures: int = 5  # failures in one group until an item becomes a dead letter; 0: no limit


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks: `now`, monotonic seconds, for all rules; `wall_ms`, Unix milliseconds, for tags alone."""

    now: Callable[[], float]
    wall_ms: Callable[[], int]


def check_name(name: str) -> str:
    """Return `name`. Raises BadRequest unless it is 1-128 of `A-Z a-z 0-9 . _ -`."""
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise BadRequest(f"{name[:80]!r} is not a queue name: 1-128 of A-Z a-z 0-9 . _ -")
    return name


class Queue:
    """The operations of one stream. Its rear store, for dead letters, is another `Queue`."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        *,
        is_sink: bool,
        policy: QueuePolicy,
        clock: Clock,
        answers: Queue | None = None,
        is_rear: bool = False,
    ) -> None:
        """Prepare; `open` creates the stream.

        Args:
            answers: the sink of an input, which gets an answer to each dead letter; None for a sink.
        """
        self.name = name
        self.is_sink = is_sink
        self.policy = policy
        self.clock = clock
        self.storage = storage
        self.stream = f"{name}/sink" if is_sink else name
        self._answers = answers
        self.rear: Queue = self
        if is_rear:
            self.stream += REAR_SUFFIX
        else:
            self.rear = Queue(storage, name, is_sink=is_sink, policy=policy, clock=clock, is_rear=True)
        self._rate_limiter = RateLimiter()
        #: set when a session ends, and then replaced by a new event; several attaches may wait for one
        self._departure = asyncio.Event()

    async def open(self) -> None:
        """Create the stream and its rear store unless they exist."""
        if self.rear is self:
            await self.storage.open(self.stream)
            return
        await self.rear.open()
        await self.storage.open(
            self.stream,
            DeadLetterPolicy(
                self.policy.max_failures,
                self.rear.stream,
                self.policy.limits,
                rear_copy,
                "" if self._answers is None else self._answers.stream,
                lambda frame, failed: answer(frame, failed, self.clock.wall_ms()),
            ),
        )

    # -- put -------------------------------------------------------------------------------------------------------

    async def put(self, put: op.Put) -> Ack:
        """Store the item, once for an idempotency key, and return its index and request id.

        Raises PayloadTooLarge, QueueFull, BadRequest, StreamEnded and KeyReused; nothing is stored then.
        """
        if len(put.data) > self.policy.max_payload:
            raise self.too_large(len(put.data))
        tags = self._tags(put)
        return await self.storage.append(
            self.stream,
            Frame(NO_INDEX, tags, put.data),
            priority=put.priority,
            limits=self.policy.limits,
            key=put.key,
        )

    def too_large(self, size: int) -> PayloadTooLarge:
        """Return the error for a payload of `size` bytes."""
        return PayloadTooLarge(
            f"the payload has {size} bytes, an item may have {self.policy.max_payload}",
            hint="the limit is meta.maxPayloadBytes",
        )

    def _tags(self, put: op.Put) -> dict[str, str]:
        """Return the client's tags and the service's own.

        On the input, only the service sets `ts@*` and `Header:*`. On the sink, an engine sends these tags with the
        values of the input item. They override the headers of the engine's request.
        """
        if put.content_type and not _CONTENT_TYPE.fullmatch(put.content_type):
            raise BadRequest("the Content-Type is not 1-256 visible ASCII characters")
        tags = {_TYPE_TAG: put.content_type or sniff(put.data)}
        if put.content_encoding and _CONTENT_TYPE.fullmatch(put.content_encoding):
            tags[_ENCODING_TAG] = put.content_encoding
        for key, value in put.tags.items():
            if not self._is_reserved(key):
                tags[key] = value
        moment = self.clock.wall_ms()
        tags[TS_SINK if self.is_sink else TS_SOURCE] = str(moment)
        if put.path:
            tags[PATH] = put.path
        if not tags.get(REQUEST_ID):
            tags[REQUEST_ID] = new_request_id(moment)
        return tags

    def _is_reserved(self, tag: str) -> bool:
        """Return whether a tag is reserved: only the service sets it."""
        if self.is_sink:
            return tag in {TS_SINK, DELIVERY_COUNT}
        return tag.startswith((HEADER_PREFIX, "ts@")) or tag == DELIVERY_COUNT

    # -- get -------------------------------------------------------------------------------------------------------

    async def get(
        self,
        get: op.Get,
        *,
        is_gone: Callable[[], bool] = lambda: False,
        gone: Callable[[], asyncio.Future[None] | None] = lambda: None,
    ) -> list[Frame]:
        """Return the matching items. Wait until there are `length` items, at most until the timeout.

        With auto-delete the items are claimed: the caller has to `settle` them or to `give_back` them.

        Args:
            is_gone: returns whether the caller has disconnected, or the service stops. The list is then empty.
            gone: returns a future that is done when the caller disconnects, or None.
        """
        if get.length < 1:
            raise BadRequest(f"_length_={get.length}: it is 1 or more")
        length = min(get.length, MAX_LENGTH)
        start = get.index
        if start == NEWEST and get.timeout_s > 0:
            start = (await self.storage.attributes(self.stream, now=self.clock.now())).next
        selection = Selection(start, get.tags, length)
        deadline = self.clock.now() + answer_within(min(get.timeout_s, MAX_WAIT_S))
        has_waited = False
        while True:
            left = deadline - self.clock.now()
            if has_waited and is_gone():
                return []
            scan_s = max(left, LEAST_SCAN_S) if get.timeout_s > 0 else inf
            limit = ScanLimit(is_gone, asyncio.get_running_loop().time() + scan_s)
            frames = await self._get_now(get, selection, length if left > 0 else 1, limit)
            if left <= 0 or is_enough(frames, length):
                return frames
            left = deadline - self.clock.now()  # again: a scan of many entries can take seconds
            if is_gone():
                return []
            if left <= 0 and (not get.auto_delete or length == 1):
                return frames
            has_waited = True
            await self.storage.wait(
                self.stream,
                selection,
                taking=get.auto_delete and length == 1,
                timeout_s=max(0.0, left),
                gone=gone(),
            )

    async def wake_readers(self) -> None:
        """Wake every long poll, which then checks for items and for the end of its connection."""
        await self.storage.wake(self.stream)
        if self.rear is not self:
            await self.storage.wake(self.rear.stream)

    async def _get_now(
        self, get: op.Get, selection: Selection, minimum: int, limit: ScanLimit
    ) -> list[Frame]:
        if get.auto_delete:
            return await self.storage.take(self.stream, selection, minimum=minimum, limit=limit)
        return await self.storage.read(self.stream, selection, limit=limit)

    async def settle(self, frames: Sequence[Frame]) -> None:
        """Remove claimed items, once they were written to the caller."""
        await self.storage.settle(self.stream, [frame.index for frame in frames])

    async def give_back(self, frames: Sequence[Frame]) -> None:
        """Put claimed items back that could not be written to the caller."""
        await self.storage.release(self.stream, [frame.index for frame in frames])

    # -- other operations -------------------------------------------------------------------------------------------

    async def commit(self, consumer: Consumer, indexes: Sequence[int]) -> int:
        """Commit the items for the consumer's group, and return how many changed."""
        return await self.storage.commit(self.stream, consumer.group, indexes)

    async def negative(self, consumer: Consumer, negative: op.Negative) -> int:
        """Return the items to the consumer's group, and return how many changed."""
        return await self.storage.negative(self.stream, consumer.group, negative, now=self.clock.now())

    async def delete(self, indexes: Sequence[int]) -> int:
        """Delete the items for all groups, and return how many there were."""
        return await self.storage.delete(self.stream, indexes)

    async def truncate(self, below: int) -> int:
        """Delete all items with an index below `below` for all groups, and return how many there were."""
        return await self.storage.truncate(self.stream, below)

    async def search(self, consumer: Consumer, index: int) -> SearchResult:
        """Return where the item stands in the caller's group. Raises NotFound."""
        location = await self.storage.locate(self.stream, consumer.group, index)
        if location is None:
            raise NotFound("no data in stream")
        owner = "" if location.owner is None else location.owner
        return SearchResult(
            f"{consumer.group}.{owner}", is_pending=location.owner is not None, wait_count=location.ahead
        )

    async def count(self, count: op.Count, *, is_gone: Callable[[], bool] = lambda: False) -> int:
        """Return the number of matching items. Raises Unavailable when the caller disconnects during the count."""
        return await self.storage.count(
            self.stream, tags=count.tags, priority=count.priority, limit=ScanLimit(is_gone)
        )

    async def attributes(self) -> Attributes:
        """Return the attributes of the stream, with the keys of both generations of EAS."""
        stats = await self.storage.attributes(self.stream, now=self.clock.now())
        limits = self.policy.limits
        attributes = {
            "meta.name": self.name,
            "meta.state": "End" if stats.ended else "Normal",
            "meta.durability": self.storage.durability,
            "meta.maxPayloadBytes": str(self.policy.max_payload),
            "stream.maxPayloadBytes": str(self.policy.max_payload),
            **_HEADER_NAMES,
            "stream.approxMaxLength": str(limits.max_items),
            "stream.maxBytes": str(limits.max_bytes),
            "stream.bytes": str(stats.size),
            "stream.firstEntry": str(stats.first),
            "stream.lastEntry": str(stats.last),
            "stream.length": str(stats.length),
            "consumers.stats.total": str(len(stats.consumers)),
            "consumers.status.total": str(len(stats.consumers)),
        }
        if stats.epoch is not None:
            attributes["meta.epoch"] = str(stats.epoch)
        for position, consumer in enumerate(stats.consumers):
            attributes[f"consumers.list.[{position}]"] = consumer.text()
        for position, group in enumerate(stats.groups):
            attributes[f"groups.list.[{position}]"] = group.text()
        for position, text in enumerate(sorted(line.text() for line in stats.held)):
            attributes[f"groups.held.[{position}]"] = text
        return attributes

    async def end(self, end: op.End) -> None:
        """End the stream, or reopen it; `force` deletes its items."""
        await self.storage.end(self.stream, ended=not end.undo)
        if end.force:
            stats = await self.storage.attributes(self.stream, now=self.clock.now())
            await self.storage.truncate(self.stream, stats.next)

    # -- watchers --------------------------------------------------------------------------------------------------

    async def attach(self, consumer: Consumer, watch: op.Watch) -> int:
        """Begin a session of the consumer, and return its number.

        The session replaces a silent older one of the same consumer. A consumer that connects often is delayed. Raises
        AnotherWatcher when the older session is alive, and StreamEnded when the stream has ended and the group has no
        items left.
        """
        delay = self._rate_limiter.delay(consumer, self.clock.now())
        if delay > 0:
            await asyncio.sleep(delay)
        await self._wait_for_name(consumer, watch.process)
        window = min(watch.window or DEFAULT_WINDOW, MAX_WINDOW)
        after = NEWEST if watch.index == NEWEST else max(0, watch.index - 1)
        subscription = Subscription(
            AUTO_COMMIT_WINDOW if watch.auto_commit else window,
            after,
            tags=watch.tags,
            auto_commit=watch.auto_commit,
            process=watch.process,
        )
        return await self.storage.attach(self.stream, consumer, subscription, now=self.clock.now())

    async def _wait_for_name(self, consumer: Consumer, process: str) -> None:
        """Wait up to TAKEOVER_WAIT_S until no live session has the name. Raises AnotherWatcher.

        An older session of the same process counts as dead, since a process has only one connection for a consumer.
        """
        deadline = self.clock.now() + TAKEOVER_WAIT_S
        while True:
            departure = self._departure  # read before the check: a session may end during it
            now = self.clock.now()
            idle = await self.storage.idle(self.stream, consumer, now=now, process=process)
            if idle is None:
                return
            if now >= deadline:
                break
            try:
                # polls, since a session may also end at another server of the same storage
                await asyncio.wait_for(departure.wait(), min(deadline - now, _POLL_S))
            except TimeoutError:
                pass
        if idle < ALIVE_S:
            raise AnotherWatcher(
                f"consumer {consumer.id} is watching already",
                hint="give this one another name with --user",
            )

    async def heartbeat(self, session: int) -> None:
        """Record a heartbeat of the session."""
        await self.storage.active(self.stream, session, now=self.clock.now())

    async def detach(self, session: int, *, lost: bool) -> None:
        """End the session: its connection is `lost`, or was closed in order."""
        try:
            await self.storage.detach(self.stream, session, lost=lost, now=self.clock.now())
        finally:
            self._departure.set()
            self._departure = asyncio.Event()


def answer_within(timeout_s: float) -> float:
    """Return the seconds after which a long poll with this timeout is answered."""
    return max(timeout_s - ANSWER_EARLY_S, timeout_s / 2)


#: attributes that name the headers of identity and priority
_HEADER_NAMES: Mapping[str, str] = {
    "meta.header.user": "X-EAS-QueueService-Uid",
    "meta.header.group": "X-EAS-QueueService-Gid",
    "meta.header.priority": "X-EAS-QueueService-Priority",
    "meta.header.userIdentifyHeader": "X-EAS-QueueService-Uid",
    "meta.header.groupIdentifyHeader": "X-EAS-QueueService-Gid",
}
