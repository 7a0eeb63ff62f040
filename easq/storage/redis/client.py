"""Calls scripts on Redis, and connects again after each loss."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from easq.errors import EasqError, StorageError, Unavailable
from easq.storage.redis import scripts
from easq.storage.redis.connection import DEADLINE_S, NotReady, PipelinedConnection, ScriptCall, show
from easq.storage.redis.driver import ConnectionLost, RedisConnection, Reply, slot_of
from easq.storage.redis.pubsub import ChannelSubscriber, MessageHandler
from easq.storage.redis.server_info import MEND_POLICY, SAFE_POLICY, evicts, weakest
from easq.storage.redis.topology import Primary, Topology, slot_table
from easq.storage.redis.url import RedisUrl

log = logging.getLogger(__name__)

#: most calls, and bytes in them, that wait or are under way
MOST_CALLS, MOST_BYTES = 20_000, 256 * 1024**2
#: pause before connecting again, in seconds, drawn anew each time: servers that lost Redis together come back apart
PAUSE_S = (0.05, 0.5)
#: how long a start waits for a Redis that is not ready: it loads its data, or its Sentinels elect a primary
START_S = 10.0
#: how often Sentinels and Clusters are asked whether the primaries are still the same, in seconds
ASK_S = 5.0
#: the scripts that store items: refused while Redis may evict keys
_STORING = {"append", "dead_letter"}


@dataclass(slots=True, eq=False)
class _ConnectionSet:
    """The connections to all primaries, from one loss to the next."""

    primaries: tuple[Primary, ...]
    connections: Sequence[PipelinedConnection]
    #: slot -> number of the connection, in a Cluster
    table: Sequence[int]
    runs: list[asyncio.Task[str]] = field(default_factory=list)
    subscribers: dict[int, ChannelSubscriber] = field(default_factory=dict)
    #: whether it is prepared, so that calls are sent
    is_ready: bool = False

    def number(self, key: str) -> int:
        """Return the number of the connection to the primary that has the key; -1 if none has it."""
        return self.table[slot_of(key)] if self.table else 0

    def identity(self) -> object:
        """Return a value that is equal for the same servers with the same slots, none of them restarted."""
        return [
            (primary.slots, connection.info.identity)
            for primary, connection in zip(self.primaries, self.connections, strict=True)
            if connection.info is not None
        ]


#: the connections whose preparation this task, or the one that started it, is part of
_inside: ContextVar[_ConnectionSet | None] = ContextVar("inside", default=None)


class RedisClient:
    """Calls scripts on Redis. After a loss it connects again by itself; each call reports what happened to it."""

    def __init__(
        self, url: RedisUrl, *, wait_replicas: int = 0, source: Callable[[str], str] = scripts.source
    ) -> None:
        """Connect nothing yet. `source` returns the text of a script by its name."""
        #: the durability of an answered call, as `meta.durability` has it; known once connected
        self.durability = ""
        self._url = url
        self._wait_replicas = wait_replicas
        self._source = source
        self._primaries = Topology(url)
        self._prepare: Callable[[bool], Awaitable[None]] | None = None
        self._shas: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._handlers: dict[str, list[MessageHandler]] = {}
        #: calls that wait for a connection, the oldest first
        self._waiting: deque[ScriptCall] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        #: number of calls, waiting and under way, and their bytes
        self._count = self._bytes = 0
        self._active: _ConnectionSet | None = None
        self._reconnector: asyncio.Task[None] | None = None
        self._lost_at = 0.0
        #: of the last connections that were prepared
        self._identity: object = None
        self._policy = SAFE_POLICY
        self._evicted = 0
        self._has_too_few = False

    async def connect(self, prepare: Callable[[bool], Awaitable[None]]) -> None:
        """Connect; from then on calls are sent, except while Redis is away.

        Returns after `prepare(changed)` has returned. It is awaited again after each new connection, before any other
        call is sent, and again after a pause when it raises. `changed`: a primary is another one than before, or was
        restarted (or has other slots of a Cluster); it is False the first time. Calls inside `prepare` are sent at
        once.

        Raises StorageError when Redis cannot be reached or used, and what `prepare` raises.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + START_S
        self._prepare = prepare
        while True:
            try:
                active = await self._connect(check=True)
            except (NotReady, Unavailable) as error:
                if loop.time() > give_up:
                    raise StorageError(error.message, hint="see the log of Redis") from error
                log.info("waiting for Redis: %s", error)
                await asyncio.sleep(random.uniform(*PAUSE_S))
            else:
                break
        self._reconnector = asyncio.create_task(self._keep(active))

    async def close(self) -> None:
        """Close all connections, also when this is cancelled, and refuse the calls that wait."""
        reconnector, self._reconnector = self._reconnector, None
        try:
            if reconnector is not None:
                reconnector.cancel()
                await asyncio.gather(reconnector, return_exceptions=True)
        finally:
            if self._active is not None:
                await self._end(self._active)
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            while self._waiting:
                self._waiting.popleft().fail(Unavailable("the service stops"))

    def is_up(self) -> bool:
        """Return whether calls are sent: every primary has answered within the last two seconds."""
        active = self._active
        return active is not None and active.is_ready and not any(run.done() for run in active.runs)

    async def call(
        self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int], *, replicated: bool = True
    ) -> Reply:
        """Call the script, and return its reply: bytes, int, None or a list of them. In a Cluster all keys are in one
        slot.

        With `replicated`, the reply is given once it is on as many replicas as were asked for. When the call is
        cancelled, it is unknown whether the script was run.

        Raises Unavailable and QueueFull when the script certainly was not run, StorageError when that is unknown.
        """
        sha = self._shas.get(script)
        if sha is None:
            text = self._source(script)
            sha = self._shas[script] = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            self._texts[sha] = text
        size = 64 + sum(len(arg) for arg in args if not isinstance(arg, int))
        if self._count >= MOST_CALLS or (self._count and self._bytes + size > MOST_BYTES):
            raise Unavailable("too many requests wait for Redis")
        loop = asyncio.get_running_loop()
        command = ("EVALSHA", sha, len(keys), *keys, *args)
        call = ScriptCall(script, command, size, replicated, loop.create_future(), loop.time() + DEADLINE_S)
        self._count += 1
        self._bytes += size
        try:
            self._submit(call)
            return await call.future
        finally:
            self._count -= 1
            self._bytes -= size

    async def listen(self, channel: str, handler: MessageHandler) -> None:
        """Call `handler` with each message that is published in `channel`, with PUBLISH or SPUBLISH, until the client
        is closed.

        Messages are hints: those that are published while the connection is away are lost.
        """
        self._handlers.setdefault(channel, []).append(handler)
        active = self._active
        if (
            active is not None
            and active.is_ready
            and (subscriber := self._subscriber(active, channel)) is not None
        ):
            await subscriber.add(channel)

    def _submit(self, call: ScriptCall) -> None:
        """Send the call, let it wait for a connection, or refuse it."""
        active, inside = self._active, _inside.get()
        if inside is not None and not inside.is_ready:
            call.inside = True
        if self._policy != SAFE_POLICY and call.script in _STORING:
            call.fail(Unavailable(evicts(self._policy), hint=MEND_POLICY))
        elif active is not None and (active.is_ready or active is inside):
            number = active.number(call.key)
            if number >= 0:
                active.connections[number].submit(call)
            else:
                call.fail(Unavailable("no primary of the Cluster has the queue's slot"))
        elif call.inside:
            call.fail(Unavailable("the connection to Redis is lost"))
        else:
            loop = asyncio.get_running_loop()
            if call.until <= loop.time() or (self._lost_at and loop.time() > self._lost_at + DEADLINE_S):
                call.fail(Unavailable("Redis is away"))
                return
            self._waiting.append(call)
            if self._expiry is None:
                self._expiry = loop.call_at(call.until, self._expire)

    def _expire(self) -> None:
        """Refuse the calls that have waited too long for a connection."""
        loop = asyncio.get_running_loop()
        self._expiry = None
        while self._waiting and self._waiting[0].until <= loop.time():
            self._waiting.popleft().fail(Unavailable("Redis is away"))
        if self._waiting:
            self._expiry = loop.call_at(self._waiting[0].until, self._expire)

    async def _connect(self, *, check: bool = False) -> _ConnectionSet:
        """Return a prepared set of connections. Raises StorageError, and what `prepare` raises."""
        primaries = await self._primaries.find()
        connections = [
            PipelinedConnection(
                self._driver(primary),
                self._url.path or show(primary.host, primary.port),
                self._texts,
                self._wait_replicas,
            )
            for primary in primaries
        ]
        active = _ConnectionSet(
            primaries, connections, slot_table(primaries) if self._url.kind == "cluster" else ()
        )
        try:
            opened = await asyncio.gather(
                *(self._open(connection, check=check) for connection in connections), return_exceptions=True
            )
            for error in filter(None, opened):
                raise error
            active.runs = [
                asyncio.create_task(connection.run(self._info_updated)) for connection in connections
            ]
            self._active = active
            await self._make_ready(active)
        except BaseException:
            await self._end(active)
            raise
        return active

    def _driver(self, primary: Primary) -> RedisConnection:
        return RedisConnection(self._url, primary.host, primary.port, connect_timeout_s=DEADLINE_S)

    async def _open(self, connection: PipelinedConnection, *, check: bool) -> None:
        """Open the connection, and check that the server is a usable primary. Raises StorageError."""
        try:
            await connection.open()
            info = await connection.update_info()
        except ConnectionLost as error:
            message = f"no Redis at {connection.name}: {error}"
            if self._url.kind == "server":
                raise StorageError(message, hint="start it, or name another with --storage") from error
            raise NotReady(message) from error
        if not info.is_primary:
            raise NotReady(f"{connection.name} is a replica")
        if info.is_loading:
            # while it loads, it answers INFO but runs no scripts
            raise NotReady(f"{connection.name} loads its data")
        if info.is_clustered and self._url.kind != "cluster":
            raise StorageError(
                f"{connection.name} is a node of a Cluster", hint=f"use redis+cluster://{connection.name}"
            )
        if check:
            info.check(connection.name)

    async def _make_ready(self, active: _ConnectionSet) -> None:
        """Prepare the connections, then send the calls that wait."""
        assert self._prepare is not None
        identity = active.identity()
        token = _inside.set(active)
        try:
            await self._prepare(self._identity not in (None, identity))
        finally:
            _inside.reset(token)
        self._identity = identity
        self._lost_at = 0.0
        self._info_updated()
        active.is_ready = True
        for channel in self._handlers:
            self._subscriber(active, channel)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._submit(call)

    def _subscriber(self, active: _ConnectionSet, channel: str) -> ChannelSubscriber | None:
        """Return the subscriber of the channel; None if its slot has no primary."""
        number = active.number(channel)
        if number < 0:
            return None
        if number not in active.subscribers:
            primary = active.primaries[number]
            active.subscribers[number] = ChannelSubscriber(lambda: self._driver(primary), self._handlers)
        active.subscribers[number].request(channel)
        return active.subscribers[number]

    def _info_updated(self) -> None:
        """Log warnings for what has changed in the state of the servers."""
        active = self._active
        if active is None:
            return
        info = [connection.info for connection in active.connections if connection.info is not None]
        durability = f"redis-replicated:{self._wait_replicas}" if self._wait_replicas else weakest(info)
        if self.durability not in {"", durability}:
            log.warning("durability was %s and is %s now", self.durability, durability)
        self.durability = durability
        policy = next((one.policy for one in info if one.policy != SAFE_POLICY), SAFE_POLICY)
        if policy not in {SAFE_POLICY, self._policy}:
            log.warning("%s: puts are refused. %s", evicts(policy), MEND_POLICY)
        elif policy != self._policy:
            log.warning("Redis has maxmemory-policy %s again: puts are accepted", policy)
        self._policy = policy
        evicted = sum(one.evicted for one in info)
        if evicted > self._evicted and active.is_ready:
            log.error("Redis has evicted %d keys: acknowledged items may be lost", evicted - self._evicted)
        self._evicted = evicted
        has_too_few = any(connection.has_too_few for connection in active.connections)
        if has_too_few and not self._has_too_few:
            log.warning(
                "fewer replicas follow than the %d to wait for: only reads are answered", self._wait_replicas
            )
        elif self._has_too_few and not has_too_few:
            log.warning("the replicas to wait for follow again")
        self._has_too_few = has_too_few

    async def _end(self, active: _ConnectionSet) -> str:
        """End the batches under way, close the connections, and let unsent calls wait again, also when this is
        cancelled.

        Returns why the connections ended.
        """
        self._active = None
        self._lost_at = self._lost_at or asyncio.get_running_loop().time()
        for connection in active.connections:
            connection.retire()
        dismantled = asyncio.create_task(self._dismantle(active))
        try:
            return await asyncio.shield(dismantled)
        except asyncio.CancelledError:
            await dismantled
            raise

    async def _dismantle(self, active: _ConnectionSet) -> str:
        try:
            reasons = await asyncio.gather(*active.runs)
        finally:
            for subscriber in active.subscribers.values():
                await subscriber.close()
            for connection in active.connections:
                await connection.close()
                for call in connection.take_unsent():
                    self._submit(call)
        return next(filter(None, reasons), "")

    async def _keep(self, active: _ConnectionSet) -> None:
        """Replace all connections when one is lost or the primaries have changed."""
        loop = asyncio.get_running_loop()
        while True:
            moved = asyncio.create_task(self._watch(active))
            try:
                await asyncio.wait([*active.runs, moved], return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
                # it may have a connection to a Sentinel or a node
                await asyncio.gather(moved, return_exceptions=True)
            why = await self._end(active)
            lost_at = self._lost_at
            log.warning("Redis is away: %s", why or "its primaries are others now")
            said, again = "", None
            while again is None:
                await asyncio.sleep(random.uniform(*PAUSE_S))
                try:
                    again = await self._connect()
                except EasqError as error:
                    if error.message != said:
                        log.warning("Redis is away: %s", error)
                    said = error.message
            active = again
            log.warning("Redis is back after %.1f s", loop.time() - lost_at)

    async def _watch(self, active: _ConnectionSet) -> None:
        """Return once the primaries have changed."""
        found = active.primaries
        while found == active.primaries:
            await asyncio.sleep(ASK_S * random.uniform(0.9, 1.1))
            try:
                found = await self._primaries.find()
            except StorageError as error:
                log.debug("%s", error)
