"""The engine on Redis, for any number of servers. Every rule runs in a Lua script; this module calls the scripts.

The regular duties of a server (its lease, what is due, servers that are gone) are in `heartbeat.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from easq.errors import EasqError, KeyReused, QueueFull, StorageError, StreamEnded, Unavailable
from easq.model import DELIVERY_COUNT, NEWEST, Ack, Consumer, Frame, Tags
from easq.protocol.attributes import ConsumerLine, GroupLine, HeldLine
from easq.protocol.operations import Negative
from easq.storage.base import (
    MOST_BYTES,
    DeadLetterPolicy,
    Lease,
    Limits,
    Location,
    Selection,
    Storage,
    StreamStats,
    Subscription,
    Timing,
)
from easq.storage.redis.codec import TOP, index_texts, pack_tags, read_frame, unpack_tags
from easq.storage.redis.heartbeat import Heartbeat
from easq.storage.redis.stream import LEASE_S, Argument, LocalSession, RemoteStream, Reply, ScriptClient
from easq.storage.rules.scans import NO_SCAN_LIMIT, ScanGate, ScanLimit

log = logging.getLogger(__name__)

#: most bytes that one call of a read returns, after one item
_READ_BYTES = 4 * 1024**2
#: most items, and most bytes, that one fetch of a connection reads
_FETCH_ITEMS, _FETCH_BYTES = 256, 4 * 1024**2
#: pause before a failed fetch is repeated, in seconds
_AGAIN_S = (0.05, 0.3)
#: most concurrent calls of scans after their first: many would delay all other calls
_SCANS_AT_ONCE = 2
#: the answer before the first call
_NOTHING: Any = None
#: heartbeats of connections are reported at this interval, in seconds
_ACTIVE_S = 1.0


class RedisStorage(Storage):
    """All verbs, each one script. `meta.durability` is what the client reports of its Redis."""

    def __init__(
        self,
        client: ScriptClient,
        timing: Timing | None = None,
        *,
        clock: Callable[[], float] | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        """`clock`, in seconds, replaces the clock of Redis in every rule. A server without a heartbeat for `lease_s` is
        gone: others get the items of its consumers.
        """
        self._client = client
        self._lease_s = lease_s
        self._heartbeat = Heartbeat(client, timing or Timing(), clock, lease_s)
        self._claims = 0
        self._gate = ScanGate(_SCANS_AT_ONCE)
        self._active: dict[tuple[str, int], float] = {}

    # -- running -------------------------------------------------------------------------------------------------------

    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        await self._heartbeat.start()
        self.durability = self._client.durability

    async def close(self) -> None:
        await self._heartbeat.close()

    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        await self._heartbeat.open(stream, dead_letters)

    async def streams(self) -> Sequence[str]:
        return await self._heartbeat.names()

    async def check(self, stream: str) -> None:
        """Do what is due in the stream, and remove the connections of servers that are gone."""
        await self._heartbeat.check(self._heartbeat[stream])

    # -- put and get ---------------------------------------------------------------------------------------------------

    async def append(self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = "") -> Ack:
        remote = self._heartbeat[stream]
        digest = sha256(frame.data).digest() if key else b""
        rid = frame.request_id.encode(errors="surrogatepass")
        item = (priority, pack_tags(frame.tags), frame.data)
        room = (limits.max_items, limits.max_bytes, int(limits.evict))
        status, answer = "again", _NOTHING
        while status == "again":
            status, answer = await self._heartbeat.ask(
                remote, "append", remote.last, *item, *room, key, digest, rid
            )
        match status:
            case "full":
                items, size = answer
                raise QueueFull(
                    f"the queue is full: {items} of {limits.max_items} items,"
                    f" {size} of {limits.max_bytes} bytes",
                    hint="wait until items were committed or deleted",
                )
            case "ended":
                raise StreamEnded("the stream has ended and takes no more items")
            case "reused":
                raise KeyReused(f"the idempotency key {key[:80]!a} was used before, with another payload")
        index, request_id, duplicate = answer
        if not duplicate:
            self._heartbeat.item_arrived(remote, Frame(index, frame.tags))
        return Ack(index, request_id.decode(errors="surrogatepass"), bool(duplicate))

    async def read(
        self, stream: str, selection: Selection, *, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        remote, wanted = self._heartbeat[stream], pack_tags(selection.tags)
        frames: list[Frame] = []
        size = 0
        at = _start(selection.start)
        seen: int | None = None
        while at:
            args: tuple[Argument, ...] = (at, selection.length - len(frames), wanted, _READ_BYTES)
            answer = await self._scan(remote, "read", *args, limit=None if seen is None else limit)
            if answer is None:
                break
            rest, items, arrivals = answer
            seen = arrivals if seen is None else seen
            for frame in map(read_frame, items):
                size += len(frame.data)
                if frames and size > MOST_BYTES:
                    rest = b""
                    break
                frames.append(frame)
            at = rest.decode() if len(frames) < selection.length else ""
        if frames:
            remote.saw(frames[-1].index)
        self._heartbeat.has_read(remote, seen)
        return frames

    async def _scan(
        self,
        remote: RemoteStream,
        script: str,
        *args: Argument,
        limit: ScanLimit | None,
        replicated: bool = False,
    ) -> Reply:
        """Call the script of a scan: at once without a `limit`, else when it gets a slot. None: its time is over.

        Raises Unavailable when the caller is gone.
        """
        if limit is None:
            return (await self._heartbeat.ask(remote, script, *args, replicated=replicated))[1]
        async with self._gate.slot(limit) as has_time:
            return (
                (await self._heartbeat.ask(remote, script, *args, replicated=replicated))[1]
                if has_time
                else None
            )

    async def take(
        self, stream: str, selection: Selection, *, minimum: int, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        remote, wanted = self._heartbeat[stream], pack_tags(selection.tags)
        self._claims += 1
        remote.is_used = True
        owner = f"{self._heartbeat.server}:{self._claims};"
        remote.taking.add(owner)
        found: Sequence[bytes] = []
        at, is_first = _start(selection.start), True
        try:
            while True:
                args: tuple[Argument, ...] = (selection.length, wanted, MOST_BYTES, minimum, owner, *found)
                answer = await self._scan(
                    remote, "take", at, *args, limit=None if is_first else limit, replicated=True
                )
                if answer is None:  # nothing more is examined, and the items found are claimed
                    answer = await self._scan(remote, "take", str(TOP), *args, limit=None, replicated=True)
                rest, items = answer
                if not rest:
                    break
                at, found, is_first = rest.decode(), items, False
            frames = [read_frame(item) for item in items]
            remote.claims.update((frame.index, owner) for frame in frames)
        except (StorageError, asyncio.CancelledError):
            remote.unfinished["release", (owner,)] = None  # it is unknown whether they are claimed
            raise
        finally:
            remote.taking.remove(owner)
        self._heartbeat.has_read(remote, remote.arrivals)
        return frames

    async def release(self, stream: str, indexes: Sequence[int]) -> None:
        await self._end_claims(stream, "release", indexes)

    async def settle(self, stream: str, indexes: Sequence[int]) -> None:
        await self._end_claims(stream, "settle", indexes)

    async def _end_claims(self, stream: str, script: str, indexes: Sequence[int]) -> None:
        """Call the script with the claims of this server; a call that fails is repeated by each check."""
        remote = self._heartbeat[stream]
        owned: dict[str, list[int]] = {}
        for index in indexes:
            owner = remote.claims.pop(index, None)
            if owner is not None:
                owned.setdefault(owner, []).append(index)
        for owner, of_it in owned.items():
            try:
                await self._heartbeat.end_claim(remote, script, owner, *index_texts(of_it))
            except EasqError as error:
                log.debug("%s: %s waits for Redis: %s", stream, script, error)

    async def wait(
        self,
        stream: str,
        selection: Selection,
        *,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        await self._heartbeat.wait(
            self._heartbeat[stream], selection, taking=taking, timeout_s=timeout_s, gone=gone
        )

    async def wake(self, stream: str) -> None:
        self._heartbeat.long_polls.wake(stream)

    # -- watchers ------------------------------------------------------------------------------------------------------

    async def attach(self, stream: str, consumer: Consumer, subscription: Subscription, *, now: float) -> int:
        remote = self._heartbeat[stream]
        begun = asyncio.get_running_loop().time()
        remote.attaching += 1
        remote.is_used = True
        try:
            status, number = await self._heartbeat.ask(
                remote,
                "attach",
                consumer.group,
                consumer.user,
                subscription.window,
                int(subscription.auto_commit),
                _start(subscription.after),
                pack_tags(subscription.tags),
                subscription.process,
            )
        finally:
            remote.attaching -= 1
        if status == "ended":
            raise StreamEnded("the stream has ended, and nothing in it is left for this group")
        if not remote.sessions:
            remote.renewed_at = max(remote.renewed_at, begun)
        remote.sessions[number] = LocalSession(number)
        remote.number = max(remote.number, number)
        return int(number)

    async def detach(self, stream: str, session: int, *, lost: bool, now: float) -> None:
        remote = self._heartbeat[stream]
        self._active.pop((stream, session), None)
        known = remote.sessions.pop(session, None)
        if known is not None:
            known.wakeup.set()
        await self._heartbeat.detach(remote, session, lost=lost)

    async def lease(self, stream: str, session: int, *, index_only: bool) -> list[Lease]:
        known = self._heartbeat[stream].sessions.get(session)
        while known is not None:
            known.wakeup.clear()
            try:
                leases = await self.fetch(stream, session, index_only=index_only)
            except (Unavailable, StorageError):
                await asyncio.sleep(random.uniform(*_AGAIN_S))
                continue
            if leases is None:
                break
            if leases:
                return leases
            await known.wakeup.wait()
        return []

    async def fetch(self, stream: str, session: int, *, index_only: bool) -> list[Lease] | None:
        """Return the items for the connection now; None when it no longer belongs to the consumer.

        A server whose lease may have expired asks again before anything is sent.
        """
        remote = self._heartbeat[stream]
        known = remote.sessions.get(session)
        if known is None:
            return None
        most = (int(index_only), _FETCH_ITEMS, _FETCH_BYTES)
        while True:
            known.lapses, known.still_pending = remote.lapses, None
            status, items = await self._heartbeat.ask(remote, "fetch", session, known.token, *most)
            if self._is_certain(remote, known):
                break
            await self._heartbeat.check(remote)
        if status == "replaced":
            remote.sessions.pop(session, None)
            return None
        if status == "ended":
            raise StreamEnded("the stream has ended")
        known.token += bool(items)
        return [_lease(*item) for item in items]

    def _is_certain(self, remote: RemoteStream, known: LocalSession) -> bool:
        """Return whether the lease has not expired since the connection's last answer."""
        age_s = asyncio.get_running_loop().time() - remote.renewed_at
        return age_s <= self._lease_s / 2 and known.lapses == remote.lapses

    async def still_leased(self, stream: str, session: int, index: int) -> bool:
        remote = self._heartbeat[stream]
        known = remote.sessions.get(session)
        if known is None:
            return False
        while not self._is_certain(remote, known):
            try:
                await self._heartbeat.check(remote)
                lapses = remote.lapses
                # the token of the last fetch, and no further items: those of it that are still pending
                status, items = await self._heartbeat.ask(remote, "fetch", session, known.token - 1, 1, 0, 0)
                known.still_pending = {int(item[0]) for item in items} if status == "ok" else set()
                known.lapses = lapses
            except (Unavailable, StorageError):
                await asyncio.sleep(random.uniform(*_AGAIN_S))
        return known.still_pending is None or index in known.still_pending

    async def sessions(self, stream: str) -> Mapping[Consumer, int]:
        _, found = await self._heartbeat.ask(self._heartbeat[stream], "sessions", replicated=False)
        return {Consumer(group.decode(), user.decode()): number for group, user, number in found}

    async def active(self, stream: str, session: int, *, now: float) -> None:
        announced = self._active.get((stream, session))
        if session in self._heartbeat[stream].sessions and (
            announced is None or now - announced >= _ACTIVE_S
        ):
            self._active[stream, session] = now
            try:
                await self._heartbeat.ask(self._heartbeat[stream], "active", session, replicated=False)
            except (Unavailable, StorageError) as error:
                log.debug("%s: a heartbeat is not reported: %s", stream, error)

    async def idle(self, stream: str, consumer: Consumer, *, now: float, process: str = "") -> float | None:
        who = (consumer.group, consumer.user, process)
        _, idle_ms = await self._heartbeat.ask(self._heartbeat[stream], "idle", *who, replicated=False)
        return None if idle_ms is None else idle_ms / 1000

    # -- results -------------------------------------------------------------------------------------------------------

    async def commit(self, stream: str, group: str, indexes: Sequence[int]) -> int:
        _, counted = await self._heartbeat.ask(
            self._heartbeat[stream], "commit", group, *index_texts(indexes)
        )
        return int(counted)

    async def negative(
        self,
        stream: str,
        group: str,
        negative: Negative,
        *,
        now: float,
    ) -> int:
        delay: Argument = "" if negative.delay_s is None else round(negative.delay_s * 1000)
        said = (negative.code, negative.reason.encode(errors="surrogatepass"), delay)
        _, counted = await self._heartbeat.ask(
            self._heartbeat[stream], "negative", group, *said, *index_texts(dict.fromkeys(negative.indexes))
        )
        return int(counted)

    async def delete(self, stream: str, indexes: Sequence[int]) -> int:
        _, counted = await self._heartbeat.ask(self._heartbeat[stream], "delete", *index_texts(indexes))
        return int(counted)

    async def truncate(self, stream: str, below: int) -> int:
        remote = self._heartbeat[stream]
        bound, total, more = b"", 0, 1
        while more:
            _, (counted, more, bound) = await self._heartbeat.ask(remote, "truncate", bound, min(below, TOP))
            total += counted
        return total

    async def end(self, stream: str, *, ended: bool) -> None:
        await self._heartbeat.ask(self._heartbeat[stream], "end", int(ended))

    # -- queries -------------------------------------------------------------------------------------------------------

    async def locate(self, stream: str, group: str, index: int) -> Location | None:
        for text in index_texts([index]):
            _, found = await self._heartbeat.ask(
                self._heartbeat[stream], "locate", group, text, replicated=False
            )
            if found is not None:
                owner, ahead = found
                return Location(None if owner is None else owner.decode(), ahead)
        return None

    async def count(
        self, stream: str, *, tags: Tags, priority: int | None, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> int:
        wanted, at, total = pack_tags(tags), "0", 0
        while at:
            args = (at, wanted, "" if priority is None else priority)
            answer = await self._scan(
                self._heartbeat[stream], "count", *args, limit=None if at == "0" else limit
            )
            if answer is None:
                break
            counted, rest = answer
            total += counted
            at = rest.decode()
        return total

    async def attributes(self, stream: str, *, now: float) -> StreamStats:
        remote = self._heartbeat[stream]
        _, (counts, consumers, groups, held) = await self._heartbeat.ask(
            remote, "attributes", replicated=False
        )
        length, size, first, last, highest, ended, epoch = counts
        remote.saw(highest)
        self.durability = self._client.durability
        return StreamStats(
            length=length,
            size=size,
            first=int(first),
            last=int(last),
            next=highest + 1,
            ended=bool(ended),
            consumers=[_consumer_line(*line) for line in consumers],
            groups=[
                GroupLine(name.decode(), int(index), pending, delivered, connected)
                for name, index, pending, delivered, connected in groups
            ],
            held=[
                HeldLine(
                    name.decode(),
                    None if filter else uncommitted,
                    None if left_ms < 0 else left_ms / 1000,
                    unpack_tags(filter),
                )
                for name, filter, uncommitted, left_ms in held
            ],
            epoch=epoch,
        )


def _start(start: int) -> str:
    """Return an index to begin at, as text; NEWEST stays as it is."""
    return str(NEWEST if start == NEWEST else min(max(start, 0), TOP))


def _lease(index: bytes, deliveries: int, tags: bytes, data: bytes) -> Lease:
    """Return the lease; a redelivered frame has its delivery count as a tag, a first delivery is as it was stored."""
    carried = unpack_tags(tags)
    if deliveries > 1:
        carried[DELIVERY_COUNT] = str(deliveries)
    return Lease(Frame(int(index), carried, data), deliveries)


def _consumer_line(
    group: bytes,
    user: bytes,
    index: int,
    pending: int,
    status: bytes,
    idle_ms: int,
    window: int,
    slots: int,
    auto_commit: int,
    tags: bytes,
) -> ConsumerLine:
    return ConsumerLine(
        id=Consumer(group.decode(), user.decode()).id,
        index=index,
        pending=pending,
        status=status.decode(),
        idle_s=idle_ms / 1000,
        window=window,
        slots=slots,
        auto_commit=bool(auto_commit),
        tags=unpack_tags(tags),
    )
