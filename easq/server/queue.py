"""One stream and its rules: limits, reserved tags, long poll, who may watch. Storage decides nothing of this.

An input and its sink are two of these. Where an entry is in its life is drawn at the head of `storage/rules/stream.py`.
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
from easq.storage.base import Burial, Limits, Storage, Subscription, is_enough
from easq.storage.rules.scans import ScanLimit

#: `_window_` 0 or missing, and the highest that is granted
DEFAULT_WINDOW, MAX_WINDOW = 10, 10_000
#: an auto-committing watch has at most so many items between hand-out and write
AUTO_COMMIT_WINDOW = 64
#: one get answers at most so many items
MAX_LENGTH = 10_000
#: longest wait of a long poll, in seconds
MAX_WAIT_S = 3600.0
#: a long poll is answered so long before the asked time is over, in seconds: the Python SDK's socket gives up with it
ANSWER_EARLY_S = 0.2
#: each scan of a long poll may take so long, in seconds, even if less is left of the asked time
LEAST_SCAN_S = 0.5
#: a second watch of one name waits so long for the first to end, in seconds
TAKEOVER_WAIT_S = 1.0
#: how often it is looked for meanwhile, in seconds
_POLL_S = 0.25
#: the second watch is refused when the first one sent a heartbeat in the last so many seconds
ALIVE_S = 5.0
#: what a stream's name has more when it is a rear store
REAR_SUFFIX = "#rear"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TYPE_TAG, _ENCODING_TAG = f"{HEADER_PREFIX}Content-Type", f"{HEADER_PREFIX}Content-Encoding"
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What a queue takes: `max_payload` bytes an item, at most 30 MiB since the Go SDK reads frames of 32 MiB."""

    max_payload: int = 8 * 1024**2
    limits: Limits = field(default_factory=Limits)
    max_failures: int = 5  # an item is given up with so many in a group; 0: never


@dataclass(frozen=True, slots=True)
class Clock:
    """The two times: `now`, monotonic seconds for every rule, and `wall_ms`, Unix milliseconds for tags alone."""

    now: Callable[[], float]
    wall_ms: Callable[[], int]


def _is_own(tag: str) -> bool:
    """Whether the service alone says what this tag of an input item holds."""
    return tag.startswith((HEADER_PREFIX, "ts@")) or tag == DELIVERY_COUNT


def _is_own_of_sink(tag: str) -> bool:
    """The same of an item of the sink."""
    return tag in {TS_SINK, DELIVERY_COUNT}


def check_name(name: str) -> str:
    """`name`, when it may be a queue's: 1-128 of `A-Z a-z 0-9 . _ -`. Raises BadRequest."""
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise BadRequest(f"{name[:80]!r} is not a queue name: 1-128 of A-Z a-z 0-9 . _ -")
    return name


class Queue:
    """The operations of one stream, for any caller. Its rear store is another one, with all of them too."""

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
        self.name = name
        self.is_sink = is_sink
        self.policy = policy
        self.clock = clock
        self.storage = storage
        self.stream = f"{name}/sink" if is_sink else name
        self._answers = answers  # the sink, where an input item that nobody could do is answered
        self.rear: Queue = self
        if is_rear:
            self.stream += REAR_SUFFIX
        else:
            self.rear = Queue(storage, name, is_sink=is_sink, policy=policy, clock=clock, is_rear=True)
        self._rate_limiter = RateLimiter()
        #: set when a consumer leaves, and replaced: several may wait for it
        self._departure = asyncio.Event()

    async def open(self) -> None:
        """The stream and its rear store exist, with what they held before."""
        if self.rear is self:
            await self.storage.open(self.stream)
            return
        await self.rear.open()
        await self.storage.open(
            self.stream,
            Burial(
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
        """The item is stored, once for an idempotency key.

        Raises PayloadTooLarge, QueueFull, BadRequest, StreamEnded and KeyReused; then nothing is.
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
        """The error for a payload of `size` bytes."""
        return PayloadTooLarge(
            f"the payload has {size} bytes, an item may have {self.policy.max_payload}",
            hint="the limit is meta.maxPayloadBytes",
        )

    def _tags(self, put: op.Put) -> dict[str, str]:
        """The client's tags and the service's own.

        On the input `ts@*` and `Header:*` are the service's. On the sink an engine hands down what the input item
        had, so those that are given are kept and win over this request's headers.
        """
        if put.content_type and not _CONTENT_TYPE.fullmatch(put.content_type):
            raise BadRequest("the Content-Type is not 1-256 visible ASCII characters")
        tags = {_TYPE_TAG: put.content_type or sniff(put.data)}
        if put.content_encoding and _CONTENT_TYPE.fullmatch(put.content_encoding):
            tags[_ENCODING_TAG] = put.content_encoding
        is_own = _is_own_of_sink if self.is_sink else _is_own
        for key, value in put.tags.items():
            if not is_own(key):
                tags[key] = value
        moment = self.clock.wall_ms()
        tags[TS_SINK if self.is_sink else TS_SOURCE] = str(moment)
        if put.path:
            tags[PATH] = put.path
        if not tags.get(REQUEST_ID):
            tags[REQUEST_ID] = new_request_id(moment)
        return tags

    # -- get -------------------------------------------------------------------------------------------------------

    async def get(
        self,
        get: op.Get,
        *,
        is_gone: Callable[[], bool] = lambda: False,
        gone: Callable[[], asyncio.Future[None] | None] = lambda: None,
    ) -> list[Frame]:
        """What matches, waiting up to the timeout until `length` items do.

        With auto-delete the items are claimed: `settle` or `give_back` has to follow.

        Args:
            is_gone: tells whether the caller has disconnected, or the service stops; the list is then empty.
            gone: returns a future that is done when the caller disconnects, or None.
        """
        if get.length < 1:
            raise BadRequest(f"_length_={get.length}: it is 1 or more")
        length = min(get.length, MAX_LENGTH)
        start = get.index
        if start == NEWEST and get.timeout_s > 0:
            start = (await self.storage.attributes(self.stream, now=self.clock.now())).next
        deadline = self.clock.now() + answer_within(min(get.timeout_s, MAX_WAIT_S))
        waited = False
        while True:
            left = deadline - self.clock.now()
            if waited and is_gone():
                return []
            scan_s = max(left, LEAST_SCAN_S) if get.timeout_s > 0 else inf
            limit = ScanLimit(is_gone, asyncio.get_running_loop().time() + scan_s)
            frames = await self._get_now(get, start, length, length if left > 0 else 1, limit)
            if left <= 0 or is_enough(frames, length):
                return frames
            left = deadline - self.clock.now()  # a scan of many entries takes long
            if is_gone():
                return []
            if left <= 0 and (not get.auto_delete or length == 1):
                return frames
            waited = True
            await self.storage.wait(
                self.stream,
                start=start,
                tags=get.tags,
                taking=get.auto_delete and length == 1,
                timeout_s=max(0.0, left),
                gone=gone(),
            )

    async def wake_readers(self) -> None:
        """Every long poll looks again: whether there is something, and whether its caller is still there."""
        await self.storage.wake(self.stream)
        if self.rear is not self:
            await self.storage.wake(self.rear.stream)

    async def _get_now(
        self, get: op.Get, start: int, length: int, minimum: int, limit: ScanLimit
    ) -> list[Frame]:
        if get.auto_delete:
            return await self.storage.take(
                self.stream, start=start, length=length, tags=get.tags, minimum=minimum, limit=limit
            )
        return await self.storage.read(self.stream, start=start, length=length, tags=get.tags, limit=limit)

    async def settle(self, frames: Sequence[Frame]) -> None:
        """The claimed items were written to the caller: they are gone."""
        await self.storage.settle(self.stream, [frame.index for frame in frames])

    async def give_back(self, frames: Sequence[Frame]) -> None:
        """The claimed items could not be written to the caller: they are back."""
        await self.storage.release(self.stream, [frame.index for frame in frames])

    # -- the rest of the operations --------------------------------------------------------------------------------

    async def commit(self, consumer: Consumer, indexes: Sequence[int]) -> int:
        """The items are done for the consumer's group; returns how many counted."""
        return await self.storage.commit(self.stream, consumer.group, indexes)

    async def negative(self, consumer: Consumer, negative: op.Negative) -> int:
        """The items return to the consumer's group; returns how many counted."""
        return await self.storage.negative(
            self.stream,
            consumer.group,
            negative.indexes,
            code=negative.code,
            reason=negative.reason,
            now=self.clock.now(),
            delay_s=negative.delay_s,
        )

    async def delete(self, indexes: Sequence[int]) -> int:
        """The items are gone for all groups; returns how many there were."""
        return await self.storage.delete(self.stream, indexes)

    async def truncate(self, below: int) -> int:
        """All items under `below` are gone for all groups; returns how many there were."""
        return await self.storage.truncate(self.stream, below)

    async def search(self, consumer: Consumer, index: int) -> SearchResult:
        """Where the item stands in the caller's group. Raises NotFound when it is not present."""
        location = await self.storage.locate(self.stream, consumer.group, index)
        if location is None:
            raise NotFound("no data in stream")
        owner = "" if location.owner is None else location.owner
        return SearchResult(f"{consumer.group}.{owner}", location.owner is not None, location.ahead)

    async def count(self, count: op.Count, *, is_gone: Callable[[], bool] = lambda: False) -> int:
        """How many items match. Raises Unavailable when the caller `is_gone` before they are counted."""
        return await self.storage.count(
            self.stream, tags=count.tags, priority=count.priority, limit=ScanLimit(is_gone)
        )

    async def attributes(self) -> Attributes:
        """The stream as the wire tells it, with the keys of both generations of the service."""
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
        """The stream takes no more items, or takes them again; `force` drops what is there."""
        await self.storage.end(self.stream, ended=not end.undo)
        if end.force:
            stats = await self.storage.attributes(self.stream, now=self.clock.now())
            await self.storage.truncate(self.stream, stats.next)

    # -- watchers --------------------------------------------------------------------------------------------------

    async def attach(self, consumer: Consumer, watch: op.Watch) -> int:
        """The consumer has a connection. A live older one of the same name refuses it, a silent one is replaced.

        One that connects again and again is answered ever later. Raises AnotherWatcher; StreamEnded when the stream
        ended and nothing is left for the group.
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
            watch.tags,
            watch.auto_commit,
            watch.process,
        )
        return await self.storage.attach(self.stream, consumer, subscription, now=self.clock.now())

    async def _wait_for_name(self, consumer: Consumer, process: str) -> None:
        """Wait up to TAKEOVER_WAIT_S until no live connection has the name. Raises AnotherWatcher.

        A connection of the same process is dead: a process has one connection under a name.
        """
        deadline = self.clock.now() + TAKEOVER_WAIT_S
        while True:
            departure = self._departure  # from before the look: a departure in between is not missed
            now = self.clock.now()
            idle = await self.storage.idle(self.stream, consumer, now=now, process=process)
            if idle is None:
                return
            if now >= deadline:
                break
            try:
                # another server of the same storage does not tell of departures: hence the polling
                await asyncio.wait_for(departure.wait(), min(deadline - now, _POLL_S))
            except TimeoutError:
                pass
        if idle < ALIVE_S:
            raise AnotherWatcher(
                f"consumer {consumer.id} is watching already",
                hint="give this one another name with --user",
            )

    async def heard(self, session: int) -> None:
        """The connection showed life."""
        await self.storage.active(self.stream, session, now=self.clock.now())

    async def detach(self, session: int, *, lost: bool) -> None:
        """The connection is gone."""
        try:
            await self.storage.detach(self.stream, session, lost=lost, now=self.clock.now())
        finally:
            self._departure.set()
            self._departure = asyncio.Event()


def answer_within(timeout_s: float) -> float:
    """How long a long poll may take when the caller asked for `timeout_s`."""
    return max(timeout_s - ANSWER_EARLY_S, timeout_s / 2)


_HEADER_NAMES: Mapping[str, str] = {
    "meta.header.user": "X-EAS-QueueService-Uid",
    "meta.header.group": "X-EAS-QueueService-Gid",
    "meta.header.priority": "X-EAS-QueueService-Priority",
    "meta.header.userIdentifyHeader": "X-EAS-QueueService-Uid",
    "meta.header.groupIdentifyHeader": "X-EAS-QueueService-Gid",
}
