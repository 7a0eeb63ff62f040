"""The regular duties of a server at Redis: it renews its lease, does what is due, and receives hints.

Each second, and when something is due, it checks each stream: for timers that are due, and for servers that are gone.
The messages in its channel are hints, so that nobody waits for the next check.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from math import inf
from typing import Any

from easq.errors import EasqError, StorageError
from easq.model import NEWEST, Frame
from easq.storage.base import DeadLetterPolicy, Selection, Timing
from easq.storage.long_poll import LongPolls
from easq.storage.redis.codec import unpack_tags
from easq.storage.redis.dead_letters import write_dead_letter
from easq.storage.redis.stream import (
    HINT,
    SCHEMA,
    Argument,
    RemoteStream,
    ScriptClient,
    settings_of,
)

log = logging.getLogger(__name__)

#: a stream with connections or claims of this server is checked at this interval, in parts of the server lease, drawn
#: anew each time
CHECK = (0.12, 0.2)
#: number of other streams that are checked each time, to run their timers and to detect ended servers with `alive`
_IDLE_CHECKS = 8
#: most concurrent calls where one is made for each stream
_AT_ONCE = 500
#: seconds in which a stopping server releases its connections and claims; the rest expires with its lease
_LEAVE_S = 5.0
_STREAMS, _SERVERS = "easq:streams", "easq:servers"
#: most calls of a script that finds its stream gone or behind
_TRIES = 5


class Heartbeat:
    """The lease of this server, and the streams that it has opened, by name."""

    def __init__(
        self, client: ScriptClient, timing: Timing, clock: Callable[[], float] | None, lease_s: float
    ) -> None:
        self.server = secrets.token_hex(8)
        self.long_polls = LongPolls()
        self._client = client
        self._timing = timing
        self._clock = clock
        self._lease_s = lease_s
        self._streams: dict[str, RemoteStream] = {}
        self._by_prefix: dict[bytes, RemoteStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: streams to check next although this server has nothing there
        self._idle: list[RemoteStream] = []
        #: servers with a valid lease, and those whose lease has expired
        self._alive: set[bytes] = set()
        self._gone: set[bytes] = set()
        #: when this server last renewed its lease, and since when each renewal was in time
        self._renewed_at = self._steady_since = -inf

    def __getitem__(self, stream: str) -> RemoteStream:
        return self._streams[stream]

    # -- running -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, subscribe to the channel of this server, and begin the heartbeat.

        Raises StorageError and Unavailable; the connections are then closed.
        """
        await self._client.connect(self._prepare)
        try:
            await self._client.listen(HINT + self.server, self._hear)
            await self._renew_lease()
        except BaseException:
            await self._client.close()
            raise
        self._soon(self._beat())

    async def close(self) -> None:
        """Release connections and claims of this server, as far as Redis can be reached, and disconnect."""
        for remote in self._streams.values():
            if remote.timer is not None:
                remote.timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._client.is_up():
                async with asyncio.timeout(_LEAVE_S):
                    await _all(self._leave(remote) for remote in self._streams.values() if remote.is_used)
                    await self._renew_lease(stops=True)
        except (EasqError, TimeoutError) as error:
            log.debug("not everything is released: %r", error)
        finally:
            for remote in self._streams.values():
                if remote.timer is not None:
                    remote.timer.cancel()
            await self._client.close()

    async def _leave(self, remote: RemoteStream) -> None:
        for script, args in list(remote.unfinished):
            await self.end_claim(remote, script, *args)
        more = 1
        while more:
            _, more = await self.ask(remote, "leave", replicated=False)

    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None) -> None:
        """Open the stream. Raises StorageError when another version of easq created it."""
        if stream not in self._streams:
            remote = RemoteStream(
                stream, settings_of(self._timing, dead_letters, self._lease_s), dead_letters
            )
            # before the first call: from now on it is opened again after each new connection
            self._streams[stream] = self._by_prefix[remote.prefix.encode()] = remote
            try:
                await self._open_again([remote])
                self._schedule(remote, 0.0)
            except BaseException:
                del self._streams[stream], self._by_prefix[remote.prefix.encode()]
                raise

    async def names(self) -> list[str]:
        """Return the names of all stored streams."""
        return sorted(
            name.decode() for name in await self._client.call("streams", (_STREAMS,), (), replicated=False)
        )

    async def _open(self, remote: RemoteStream) -> None:
        status, answer = await self._client.call(
            "open",
            # the only key that it reads: while this slot moves, the other queues can use the connection
            remote.keys[:1],
            self._context(remote, remote.last, remote.number, remote.epoch),
            replicated=False,
        )
        if status == b"schema":
            raise StorageError(
                f"the stream {remote.name} at Redis has schema {answer.decode(errors='replace')[:20]!r},"
                f" this easq knows {SCHEMA}",
                hint="use the version of easq that made it, or another Redis or database",
            )
        epoch, last, arrivals = answer
        self._saw(remote, epoch, last)
        remote.announced = arrivals

    def _saw(self, remote: RemoteStream, epoch: int, last: int) -> None:
        """Record epoch and highest index of the stream; log a warning when the epoch is a new one."""
        is_new, remote.epoch = epoch > remote.epoch, max(remote.epoch, epoch)
        if is_new and (remote.last or remote.number):
            log.warning(
                "%s: Redis was started anew or emptied, or is another one: acknowledged items may have been lost;"
                " epoch %d, indexes go on above %d",
                remote.name,
                epoch,
                last,
            )
        remote.saw(last)

    async def _prepare(self, _: bool) -> None:
        """After each new connection: raise the indexes above all that were given, and wake connections and long
        polls.
        """
        await self._open_again(list(self._streams.values()))
        for remote in self._streams.values():
            self.long_polls.wake(remote.name)
            self._schedule(remote, 0.0)

    async def _open_again(self, remotes: Sequence[RemoteStream]) -> None:
        await _all(self._open(remote) for remote in remotes)
        for start in range(0, len(remotes), _AT_ONCE):
            names = [remote.name for remote in remotes[start : start + _AT_ONCE]]
            await self._client.call("streams", (_STREAMS,), names, replicated=False)
        for remote in remotes:
            remote.wake_all()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _context(self, remote: RemoteStream, *args: Argument) -> Sequence[Argument]:
        moment = "" if self._clock is None else str(round(self._clock() * 1000))
        return (remote.settings, moment, self.server, *args)

    async def ask(
        self, remote: RemoteStream, script: str, *args: Argument, replicated: bool = True
    ) -> tuple[str, Any]:
        """Call the script, and return its status and answer. Dead letters that it requests are written."""
        status, answer, exhausted = await self._call(remote, script, *args, replicated=replicated)
        await self._write_dead_letters(exhausted)
        return status, answer

    async def _call(
        self, remote: RemoteStream, script: str, *args: Argument, replicated: bool
    ) -> tuple[str, Any, Sequence[bytes]]:
        """Call the script, and return its status, its answer, and the items for which it requests dead letters."""
        for _ in range(_TRIES):
            reply = await self._client.call(
                script, remote.keys, self._context(remote, *args), replicated=replicated
            )
            status = reply[0].decode()
            if status not in {"gone", "behind"}:
                return status, reply[1], self._follow(remote, *reply[2:]) if len(reply) > 2 else ()
            # Redis was emptied, or has less than this server knows: so do the queue's other streams
            queue = remote.prefix.partition("}")[0]
            await self._open_again(
                [other for other in self._streams.values() if other.prefix.partition("}")[0] == queue]
            )
        raise StorageError(f"Redis keeps losing the stream {remote.name}")

    def _follow(
        self,
        remote: RemoteStream,
        exhausted: Sequence[bytes],
        woken: Sequence[tuple[bytes, Sequence[bytes]]],
        due_ms: int,
        more: int,
        arrivals: int,
        last: int,
        epoch: int,
        fresh: Sequence[bytes],
    ) -> Sequence[bytes]:
        """Wake connections and long polls, schedule the next check, and return the items that need dead letters."""
        self._saw(remote, epoch, last)
        remote.arrivals = arrivals
        for prefix, numbers in woken:
            self._wake(self._by_prefix.get(prefix), map(int, numbers))
        for place in range(0, len(fresh), 3):
            prefix, index, tags = fresh[place : place + 3]
            announced = self._by_prefix.get(prefix)
            if announced is not None:
                self.long_polls.item_arrived(announced.name, Frame(int(index), unpack_tags(tags)))
        if more:
            self._schedule(remote, 0.0)
        elif due_ms >= 0:
            self._schedule(remote, due_ms / 1000)
        return exhausted

    def _wake(self, remote: RemoteStream | None, numbers: Iterable[int]) -> None:
        for number in numbers:
            session = remote.sessions.get(number) if remote is not None else None
            if session is not None:
                session.wakeup.set()

    def _schedule(self, remote: RemoteStream, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        moment = loop.time() + after_s
        if remote.timer is not None:
            if remote.timer.when() <= moment:
                return
            remote.timer.cancel()
        remote.timer = loop.call_at(moment, self._due, remote)

    def _due(self, remote: RemoteStream) -> None:
        remote.timer = None
        self._soon(self._check(remote))

    def _soon(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_dead_letters(self, exhausted: Sequence[bytes]) -> None:
        """Write the requested dead letters. Those that fail are left to the next check."""
        for place in range(0, len(exhausted), 3):
            prefix, group, index = exhausted[place : place + 3]
            remote = self._by_prefix.get(prefix)
            if remote is not None and remote.dead_letters is not None:
                try:
                    await write_dead_letter(self.ask, remote, remote.dead_letters, group, index)
                except EasqError as error:
                    log.warning("%s: item %d stays where it is: %s", remote.name, int(index), error)

    # -- checks --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the lease and check streams, again and again: those in use here, and a few of the others in turn."""
        while True:
            await asyncio.sleep(random.uniform(*CHECK) * self._lease_s)
            try:
                await self._renew_lease()
            except EasqError as error:
                log.debug("the lease of this server is not renewed: %s", error)
            if not self._idle:
                self._idle = list(self._streams.values())
            idle, self._idle = self._idle[:_IDLE_CHECKS], self._idle[_IDLE_CHECKS:]
            remotes = self._streams.values()
            busy = (remote for remote in remotes if remote.is_busy or remote.name in self.long_polls)
            await _all(self._check(remote) for remote in dict.fromkeys([*busy, *idle]))

    async def _renew_lease(self, *, stops: bool = False) -> None:
        """Renew the lease of this server, or end it when the server stops; check all streams when another server is
        gone.

        Raises StorageError and Unavailable.
        """
        begun = asyncio.get_running_loop().time()
        moment = "" if self._clock is None else str(round(self._clock() * 1000))
        lease_ms = -1 if stops else round(self._lease_s * 1000)
        alive, gone = await self._client.call(
            "alive", (_SERVERS,), (self.server, moment, lease_ms), replicated=False
        )
        if begun - self._renewed_at > self._lease_s / 2:
            self._steady_since = begun
        self._renewed_at = begun
        is_new = not self._gone.issuperset(gone)
        self._alive, self._gone = set(alive), set(gone)
        if is_new and not stops:
            for remote in self._streams.values():
                self._schedule(remote, 0.0)

    async def _check(self, remote: RemoteStream) -> None:
        try:
            await self.check(remote)
        except EasqError as error:
            log.debug("%s: %s", remote.name, error)
        except Exception:
            # a bug; without further checks the lease of this server would expire
            log.exception("%s: a check failed", remote.name)

    async def check(self, remote: RemoteStream) -> None:
        """Renew the lease of this server at the stream, and do what is due. Raises StorageError and Unavailable."""
        loop = asyncio.get_running_loop()
        begun, attaching = loop.time(), remote.attaching
        has_readers = remote.name in self.long_polls
        is_steady = (
            begun - self._renewed_at <= self._lease_s / 2 and begun - self._steady_since >= self._lease_s
        )
        _, (mine, full, claims, others), exhausted = await self._call(
            remote, "tick", remote.last, int(has_readers), int(is_steady), replicated=False
        )
        for server, left_ms in zip(others[::2], others[1::2], strict=True):
            if server not in self._alive and server != self.server.encode():
                self._schedule(remote, (left_ms + 1) / 1000)
        if exhausted:
            # there may be thousands after a server ended, and this server has to go on renewing its lease
            self._soon(self._write_dead_letters(exhausted))
        remote.lapses += begun - remote.renewed_at > self._lease_s / 2
        remote.renewed_at = max(remote.renewed_at, begun)
        arrivals = remote.arrivals
        if has_readers:
            remote.listed_until = begun + self._lease_s
        if arrivals > remote.announced:
            remote.announced = arrivals
            self.long_polls.wake(remote.name)
        self._wake(remote, full)
        known = remote.sessions.keys() | remote.leaving.keys()
        for number in known - set(mine) if not attaching else ():
            self._wake(remote, [number])
        if not attaching and not remote.attaching:
            remote.leaving.update((number, False) for number in mine if number not in known)
        ending = {args[0] for _, args in remote.unfinished}
        for name in {name.decode() for name in claims} - {*remote.taking, *remote.claims.values()} - ending:
            # it was ended at a server that is no longer the primary
            remote.unfinished["release", (name,)] = None
        # one after the other, the many that were left during an absence of Redis would delay the next check
        await asyncio.gather(
            *(self.detach(remote, number, lost=lost) for number, lost in remote.leaving.items()),
            *(self.end_claim(remote, script, *args) for script, args in remote.unfinished),
        )

    async def detach(self, remote: RemoteStream, number: int, *, lost: bool) -> None:
        """Remove the connection; if that fails, each check tries again."""
        remote.leaving[number] = lost
        await self.ask(remote, "detach", number, int(lost), replicated=False)
        remote.leaving.pop(number, None)

    async def end_claim(self, remote: RemoteStream, script: str, *args: str) -> None:
        """Call the script with the name of a claim and its items; if that fails, each check tries again.

        It may be called more than once: the name of a claim is used once.
        """
        remote.unfinished[script, args] = None
        await self.ask(remote, script, *args, replicated=False)
        remote.unfinished.pop((script, args), None)

    # -- long polls ----------------------------------------------------------------------------------------------------

    def has_read(self, remote: RemoteStream, arrivals: int | None) -> None:
        """Record the number of arrivals at the time of a read or take."""
        remote.read_at = arrivals
        if arrivals is not None and remote.name not in self.long_polls:
            remote.announced = max(remote.announced, arrivals)

    def item_arrived(self, remote: RemoteStream, frame: Frame) -> None:
        """Wake the long polls that want an item that this server has stored."""
        self._announce(remote, remote.arrivals)
        self.long_polls.item_arrived(remote.name, frame)

    def _announce(self, remote: RemoteStream, arrivals: int) -> None:
        if arrivals == remote.announced + 1 or remote.name not in self.long_polls:
            remote.announced = max(remote.announced, arrivals)

    async def wait(
        self,
        remote: RemoteStream,
        selection: Selection,
        *,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        """Wait as `Storage.wait` does. Items that arrived since the last read end it at once."""
        read_at, remote.read_at = remote.read_at, None
        if read_at is not None and remote.announced > read_at:
            return
        if selection.start == NEWEST:
            selection = replace(selection, start=remote.last + 1)
        if remote.listed_until < asyncio.get_running_loop().time() + self._lease_s / 2:
            if remote.name not in self.long_polls and read_at is not None:
                remote.announced = read_at
            self._soon(self._check(remote))
        await self.long_polls.wait(remote.name, selection, taking=taking, timeout_s=timeout_s, gone=gone)

    def _hear(self, message: bytes) -> None:
        prefix, kind, rest = message.split(b"\0", 2)
        remote = self._by_prefix.get(prefix)
        if remote is None:
            return
        if kind == b"s":
            self._wake(remote, map(int, rest.split()))
            return
        arrivals, index, tags = rest.split(b"\0", 2)
        remote.saw(int(index))
        self._announce(remote, int(arrivals))
        self.long_polls.item_arrived(remote.name, Frame(int(index), unpack_tags(tags)))


async def _all(calls: Iterable[Awaitable[object]]) -> None:
    """Await all calls, `_AT_ONCE` at a time: the client accepts a bounded number. Raise the first error."""
    rest = iter(calls)
    while part := list(islice(rest, _AT_ONCE)):
        for error in await asyncio.gather(*part, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
