"""The link to Redis: scripts are called there, whatever becomes of the connections meanwhile.

Only this file and those whose names begin with it know redis-py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from redis.crc import key_slot

from easq.errors import EasqError, StorageError, Unavailable
from easq.storage.redis import scripts
from easq.storage.redis.connection import DEADLINE_S, Call, Lost, NotYet, Reply, Wire, connection_to, show
from easq.storage.redis.pubsub import Ear, Heard
from easq.storage.redis.server_info import MEND_POLICY, SAFE_POLICY, evicts, weakest
from easq.storage.redis.topology import Primaries, Primary, slot_table
from easq.storage.redis.url import RedisUrl

log = logging.getLogger(__name__)

#: so many calls may be there, and so many bytes in them, waiting and under way
MOST_CALLS, MOST_BYTES = 20_000, 256 * 1024**2
#: pause before connecting again, in seconds, drawn anew each time: servers that lost Redis together come back apart
PAUSE_S = (0.05, 0.5)
#: how long a start waits for a Redis that is there and not ready: it loads its data, or its Sentinels elect
START_S = 10.0
#: how often Sentinels and Clusters are asked whether the primaries are still the same, in seconds
ASK_S = 5.0
#: the scripts that store items: refused while Redis may evict keys
_STORING = {"append", "bury"}


@dataclass(slots=True, eq=False)
class _Session:
    """The connections from one loss to the next: to all primaries, or to none."""

    primaries: tuple[Primary, ...]
    wires: Sequence[Wire]
    #: slot -> number of the wire, in a Cluster
    table: Sequence[int]
    runs: list[asyncio.Task[str]] = field(default_factory=list)
    ears: dict[int, Ear] = field(default_factory=dict)
    #: whether it is prepared: calls go through
    is_ready: bool = False

    def number(self, key: str) -> int:
        """The number of the wire to the primary that has the key, -1 where none has."""
        return self.table[key_slot(key.encode())] if self.table else 0

    def identity(self) -> object:
        """Equal for the same servers with the same slots, none of them started anew."""
        return [
            (primary.slots, wire.facts.identity)
            for primary, wire in zip(self.primaries, self.wires, strict=True)
            if wire.facts is not None
        ]


#: the session whose preparation this task, or the one that started it, is part of
_inside: ContextVar[_Session | None] = ContextVar("inside", default=None)


class Link:
    """Calls scripts on Redis. It connects again by itself after each loss; what is lost then is said of each call."""

    def __init__(
        self, url: RedisUrl, *, wait_replicas: int = 0, source: Callable[[str], str] = scripts.source
    ) -> None:
        """Nothing is connected yet. `source` gives the text of the script of a name."""
        #: what an answered call survives, in the word of `meta.durability`; known once connected
        self.durability = ""
        self._url = url
        self._wait_replicas = wait_replicas
        self._source = source
        self._primaries = Primaries(url)
        self._prepare: Callable[[bool], Awaitable[None]] | None = None
        self._shas: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._heard: dict[str, list[Heard]] = {}
        #: calls that wait for a connection, the oldest first
        self._waiting: deque[Call] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        #: how many calls there are, waiting and under way, and their bytes
        self._count = self._bytes = 0
        self._session: _Session | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost_at = 0.0
        #: of the last session that was prepared
        self._identity: object = None
        self._policy = SAFE_POLICY
        self._evicted = 0
        self._has_too_few = False

    async def connect(self, prepare: Callable[[bool], Awaitable[None]]) -> None:
        """Calls go through, from now on, but for the times when Redis is away.

        `prepare(changed)` has returned; it is awaited again after each new connection, before any other call goes
        through, and again after a pause when it raises. `changed`: a primary is another one than before, or was
        started anew (or has other slots of a Cluster); never at the first time. Calls made inside `prepare` go
        through at once.

        Raises StorageError when Redis cannot be reached or used, and what `prepare` raises.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + START_S
        self._prepare = prepare
        while True:
            try:
                session = await self._connect(check=True)
            except (NotYet, Unavailable) as error:
                if loop.time() > give_up:
                    raise StorageError(error.message, hint="see the log of Redis") from error
                log.info("waiting for Redis: %s", error)
                await asyncio.sleep(random.uniform(*PAUSE_S))
            else:
                break
        self._keeper = asyncio.create_task(self._keep(session))

    async def close(self) -> None:
        """No connection is there; calls that waited were refused."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if self._session is not None:
            await self._end(self._session)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        while self._waiting:
            self._waiting.popleft().fail(Unavailable("the service stops"))

    def is_up(self) -> bool:
        """Whether calls go through: every primary answered within the last two seconds."""
        session = self._session
        return session is not None and session.is_ready and not any(run.done() for run in session.runs)

    async def call(
        self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int], *, replicated: bool = True
    ) -> Reply:
        """The script's reply: bytes, int, None or a list of them. In a Cluster all keys are in one slot.

        With `replicated` what it says is on as many replicas as were asked for. Whoever cancels the call does not
        know.

        Raises Unavailable and QueueFull when the script certainly was not run, StorageError when nobody knows.
        """
        sha = self._shas.get(script) or self._learn(script)
        size = 64 + sum(len(arg) for arg in args if not isinstance(arg, int))
        if self._count >= MOST_CALLS or (self._count and self._bytes + size > MOST_BYTES):
            raise Unavailable("too many requests wait for Redis")
        loop = asyncio.get_running_loop()
        command = ("EVALSHA", sha, len(keys), *keys, *args)
        call = Call(script, command, size, replicated, loop.create_future(), loop.time() + DEADLINE_S)
        self._count += 1
        self._bytes += size
        try:
            self._submit(call)
            return await call.future
        finally:
            self._count -= 1
            self._bytes -= size

    async def listen(self, channel: str, heard: Heard) -> None:
        """`heard` gets what is published in `channel`, with PUBLISH or SPUBLISH, for as long as the link lives.

        These are hints: what is published while the connection is away is never heard.
        """
        self._heard.setdefault(channel, []).append(heard)
        session = self._session
        if session is not None and session.is_ready and (ear := self._ear(session, channel)) is not None:
            await ear.add(channel)

    def _learn(self, script: str) -> str:
        text = self._source(script)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._shas[script] = sha
        self._texts[sha] = text
        return sha

    def _submit(self, call: Call) -> None:
        """The call is on its way, or waits for a connection, or was refused."""
        session, inside = self._session, _inside.get()
        if inside is not None and not inside.is_ready:
            call.inside = True
        if self._policy != SAFE_POLICY and call.script in _STORING:
            call.fail(Unavailable(evicts(self._policy), hint=MEND_POLICY))
        elif session is not None and (session.is_ready or session is inside):
            number = session.number(call.key)
            if number >= 0:
                session.wires[number].submit(call)
            else:
                call.fail(Unavailable("no primary of the Cluster has the queue's slot"))
        elif call.inside:
            call.fail(Unavailable("the connection to Redis is lost"))
        else:
            self._wait(call)

    def _wait(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        if call.until <= loop.time() or (self._lost_at and loop.time() > self._lost_at + DEADLINE_S):
            call.fail(Unavailable("Redis is away"))
            return
        self._waiting.append(call)
        if self._expiry is None:
            self._expiry = loop.call_at(call.until, self._expire)

    def _expire(self) -> None:
        """No call waits for a connection longer than it may."""
        loop = asyncio.get_running_loop()
        self._expiry = None
        while self._waiting and self._waiting[0].until <= loop.time():
            self._waiting.popleft().fail(Unavailable("Redis is away"))
        if self._waiting:
            self._expiry = loop.call_at(self._waiting[0].until, self._expire)

    async def _connect(self, *, check: bool = False) -> _Session:
        """A session that is ready. Raises StorageError, and what `prepare` raises."""
        primaries = await self._primaries.find()
        wires = [self._wire(primary) for primary in primaries]
        session = _Session(primaries, wires, slot_table(primaries) if self._url.kind == "cluster" else ())
        try:
            opened = await asyncio.gather(
                *(self._open(wire, check=check) for wire in wires), return_exceptions=True
            )
            for error in filter(None, opened):
                raise error
            session.runs = [asyncio.create_task(wire.run(self._looked)) for wire in wires]
            self._session = session
            await self._make_ready(session)
        except BaseException:
            await self._end(session)
            raise
        return session

    def _wire(self, primary: Primary) -> Wire:
        name = self._url.path or show(primary.host, primary.port)
        connection = connection_to(self._url, primary.host, primary.port)
        return Wire(connection, name, self._texts, self._wait_replicas)

    async def _open(self, wire: Wire, *, check: bool) -> None:
        """The wire is open, to a primary. Raises StorageError."""
        try:
            await wire.open()
            facts = await wire.look()
        except Lost as error:
            message = f"no Redis at {wire.name}: {error}"
            if self._url.kind == "server":
                raise StorageError(message, hint="start it, or name another with --storage") from error
            raise NotYet(message) from error
        if not facts.is_primary:
            raise NotYet(f"{wire.name} is a replica")
        if facts.is_loading:
            # INFO is answered all the while, scripts are not
            raise NotYet(f"{wire.name} loads its data")
        if facts.is_clustered and self._url.kind != "cluster":
            raise StorageError(f"{wire.name} is a node of a Cluster", hint=f"use redis+cluster://{wire.name}")
        if check:
            facts.check(wire.name)

    async def _make_ready(self, session: _Session) -> None:
        """The session is prepared, and what waited is on its way."""
        assert self._prepare is not None
        identity = session.identity()
        token = _inside.set(session)
        try:
            await self._prepare(self._identity not in (None, identity))
        finally:
            _inside.reset(token)
        self._identity = identity
        self._lost_at = 0.0
        self._looked()
        session.is_ready = True
        for channel in self._heard:
            self._ear(session, channel)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._submit(call)

    def _ear(self, session: _Session, channel: str) -> Ear | None:
        """The connection on which the channel is heard; None where its slot has no primary."""
        number = session.number(channel)
        if number < 0:
            return None
        if number not in session.ears:
            primary = session.primaries[number]
            session.ears[number] = Ear(
                lambda: connection_to(self._url, primary.host, primary.port), self._hear
            )
        session.ears[number].want(channel)
        return session.ears[number]

    def _hear(self, channel: str, data: bytes) -> None:
        for heard in self._heard.get(channel, ()):
            heard(data)

    def _looked(self) -> None:
        """What the servers say of themselves now is what is shown."""
        session = self._session
        if session is None:
            return
        facts = [wire.facts for wire in session.wires if wire.facts is not None]
        durability = f"redis-replicated:{self._wait_replicas}" if self._wait_replicas else weakest(facts)
        if self.durability not in {"", durability}:
            log.warning("durability was %s and is %s now", self.durability, durability)
        self.durability = durability
        policy = next((one.policy for one in facts if one.policy != SAFE_POLICY), SAFE_POLICY)
        if policy not in {SAFE_POLICY, self._policy}:
            log.warning("%s: puts are refused. %s", evicts(policy), MEND_POLICY)
        elif policy != self._policy:
            log.warning("Redis has maxmemory-policy %s again: puts are accepted", policy)
        self._policy = policy
        evicted = sum(one.evicted for one in facts)
        if evicted > self._evicted and session.is_ready:
            log.error("Redis has evicted %d keys: acknowledged items may be lost", evicted - self._evicted)
        self._evicted = evicted
        has_too_few = any(wire.has_too_few for wire in session.wires)
        if has_too_few and not self._has_too_few:
            log.warning(
                "fewer replicas follow than the %d to wait for: only reads are answered", self._wait_replicas
            )
        elif self._has_too_few and not has_too_few:
            log.warning("the replicas to wait for follow again")
        self._has_too_few = has_too_few

    async def _end(self, session: _Session) -> str:
        """Its batches under way have ended, its connections are closed, and what was not sent waits again, also when
        this is cancelled.

        Returns why it ended.
        """
        self._session = None
        self._lost_at = self._lost_at or asyncio.get_running_loop().time()
        for wire in session.wires:
            wire.retire()
        dismantled = asyncio.create_task(self._dismantle(session))
        try:
            return await asyncio.shield(dismantled)
        except asyncio.CancelledError:
            await dismantled
            raise

    async def _dismantle(self, session: _Session) -> str:
        reasons = await asyncio.gather(*session.runs)
        for ear in session.ears.values():
            await ear.close()
        for wire in session.wires:
            await wire.close()
            for call in wire.take_back():
                self._submit(call)
        return next(filter(None, reasons), "")

    async def _keep(self, session: _Session) -> None:
        """There is a connection whenever there can be one."""
        loop = asyncio.get_running_loop()
        while True:
            moved = asyncio.create_task(self._watch(session))
            try:
                await asyncio.wait([*session.runs, moved], return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
            why = await self._end(session)
            lost_at = self._lost_at
            log.warning("Redis is away: %s", why or "its primaries are others now")
            session = await self._connect_again()
            log.warning("Redis is back after %.1f s", loop.time() - lost_at)

    async def _watch(self, session: _Session) -> None:
        """Returns once the primaries are others than those of the session."""
        found = session.primaries
        while found == session.primaries:
            await asyncio.sleep(ASK_S * random.uniform(0.9, 1.1))
            try:
                found = await self._primaries.find()
            except StorageError as error:
                log.debug("%s", error)

    async def _connect_again(self) -> _Session:
        said = ""
        while True:
            await asyncio.sleep(random.uniform(*PAUSE_S))
            try:
                return await self._connect()
            except EasqError as error:
                if error.message != said:
                    log.warning("Redis is away: %s", error)
                said = error.message
