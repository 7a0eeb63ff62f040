"""One connection to one Redis: calls are sent in batches, one batch under way at a time.

Calls that arrive while a batch is under way form the next one: group commit over the network, without a timer. With
`appendfsync always` Redis syncs once for a batch, and one WAIT serves all of it.

A call ends in one of four ways: its reply; Unavailable or QueueFull, when it certainly was not run; StorageError, when
that is unknown. Nothing that may have been run is sent again. While fewer replicas follow than the number to wait for,
a call that needs them is not run. Only for the calls that detected this state is the outcome unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from easq.errors import EasqError, QueueFull, StorageError, Unavailable
from easq.storage.redis.driver import Command, ConnectionLost, ErrorReply, RedisConnection, Reply
from easq.storage.redis.server_info import ServerInfo, parse_info

log = logging.getLogger(__name__)

#: seconds without any reply, while replies are due, after which a connection is lost
DEADLINE_S = 1.0
#: how long a WAIT waits for replicas, in milliseconds; less than the deadline
WAIT_MS = 700
#: duration of the WAIT after one that did not reach enough replicas, to see whether they have caught up
PROBE_MS = 100
#: most calls in one batch, and the bytes after which it takes no further call
BATCH_CALLS, BATCH_BYTES = 512, 4 * 1024**2
#: the server is asked for its state and settings at this interval, in seconds
INFO_S = 1.0

#: the commands that ask for them
_INFO: Sequence[Command] = (
    ("INFO", "server", "memory", "persistence", "replication", "cluster", "stats"),
    ("CONFIG", "GET", "append*", "no-appendfsync-on-rewrite"),
)
#: code -> message. Redis refuses with these before a script has written anything. ASK is not followed: a
#: script with several keys gets TRYAGAIN on both sides until the whole slot has moved.
_REFUSALS: Mapping[str, str] = {
    "BUSY": "Redis is busy with a script",
    "LOADING": "Redis loads its data",
    "READONLY": "this Redis is a replica",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "MASTERDOWN": "this Redis is a replica that has lost its primary",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write",
    "TRYAGAIN": "the queue moves to another Redis",
    "MOVED": "the queue has moved to another Redis",
    "ASK": "the queue moves to another Redis",
    "MISCONF": "Redis cannot write to its disk",
    "NOSCRIPT": "Redis keeps forgetting its scripts",
}
#: codes of a server that is the wrong one: the call waits for the right one
_ELSEWHERE = {"READONLY", "MOVED", "MASTERDOWN"}


class NotReady(StorageError):
    """Redis answers, but cannot be used now; that may change soon."""


@dataclass(slots=True, eq=False)
class ScriptCall:
    """One call of a script, until its `future` has the reply."""

    script: str
    #: EVALSHA, the SHA-1 and what follows
    command: Command
    size: int
    #: whether its effects have to be on replicas before the call ends
    replicated: bool
    future: asyncio.Future[Reply]
    #: until when it waits for a connection, by the clock of the loop
    until: float
    #: made while the connection is prepared: it ends with the connection
    inside: bool = False

    @property
    def key(self) -> str:
        """The first key, or an empty text."""
        return str(self.command[3]) if self.command[2] else ""

    def fail(self, error: EasqError) -> None:
        """End the call with an error."""
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, reply: Reply) -> None:
        """End the call with its reply."""
        if not self.future.done():
            self.future.set_result(reply)


def show(host: str, port: int) -> str:
    """Return the address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class PipelinedConnection:
    """One connection, and the calls that wait for it."""

    def __init__(
        self,
        connection: RedisConnection,
        name: str,
        texts: Mapping[str, str] | None = None,
        wait_replicas: int = 0,
    ) -> None:
        """`name` is the address of the server for messages; `texts` has the text of each script, by its SHA-1."""
        self.name = name
        #: the last known state of the server; known after `update_info`
        self.info: ServerInfo | None = None
        #: whether fewer replicas follow than the number to wait for, as far as known: replicated calls are then refused
        self.has_too_few = False
        self._connection = connection
        self._texts = {} if texts is None else texts
        self._wait_replicas = wait_replicas
        self._waiting: deque[ScriptCall] = deque()
        self._work = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        #: the round trip under way: its replies, the number expected, and whether it was sent
        self._replies: list[Reply] = []
        self._expected = 0
        self._round: asyncio.Future[None] | None = None
        self._is_sent = False
        #: when its last reply came, or it was sent
        self._replied_at = 0.0
        #: why the connection cannot be used any more
        self._lost = ""
        self._is_retired = False
        self._is_over = False

    async def open(self) -> None:
        """Open the connection. Raises ConnectionLost and StorageError."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._connection.open()
        except TimeoutError as error:
            raise ConnectionLost(f"no answer within {DEADLINE_S:g} s") from error
        except ErrorReply as error:
            raise self.refused(error) from error
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Close the connection, also when this is cancelled."""
        try:
            if self._reader is not None:
                self._reader.cancel()
                await asyncio.gather(self._reader, return_exceptions=True)
        finally:
            # the end of TLS takes a round trip, which is not possible over a lost connection
            await self._connection.close(nowait=bool(self._lost))

    async def update_info(self) -> ServerInfo:
        """Ask the server for its state, and return it. Raises ConnectionLost and StorageError."""
        asked = [*_INFO]
        if self.has_too_few:
            asked.append(("WAIT", self._wait_replicas, PROBE_MS))
        info, config, *reached = await self.ask(asked)
        if isinstance(info, ErrorReply):
            raise self.refused(info)
        self.info = parse_info(info, None if isinstance(config, ErrorReply) else config)
        reached.append(self.info.replicas)
        self.has_too_few = any(not isinstance(count, int) or count < self._wait_replicas for count in reached)
        return self.info

    def refused(self, error: ErrorReply) -> StorageError:
        """Return the error to raise at a start for an error reply."""
        code = error.code
        if code in _REFUSALS:
            return NotReady(f"{self.name}: {_REFUSALS[code]}")
        if code in {"WRONGPASS", "NOAUTH"}:
            return StorageError(
                f"{self.name}: wrong or missing password",
                hint="write it as redis://[USER]:PASSWORD@HOST:PORT",
            )
        return StorageError(
            f"{self.name}: {error}", hint="see what its ACL allows" if code == "NOPERM" else ""
        )

    def submit(self, call: ScriptCall) -> None:
        """Add the call to the next batch."""
        if self._is_over and call.inside:
            call.fail(Unavailable("the connection to Redis is lost"))
            return
        self._waiting.append(call)
        self._work.set()

    def retire(self) -> None:
        """Let `run` return once the batch under way has been answered."""
        self._is_retired = True
        self._work.set()

    def take_unsent(self) -> Sequence[ScriptCall]:
        """Return the calls that were submitted and certainly not run."""
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    async def run(self, updated: Callable[[], None]) -> str:
        """Send batches until the connection is lost or retired; return why it ended (empty: it was retired).

        `updated` is called each time `info` is new.
        """
        loop = asyncio.get_running_loop()
        update_at = loop.time() + INFO_S
        try:
            while not self._is_retired and not self._lost:
                if loop.time() >= update_at:
                    await self._refresh()
                    updated()
                    update_at = loop.time() + INFO_S
                elif batch := self._take():
                    try:
                        await self._exchange(batch)
                    except ConnectionLost:
                        raise
                    except Exception as error:
                        for call in batch:
                            call.fail(
                                StorageError(f"{call.script}: not known whether it was done: {error!r}")
                            )
                        raise
                else:
                    await self._idle(update_at)
        except (ConnectionLost, StorageError) as error:
            return str(error)
        except Exception as error:
            log.exception("the connection to %s failed", self.name)
            return repr(error)
        finally:
            self._is_over = True
            for call in self._waiting:
                if call.inside:
                    call.fail(Unavailable("the connection to Redis is lost"))
        return self._lost

    async def _refresh(self) -> None:
        try:
            info = await self.update_info()
        except NotReady as error:
            log.debug("%s", error)
        else:
            if not info.is_primary:
                self._lost = f"{self.name}: {_REFUSALS['READONLY']}"

    async def _idle(self, until: float) -> None:
        self._work.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._work.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[ScriptCall]:
        now = asyncio.get_running_loop().time()
        batch: list[ScriptCall] = []
        size = 0
        while self._waiting and len(batch) < BATCH_CALLS and size < BATCH_BYTES:
            call = self._waiting.popleft()
            if call.until < now:
                call.fail(Unavailable("Redis is too slow for all that waits"))
            elif call.replicated and self.has_too_few:
                call.fail(Unavailable(f"Redis has fewer replicas than the {self._wait_replicas} to wait for"))
            elif not call.future.done():
                batch.append(call)
                size += call.size
        return batch

    async def _exchange(self, batch: Sequence[ScriptCall]) -> None:
        """Send the batch, and end its calls; those that certainly were not run may wait again."""
        loads: list[Command] = []
        for _ in range(3):
            commands = [*loads, *(call.command for call in batch)]
            waits = self._wait_replicas > 0 and any(call.replicated for call in batch)
            if waits:
                commands.append(("WAIT", self._wait_replicas, WAIT_MS))
            try:
                replies = await self.ask(commands)
            except ConnectionLost as error:
                self._settle_lost(batch, self._replies[len(loads) :], waits=waits, why=error)
                raise
            reached = replies.pop() if waits else 0
            batch = self._settle(batch, replies[len(loads) :], reached)
            if not batch:
                return
            loads = [("SCRIPT", "LOAD", self._texts[str(sha)]) for sha in {call.command[1] for call in batch}]
        for call in batch:
            call.fail(Unavailable(_REFUSALS["NOSCRIPT"]))

    def _settle(
        self, batch: Sequence[ScriptCall], replies: Sequence[Reply], reached: Reply
    ) -> Sequence[ScriptCall]:
        """End the calls with their replies; return those whose script Redis does not know."""
        unknown: list[ScriptCall] = []
        for call, reply in zip(batch, replies, strict=True):
            if isinstance(reply, ErrorReply):
                if reply.code == "NOSCRIPT":
                    unknown.append(call)
                else:
                    self._refuse(call, reply)
            elif (
                call.replicated
                and self._wait_replicas
                and not (isinstance(reached, int) and reached >= self._wait_replicas)
            ):
                self.has_too_few = True
                call.fail(
                    StorageError(
                        f"{call.script}: after {WAIT_MS} ms {reached} of {self._wait_replicas} replicas have it",
                        hint="see that the replicas are there, or lower --wait-replicas",
                    )
                )
            else:
                call.answer(reply)
        return unknown

    def _settle_lost(
        self, batch: Sequence[ScriptCall], replies: Sequence[Reply], *, waits: bool, why: Exception
    ) -> None:
        """End the calls of a batch whose connection broke: those without a reply may have been run."""
        for number, call in enumerate(batch):
            reply = replies[number] if number < len(replies) else None
            if not self._is_sent or (isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT"):
                self._requeue(call)
            elif isinstance(reply, ErrorReply):
                self._refuse(call, reply)
            elif number < len(replies) and not (waits and call.replicated):
                call.answer(reply)
            else:
                call.fail(StorageError(f"{call.script}: not known whether it was done: {why}"))

    def _refuse(self, call: ScriptCall, reply: ErrorReply) -> None:
        """End the call with the error that its error reply means, or let it wait for another server."""
        code = reply.code
        if code in _ELSEWHERE:
            self._lost = f"{self.name}: {_REFUSALS[code]}"
            self._requeue(call)
        elif code == "OOM":
            call.fail(QueueFull("Redis has no memory left"))
        elif code in _REFUSALS:
            call.fail(Unavailable(_REFUSALS[code]))
        else:
            call.fail(StorageError(f"{call.script}: Redis says: {reply}"))

    def _requeue(self, call: ScriptCall) -> None:
        """Let a call that certainly was not run wait again."""
        if call.inside:
            call.fail(Unavailable("the connection to Redis is lost"))
        else:
            self._waiting.appendleft(call)

    async def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """Return the replies to all commands, in one round trip; an error reply is a value. Raises ConnectionLost."""
        self._replies = []
        self._is_sent = False
        if self._lost:
            raise ConnectionLost(self._lost)
        packed = self._connection.pack(commands)
        self._expected = len(commands)
        loop = asyncio.get_running_loop()
        self._round = loop.create_future()
        self._is_sent = True
        self._replied_at = loop.time()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._connection.send(packed)
            while not self._round.done():
                left_s = self._replied_at + DEADLINE_S - loop.time()
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait((self._round,), timeout=left_s)
            self._round.result()
        except TimeoutError as error:
            self._lost = f"{self.name} did not answer within {DEADLINE_S:g} s"
            raise ConnectionLost(self._lost) from error
        except ConnectionLost as error:
            self._lost = self._lost or f"the connection to {self.name} broke: {error}"
            raise ConnectionLost(self._lost) from error
        finally:
            self._round = None
        return self._replies

    async def _read(self) -> None:
        """Collect replies as they arrive; notice the end of the connection at once, also when it is idle."""
        try:
            while True:
                reply = await self._connection.receive()
                if self._round is None:
                    raise ConnectionLost("a reply without a command")
                self._replies.append(reply)
                self._replied_at = asyncio.get_running_loop().time()
                if len(self._replies) == self._expected and not self._round.done():
                    self._round.set_result(None)
        except ConnectionLost as error:
            self._lost = self._lost or f"the connection to {self.name} broke: {error}"
            if self._round is not None and not self._round.done():
                self._round.set_exception(ConnectionLost(self._lost))
        self._work.set()
