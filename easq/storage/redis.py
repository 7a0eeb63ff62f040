"""The link to Redis, and the only file that knows redis-py: scripts are called in batches over one connection.

What waits is one batch, as with the embedded engine's group commit: while a batch is under way the calls that come
meanwhile are the next one. With `appendfsync always` Redis then syncs once for the whole batch, and one WAIT does for
all of it.

A call ends in one of four ways: its reply; Unavailable and QueueFull, when it certainly was not run; StorageError, when
the connection broke after it was sent. Nothing that may have run is ever run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from easq.errors import EasqError, QueueFull, StorageError, Unavailable
from easq.storage import scripts
from easq.storage.redis_url import RedisUrl

log = logging.getLogger(__name__)

#: what one batch may take, and how long a call waits for a connection, in seconds
DEADLINE_S = 1.0
#: how long a WAIT waits for replicas, in milliseconds; it ends before the deadline does
WAIT_MS = 700
#: one batch takes at most so many calls, and stops taking after so many bytes
BATCH_CALLS, BATCH_BYTES = 512, 4 * 1024**2
#: so many calls may wait, and so many bytes in them
MOST_CALLS, MOST_BYTES = 20_000, 256 * 1024**2
#: the server is looked at this often, in seconds: whether it is there, what it is, and what its settings are
LOOK_S = 1.0
#: pause before connecting again, in seconds, drawn anew each time: servers that lost Redis together come back apart
PAUSE_S = (0.05, 0.5)
#: how long a start waits for a Redis that is there and not ready: it loads its data, or its Sentinels elect
START_S = 10.0
#: the oldest Redis that has all that is asked of it
OLDEST = (7, 0)

_Reply = Any

#: redis-py cuts the code off these errors
_CODES: Mapping[type[Exception], str] = {
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
#: code -> what is said of it; Redis refuses with these before a script has written
_REFUSALS: Mapping[str, str] = {
    "BUSY": "Redis is busy with a script",
    "LOADING": "Redis loads its data",
    "READONLY": "this Redis is a replica now",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "MASTERDOWN": "the replica has lost its primary",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write",
    "TRYAGAIN": "the queue moves to another Redis",
    "MOVED": "the queue has moved to another Redis",
    "ASK": "the queue moves to another Redis",
    "MISCONF": "Redis cannot write to its disk",
    "NOSCRIPT": "Redis keeps forgetting its scripts",
}
#: after these the connection is to the wrong server, or soon will be
_MOVED = {"READONLY", "MOVED", "MASTERDOWN"}


class _Lost(Exception):
    """The connection is of no use any more."""


def _code(error: Exception) -> str:
    word = str(error).partition(" ")[0]
    return _CODES.get(type(error)) or (word if word.isupper() else "ERR")


@dataclass(slots=True, eq=False)
class _Call:
    script: str
    command: Sequence[str | bytes | int]
    slot_key: str
    size: int
    changes: bool
    future: asyncio.Future[_Reply]
    #: when it gives up waiting for a connection, by the loop's clock
    until: float
    #: made by what prepares the connection
    inside: bool = False

    def fail(self, error: EasqError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, reply: _Reply) -> None:
        if not self.future.done():
            self.future.set_result(reply)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself. Two with the same `identity` are one, with nothing lost between."""

    version: str
    identity: str
    role: str
    policy: str
    durability: str
    clustered: bool


def _parse_info(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _facts(info: Mapping[str, str], config: _Reply) -> Facts:
    """`config` is the answer to CONFIG GET, or the error that it was refused with."""
    settings: dict[str, str] = {}
    if isinstance(config, list):
        words = [word.decode() for word in config]
        settings = dict(zip(words[::2], words[1::2], strict=True))
    if settings.get("appendonly", "yes" if info.get("aof_enabled") == "1" else "no") != "yes":
        durability = "redis-memory"
    else:
        # where CONFIG is forbidden nobody knows how often Redis syncs: the weaker word
        durability = {"always": "redis-fsync", "no": "redis-memory"}.get(
            settings.get("appendfsync", "everysec"), "redis-everysec"
        )
    return Facts(
        info.get("redis_version", "0"),
        f"{info.get('run_id', '')}/{info.get('master_replid', '')}",
        info.get("role", ""),
        info.get("maxmemory_policy", "noeviction"),
        durability,
        info.get("cluster_enabled") == "1",
    )


_LOOK: Sequence[Sequence[str]] = (("INFO", "everything"), ("CONFIG", "GET", "append*"))


class _Wire:
    """One connection to one primary: what is submitted is sent in batches, one under way at a time."""

    def __init__(
        self, connection: AbstractConnection, name: str, texts: Mapping[str, str], wait_replicas: int
    ) -> None:
        """`texts` has the text of each script that is called, by its SHA-1."""
        self.name = name
        self.facts: Facts | None = None
        self._connection = connection
        self._texts = texts
        self._wait_replicas = wait_replicas
        self._waiting: deque[_Call] = deque()
        self._work = asyncio.Event()
        self._replies: list[_Reply] = []
        self._expected = 0
        self._round: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lost = ""
        self._retired = False

    async def open(self) -> None:
        """The connection is there and `facts` are known. Raises _Lost, exceptions.RedisError."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._connection.connect()
        except TimeoutError as error:
            raise _Lost(f"no answer from {self.name} within {DEADLINE_S:g} s") from error
        self._reader = asyncio.create_task(self._read())
        self.facts = await self.look()

    async def look(self) -> Facts:
        """What the server says of itself now."""
        info, config = await self.ask(_LOOK)
        if isinstance(info, Exception):
            raise info
        return _facts(_parse_info(info), config)

    async def close(self) -> None:
        """The connection is closed."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        try:
            await self._connection.disconnect(nowait=True)
        except (exceptions.RedisError, OSError):
            pass

    def submit(self, call: _Call) -> None:
        """The call is sent with the next batch."""
        self._waiting.append(call)
        self._work.set()

    def retire(self) -> None:
        """`run` returns once the batch that is under way has been answered."""
        self._retired = True
        self._work.set()

    def take_back(self) -> Sequence[_Call]:
        """What was submitted and is certainly not sent."""
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    async def run(self, looked: Callable[[], None]) -> str:
        """Batches go out until the connection is lost or retired; why it ended. Each second `facts` are what the
        server says of itself, and `looked` is called.
        """
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_S
        try:
            while not self._retired:
                if not self._waiting:
                    self._work.clear()
                    await self._idle(look_at)
                if self._lost:
                    return self._lost
                if loop.time() >= look_at:
                    try:
                        self.facts = await self.look()
                        looked()
                    except exceptions.RedisError as error:
                        if _code(error) not in _REFUSALS:
                            return str(error)
                    look_at = loop.time() + LOOK_S
                if batch := self._take():
                    await self._exchange(batch)
        except _Lost as error:
            return str(error)
        return self._lost or "retired"

    async def _idle(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._work.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        size = 0
        while self._waiting and len(batch) < BATCH_CALLS and size < BATCH_BYTES:
            call = self._waiting.popleft()
            if not call.future.done():
                batch.append(call)
                size += call.size
        return batch

    async def _exchange(self, batch: Sequence[_Call]) -> None:
        """Every call of the batch has ended, or waits again because it was certainly not run."""
        loads: list[Sequence[str | bytes | int]] = []
        for _ in range(3):
            calls, batch = batch, []
            commands = [*loads, *(call.command for call in calls)]
            waits = bool(self._wait_replicas) and any(call.changes for call in calls)
            if waits:
                commands.append(("WAIT", self._wait_replicas, WAIT_MS))
            try:
                replies = await self.ask(commands)
            except _Lost as error:
                self._settle_lost(calls, self._replies[len(loads) :], waits, error)
                raise
            reached = replies.pop() if waits else 0
            again = self._settle(calls, replies[len(loads) :], reached)
            if not again:
                return
            batch = again
            loads = [
                ("SCRIPT", "LOAD", self._texts[sha])
                for sha in dict.fromkeys(str(c.command[1]) for c in again)
            ]
        for call in batch:
            call.fail(Unavailable(_REFUSALS["NOSCRIPT"]))

    def _settle(self, calls: Sequence[_Call], replies: Sequence[_Reply], reached: _Reply) -> list[_Call]:
        """Calls have their replies; those whose script is not loaded are given back."""
        again: list[_Call] = []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                code = _code(reply)
                if code == "NOSCRIPT":
                    again.append(call)
                    continue
                if code in _MOVED:
                    self._lost = f"{self.name}: {_REFUSALS[code]}"
                call.fail(self._translate(call, code, reply))
            elif call.changes and self._wait_replicas and not self._is_enough(reached):
                call.fail(
                    StorageError(
                        f"{call.script}: {reached} of {self._wait_replicas} replicas have it after {WAIT_MS} ms",
                        hint="see that the replicas are there, or lower --wait-replicas",
                    )
                )
            else:
                call.answer(reply)
        return again

    def _is_enough(self, reached: _Reply) -> bool:
        return isinstance(reached, int) and reached >= self._wait_replicas

    def _settle_lost(
        self, calls: Sequence[_Call], replies: Sequence[_Reply], waits: bool, why: Exception
    ) -> None:
        """The connection broke while the calls were under way: those without a reply may have been run."""
        for number, call in enumerate(calls):
            reply = replies[number] if number < len(replies) else None
            if isinstance(reply, Exception) and _code(reply) in _REFUSALS:
                call.fail(self._translate(call, _code(reply), reply))
            elif number < len(replies) and not (waits and call.changes) and not isinstance(reply, Exception):
                call.answer(reply)
            else:
                call.fail(StorageError(f"{call.script}: not known whether it was done: {why}"))

    def _translate(self, call: _Call, code: str, error: Exception) -> EasqError:
        if code == "OOM":
            return QueueFull("Redis has no memory left")
        if code in _REFUSALS:
            return Unavailable(_REFUSALS[code])
        return StorageError(
            f"{call.script}: Redis says {code} {error}".replace(f"{code} {code} ", f"{code} ")
        )

    async def ask(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[_Reply]:
        """The replies to all commands, in one round trip; an error reply is a value. Raises _Lost."""
        if self._lost:
            raise _Lost(self._lost)
        self._replies = []
        self._expected = len(commands)
        self._round = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(DEADLINE_S):
                packed = self._connection.pack_commands(commands)
                await self._connection.send_packed_command(packed, check_health=False)
                await self._round
        except TimeoutError as error:
            self._lost = f"{self.name} did not answer within {DEADLINE_S:g} s"
            raise _Lost(self._lost) from error
        except (exceptions.RedisError, OSError) as error:
            self._lost = self._lost or f"the connection to {self.name} broke: {error}"
            raise _Lost(self._lost) from error
        finally:
            self._round = None
        return self._replies

    async def _read(self) -> None:
        """Replies are collected as they come; a connection that ends is noticed at once, also when idle."""
        read = self._connection.read_response
        try:
            while True:
                try:
                    reply = await read(disable_decoding=True, disconnect_on_error=False)
                except (exceptions.ResponseError, exceptions.BusyLoadingError) as error:
                    reply = error
                if self._round is None:
                    raise exceptions.InvalidResponse("a reply that nobody asked for")
                self._replies.append(reply)
                if len(self._replies) == self._expected and not self._round.done():
                    self._round.set_result(None)
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            self._lost = self._lost or f"{self.name} closed the connection"
            if self._round is not None and not self._round.done():
                self._round.set_exception(_Lost(self._lost))
            log.debug("%s: %r", self._lost, error)
        self._work.set()


@dataclass(slots=True, eq=False)
class _Session:
    """The connections of one time of being connected."""

    wires: Sequence[_Wire]
    ready: bool = False
    #: slot -> wire in a Cluster; empty elsewhere
    slots: Sequence[_Wire | None] = field(default_factory=list)

    def wire(self, key: str) -> _Wire | None:  # noqa: ARG002
        return self.wires[0]


_inside: ContextVar[_Session | None] = ContextVar("inside", default=None)


class Link:
    """Scripts are run on Redis, whatever becomes of the connection meanwhile."""

    def __init__(
        self, url: RedisUrl, *, wait_replicas: int = 0, source: Callable[[str], str] = scripts.source
    ) -> None:
        """`source` gives the text of the script of a name. Nothing is connected yet."""
        #: what an answered call survives, in the word of `meta.durability`; known once connected
        self.durability = ""
        self._url = url
        self._wait_replicas = wait_replicas
        self._source = source
        self._shas: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._waiting: deque[_Call] = deque()
        self._bytes = 0
        self._calls = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._session: _Session | None = None
        self._identity: object = None
        self._policy = "noeviction"
        self._task: asyncio.Task[None] | None = None
        self._prepare: Callable[[bool], Awaitable[None]] | None = None
        self._down_since = 0.0

    async def connect(self, prepare: Callable[[bool], Awaitable[None]]) -> None:
        """Redis answers calls, from now on by itself after each loss of the connection.

        `prepare(changed)` has returned, and is awaited again after each new connection, before any other call goes
        through. `changed`: the primary is another than before, or was started anew; never at the first time. Calls
        made inside `prepare` go through at once.

        Raises StorageError when Redis cannot be reached or used, and what `prepare` raises.
        """
        loop = asyncio.get_running_loop()
        self._prepare = prepare
        give_up = loop.time() + START_S
        while True:
            try:
                session = await self._open()
                break
            except _NotYet as error:
                if loop.time() > give_up:
                    raise StorageError(str(error)) from error
            await asyncio.sleep(random.uniform(*PAUSE_S))
        runs = self._start(session)
        try:
            await self._make_ready(session)
        except BaseException:
            await self._end(session, runs)
            raise
        self._task = asyncio.create_task(self._keep(session, runs))

    async def close(self) -> None:
        """No connection is there; calls that waited were refused."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._refuse_waiting("the service stops")

    def is_up(self) -> bool:
        """Whether Redis answered within the last seconds and calls go through."""
        return self._session is not None and self._session.ready

    async def call(
        self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int], *, changes: bool = True
    ) -> _Reply:
        """The script's reply: bytes, int, None or a list of them. All keys are in one slot of a Cluster.

        With `changes` it is on as many replicas as were asked for.

        Raises Unavailable and QueueFull when the script certainly did not run, StorageError when that is not known.
        """
        sha = self._shas.get(script) or self._learn(script)
        size = 64 + sum(len(arg) for arg in args if not isinstance(arg, int))
        loop = asyncio.get_running_loop()
        call = _Call(
            script,
            ("EVALSHA", sha, len(keys), *keys, *args),
            keys[0] if keys else "",
            size,
            changes,
            loop.create_future(),
            loop.time() + DEADLINE_S,
        )
        if self._calls >= MOST_CALLS or (self._bytes + size > MOST_BYTES and self._calls):
            raise Unavailable("too many requests wait for Redis")
        self._calls += 1
        self._bytes += size
        try:
            self._submit(call)
            return await call.future
        finally:
            self._calls -= 1
            self._bytes -= size

    def _learn(self, script: str) -> str:
        text = self._source(script)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._shas[script] = sha
        self._texts[sha] = text
        return sha

    def _submit(self, call: _Call) -> None:
        session = self._session
        if session is not None and (session.ready or _inside.get() is session):
            call.inside = not session.ready
            wire = session.wire(call.slot_key)
            if wire is None:
                call.fail(Unavailable("no Redis serves the queue's slot"))
            else:
                wire.submit(call)
        elif _inside.get() is not None and not self.is_up():
            call.fail(Unavailable("the connection to Redis is lost"))
        elif self._down_since and call.until - self._down_since > 2 * DEADLINE_S:
            call.fail(Unavailable("Redis is away"))
        else:
            self._wait(call)

    def _wait(self, call: _Call) -> None:
        self._waiting.append(call)
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_at(call.until, self._expire)

    def _expire(self) -> None:
        """Calls that waited too long for a connection are refused."""
        loop = asyncio.get_running_loop()
        self._expiry = None
        while self._waiting and self._waiting[0].until <= loop.time() + 0.001:
            self._waiting.popleft().fail(Unavailable("Redis is away"))
        if self._waiting:
            self._expiry = loop.call_at(self._waiting[0].until, self._expire)

    def _refuse_waiting(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(Unavailable(why))
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _open(self) -> _Session:
        """Connections to every primary. Raises _NotYet when it may be better soon, else StorageError."""
        (host, port), *_ = self._url.nodes or (("", 0),)
        wire = _Wire(self._connection(host, port), self._name(host, port), self._texts, self._wait_replicas)
        try:
            await wire.open()
            assert wire.facts is not None
            self._check(wire, wire.facts)
        except _Lost as error:
            await wire.close()
            raise self._unreachable(wire.name, str(error)) from error
        except exceptions.RedisError as error:
            await wire.close()
            raise self._refused(wire.name, error) from error
        except BaseException:
            await wire.close()
            raise
        return _Session([wire])

    def _unreachable(self, name: str, why: str) -> StorageError:
        return StorageError(f"Redis at {name} cannot be reached: {why}", hint="start it, or see --storage")

    def _refused(self, name: str, error: exceptions.RedisError) -> StorageError:
        code = _code(error)
        if code in _REFUSALS:
            return _NotYet(f"{name}: {_REFUSALS[code]}")
        if code in {"WRONGPASS", "NOAUTH"}:
            return StorageError(
                f"{name}: wrong user or password", hint="write it as redis://USER:PASSWORD@HOST"
            )
        if code == "NOPERM":
            return StorageError(f"{name}: {error}", hint="the README lists what its ACL user needs")
        if isinstance(error, exceptions.ConnectionError):
            return self._unreachable(name, str(error))
        return StorageError(f"{name}: {error}")

    def _check(self, wire: _Wire, facts: Facts) -> None:
        """Raises StorageError when the server is not what a queue can be kept on."""
        if tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise StorageError(
                f"{wire.name}: Redis {facts.version} is too old",
                hint=f"use {'.'.join(map(str, OLDEST))} or later",
            )
        if facts.role != "master":
            raise _NotYet(f"{wire.name} is a replica")
        if facts.policy != "noeviction":
            raise StorageError(
                f"{wire.name}: maxmemory-policy {facts.policy} throws items away when memory is full",
                hint="CONFIG SET maxmemory-policy noeviction",
            )

    def _connection(self, host: str, port: int) -> AbstractConnection:
        url = self._url
        common: dict[str, Any] = {
            "db": url.db,
            "username": url.username or None,
            "password": url.password or None,
            "protocol": 2,
            # the deadline of a batch is ours, one timer for all of its replies
            "socket_timeout": None,
            "socket_connect_timeout": DEADLINE_S,
        }
        if url.path:
            return UnixDomainSocketConnection(path=url.path, **common)
        if url.tls:
            tls_options: dict[str, Any] = dict(url.options)
            if "ssl_check_hostname" in tls_options:
                tls_options["ssl_check_hostname"] = tls_options["ssl_check_hostname"].lower() not in {
                    "no",
                    "false",
                    "0",
                }
            return SSLConnection(host=host, port=port, **common, **tls_options)
        return Connection(host=host, port=port, **common)

    def _name(self, host: str, port: int) -> str:
        return self._url.path or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def _start(self, session: _Session) -> list[asyncio.Task[str]]:
        self._session = session
        return [asyncio.create_task(wire.run(self._looked)) for wire in session.wires]

    async def _make_ready(self, session: _Session) -> None:
        """The connection is prepared, and what waited goes through."""
        assert self._prepare is not None
        identity = tuple(sorted(wire.facts.identity for wire in session.wires if wire.facts is not None))
        changed = self._identity not in (None, identity)
        token = _inside.set(session)
        try:
            await self._prepare(changed)
        finally:
            _inside.reset(token)
        self._identity = identity
        self._looked()
        self._down_since = 0.0
        session.ready = True
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._submit(call)

    def _looked(self) -> None:
        """What the servers say of themselves now is what is shown."""
        facts = (
            [wire.facts for wire in self._session.wires if wire.facts] if self._session is not None else []
        )
        words = {one.durability for one in facts}
        word = next((one for one in ("redis-memory", "redis-everysec") if one in words), "redis-fsync")
        durability = f"redis-replicated:{self._wait_replicas}" if self._wait_replicas else word
        if self.durability and durability != self.durability:
            log.warning("Redis: durability was %s and is %s now", self.durability, durability)
        self.durability = durability
        policy = next((one.policy for one in facts if one.policy != "noeviction"), "noeviction")
        if policy not in {"noeviction", self._policy}:
            log.warning(
                "Redis: maxmemory-policy is %s now: items are thrown away when memory is full", policy
            )
        self._policy = policy

    async def _end(self, session: _Session, runs: Sequence[asyncio.Task[str]]) -> str:
        """Its batches under way have ended, its connections are closed, and what it had not sent waits again."""
        self._session = None
        for wire in session.wires:
            wire.retire()
        reasons = await asyncio.gather(*runs)
        for wire in session.wires:
            await wire.close()
            for call in wire.take_back():
                if call.inside:
                    call.fail(Unavailable("the connection to Redis is lost"))
                else:
                    self._wait(call)
        return next((reason for reason in reasons if reason != "retired"), "")

    async def _keep(self, session: _Session, runs: list[asyncio.Task[str]]) -> None:
        """There is a connection whenever there can be one."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
            finally:
                why = await self._end(session, runs)
            lost_at = self._down_since = loop.time()
            log.warning("Redis is away: %s", why)
            session, runs = await self._again()
            log.warning("Redis is back after %.1f s", loop.time() - lost_at)

    async def _again(self) -> tuple[_Session, list[asyncio.Task[str]]]:
        """A new connection that is ready."""
        said = ""
        while True:
            await asyncio.sleep(random.uniform(*PAUSE_S))
            try:
                session = await self._open()
                runs = self._start(session)
                try:
                    await self._make_ready(session)
                except BaseException:
                    await self._end(session, runs)
                    raise
            except EasqError as error:
                if str(error) != said:
                    log.warning("Redis: %s", error)
                said = str(error)
                continue
            return session, runs


class _NotYet(StorageError):
    """Redis is there and cannot be used now; it may be better soon."""
