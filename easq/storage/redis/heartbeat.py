"""What a server does at Redis besides its callers' verbs: it shows that it is there, does what is due, and is told.

Each second, and when something is due, it looks at each stream: time that is over, servers that are gone. What it hears
in its channel are hints, so that nobody waits for the next look.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from math import inf
from typing import Any

from easq.errors import EasqError, StorageError
from easq.model import NEWEST, Frame, Tags
from easq.storage.base import Burial, Failed, Timing
from easq.storage.long_poll import Waiting
from easq.storage.redis.codec import pack_tags, unpack_tags
from easq.storage.redis.stream import HINT, SCHEMA, Argument, Caller, Remote, key_prefix, settings_of

log = logging.getLogger(__name__)

#: a stream with connections or claims of this server is checked at this interval, in parts of the server lease, drawn
#: anew each time
LOOK = (0.12, 0.2)
#: and so many of the other streams each time, in turn: their timers run here, and ended servers are reported by `alive`
_IDLE_LOOKS = 8
#: most concurrent calls where one is made for each stream
_AT_ONCE = 500
#: a server that stops has so long to release its connections and claims, in seconds; the rest expires with its lease
_LEAVE_S = 5.0
_STREAMS, _SERVERS = "easq:streams", "easq:servers"
#: a script that finds its stream gone or behind is called again so often
_TRIES = 5


class Attendance:
    """The streams that this server has opened, by name."""

    def __init__(
        self, link: Caller, timing: Timing, clock: Callable[[], float] | None, lease_s: float
    ) -> None:
        self.server = secrets.token_hex(8)
        self.waiting = Waiting()
        self._link = link
        self._timing = timing
        self._clock = clock
        self._lease_s = lease_s
        self._streams: dict[str, Remote] = {}
        self._by_prefix: dict[bytes, Remote] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: streams to be checked next although this server has nothing there
        self._idle: list[Remote] = []
        #: servers with a valid lease, and those whose lease has expired
        self._alive: set[bytes] = set()
        self._gone: set[bytes] = set()
        #: when this server last renewed its lease, and since when it has always done so in time
        self._told_at = self._steady_since = -inf

    def __getitem__(self, stream: str) -> Remote:
        return self._streams[stream]

    # -- running ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Redis is there, and this server is told of what is its."""
        await self._link.connect(self._prepare)
        await self._link.listen(HINT + self.server, self._hear)
        await self._tell()
        self._soon(self._attend())

    async def close(self) -> None:
        """Connections and claims of this server are given up, as far as Redis is there."""
        for remote in self._streams.values():
            if remote.timer is not None:
                remote.timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link.is_up():
            try:
                async with asyncio.timeout(_LEAVE_S):
                    await _in_turn(self._leave(remote) for remote in self._streams.values() if remote.is_used)
                    await self._tell(stops=True)
            except (EasqError, TimeoutError) as error:
                log.debug("not everything is released: %r", error)
        for remote in self._streams.values():
            if remote.timer is not None:
                remote.timer.cancel()
        await self._link.close()

    async def _leave(self, remote: Remote) -> None:
        for script, args in list(remote.owed):
            await self.end_claim(remote, script, *args)
        more = 1
        while more:
            _, more = await self.ask(remote, "leave", replicated=False)

    async def open(self, stream: str, burial: Burial | None) -> None:
        """The stream is known here. Raises StorageError when another version of easq made it."""
        if stream not in self._streams:
            remote = Remote(stream, settings_of(self._timing, burial, self._lease_s), burial)
            # before anything is called: from now on it is opened at each Redis that this server is connected to
            self._streams[stream] = self._by_prefix[remote.prefix.encode()] = remote
            try:
                await self._open_again([remote])
                self._schedule(remote, 0.0)
            except BaseException:
                del self._streams[stream], self._by_prefix[remote.prefix.encode()]
                raise

    async def names(self) -> list[str]:
        """All stored streams."""
        return sorted(
            name.decode() for name in await self._link.call("streams", (_STREAMS,), (), replicated=False)
        )

    async def _open(self, remote: Remote) -> None:
        status, answer = await self._link.call(
            "open",
            # all that it looks at: while this slot moves, the connection is there for the other queues
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
        epoch, last, came = answer
        self._saw(remote, epoch, last)
        remote.told = came

    def _saw(self, remote: Remote, epoch: int, last: int) -> None:
        """The stream's epoch and highest index; that the epoch is a new one is said."""
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
        """After each connection: indexes go on above all that were given, and sleepers look."""
        await self._open_again(list(self._streams.values()))
        for remote in self._streams.values():
            self.waiting.wake(remote.name)
            self._schedule(remote, 0.0)

    async def _open_again(self, remotes: Sequence[Remote]) -> None:
        await _in_turn(self._open(remote) for remote in remotes)
        for start in range(0, len(remotes), _AT_ONCE):
            names = [remote.name for remote in remotes[start : start + _AT_ONCE]]
            await self._link.call("streams", (_STREAMS,), names, replicated=False)
        for remote in remotes:
            remote.wake_all()

    def _queue_of(self, remote: Remote) -> list[Remote]:
        """All streams of its queue that are open here."""
        queue = remote.prefix.partition("}")[0]
        return [other for other in self._streams.values() if other.prefix.partition("}")[0] == queue]

    # -- calls -----------------------------------------------------------------------------------------------------

    def _context(self, remote: Remote, *args: Argument) -> Sequence[Argument]:
        moment = "" if self._clock is None else str(round(self._clock() * 1000))
        return (remote.settings, moment, self.server, *args)

    async def ask(
        self, remote: Remote, script: str, *args: Argument, replicated: bool = True
    ) -> tuple[str, Any]:
        """The script's status and answer; what it asks for besides is seen to."""
        status, answer, doomed = await self._call(remote, script, *args, replicated=replicated)
        await self._bury(doomed)
        return status, answer

    async def _call(
        self, remote: Remote, script: str, *args: Argument, replicated: bool
    ) -> tuple[str, Any, Sequence[bytes]]:
        """The script's status and answer, and what has to be buried."""
        for _ in range(_TRIES):
            reply = await self._link.call(
                script, remote.keys, self._context(remote, *args), replicated=replicated
            )
            status = reply[0].decode()
            if status not in {"gone", "behind"}:
                return status, reply[1], self._follow(remote, *reply[2:]) if len(reply) > 2 else ()
            # Redis was emptied, or is older than what this server knows: so are the queue's other streams
            await self._open_again(self._queue_of(remote))
        raise StorageError(f"Redis keeps losing the stream {remote.name}")

    def _follow(
        self,
        remote: Remote,
        doomed: Sequence[bytes],
        woken: Sequence[tuple[bytes, Sequence[bytes]]],
        due_ms: int,
        more: int,
        came: int,
        last: int,
        epoch: int,
        fresh: Sequence[bytes],
    ) -> Sequence[bytes]:
        """Sleepers wake, and what is due is seen to in time; what is to be buried is returned."""
        self._saw(remote, epoch, last)
        remote.came = came
        for prefix, numbers in woken:
            self._wake(self._by_prefix.get(prefix), map(int, numbers))
        for place in range(0, len(fresh), 3):
            prefix, index, tags = fresh[place : place + 3]
            told = self._by_prefix.get(prefix)
            if told is not None:
                self.waiting.came(told.name, Frame(int(index), unpack_tags(tags)))
        if more:
            self._schedule(remote, 0.0)
        elif due_ms >= 0:
            self._schedule(remote, due_ms / 1000)
        return doomed

    def _wake(self, remote: Remote | None, numbers: Iterable[int]) -> None:
        for number in numbers:
            session = remote.sessions.get(number) if remote is not None else None
            if session is not None:
                session.something.set()

    def _schedule(self, remote: Remote, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        moment = loop.time() + after_s
        if remote.timer is not None:
            if remote.timer.when() <= moment:
                return
            remote.timer.cancel()
        remote.timer = loop.call_at(moment, self._due, remote)

    def _due(self, remote: Remote) -> None:
        remote.timer = None
        self._soon(self._look(remote))

    def _soon(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(self, doomed: Sequence[bytes]) -> None:
        """Items out of failures are in the rear store. What fails is left to the next look."""
        for place in range(0, len(doomed), 3):
            prefix, group, index = doomed[place : place + 3]
            remote = self._by_prefix.get(prefix)
            if remote is not None and remote.burial is not None:
                try:
                    await self._bury_one(remote, remote.burial, group, index)
                except EasqError as error:
                    log.warning("%s: item %d stays where it is: %s", remote.name, int(index), error)

    async def _bury_one(self, remote: Remote, burial: Burial, group: bytes, index: bytes) -> None:
        _, found = await self.ask(remote, "doomed", group, index, replicated=False)
        if found is None:
            return
        tags, data, deliveries, failures, code, reason = found
        frame = Frame(int(index), unpack_tags(tags), data)
        why = Failed(
            group.decode(),
            deliveries,
            failures,
            code.decode(errors="surrogatepass"),
            reason.decode(errors="surrogatepass"),
        )
        copy = burial.rear_copy(frame, why)
        answer = burial.answer(frame, why) if burial.sink else Frame(0)
        limits = burial.rear_limits
        status, _ = await self.ask(
            remote,
            "bury",
            group,
            index,
            key_prefix(burial.rear),
            limits.max_items,
            limits.max_bytes,
            pack_tags(copy.tags),
            copy.data,
            key_prefix(burial.sink) if burial.sink else "",
            pack_tags(answer.tags),
            answer.data,
        )
        if status == "full":
            log.warning("%s: item %d is out of failures and the rear store is full", remote.name, int(index))

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _attend(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(*LOOK) * self._lease_s)
            try:
                await self._tell()
            except EasqError as error:
                log.debug("the lease of this server is not renewed: %s", error)
            await _in_turn(self._look(remote) for remote in self._to_look_at())

    def _to_look_at(self) -> list[Remote]:
        """Return the streams to check now: those in use here, and a few of the others in turn."""
        if not self._idle:
            self._idle = list(self._streams.values())
        idle, self._idle = self._idle[:_IDLE_LOOKS], self._idle[_IDLE_LOOKS:]
        busy = (remote for remote in self._streams.values() if remote.is_busy or remote.name in self.waiting)
        return list(dict.fromkeys([*busy, *idle]))

    async def _tell(self, *, stops: bool = False) -> None:
        """Renew this server's lease, or end it when the server stops; check all streams when another server is gone.

        Raises StorageError and Unavailable.
        """
        begun = asyncio.get_running_loop().time()
        moment = "" if self._clock is None else str(round(self._clock() * 1000))
        lease_ms = -1 if stops else round(self._lease_s * 1000)
        alive, gone = await self._link.call(
            "alive", (_SERVERS,), (self.server, moment, lease_ms), replicated=False
        )
        if begun - self._told_at > self._lease_s / 2:
            self._steady_since = begun
        self._told_at = begun
        is_new = not self._gone.issuperset(gone)
        self._alive, self._gone = set(alive), set(gone)
        if is_new and not stops:
            for remote in self._streams.values():
                self._schedule(remote, 0.0)

    async def _look(self, remote: Remote) -> None:
        try:
            await self.look(remote)
        except EasqError as error:
            log.debug("%s: %s", remote.name, error)
        except Exception:
            # a mistake of ours; without another look this server would be taken for gone
            log.exception("%s: a look failed", remote.name)

    async def look(self, remote: Remote) -> None:
        """This server is alive at Redis, and what is due is done. Raises StorageError and Unavailable."""
        loop = asyncio.get_running_loop()
        begun, attaching = loop.time(), remote.attaching
        has_readers = remote.name in self.waiting
        is_steady = begun - self._told_at <= self._lease_s / 2 and begun - self._steady_since >= self._lease_s
        _, (mine, full, claims, others), doomed = await self._call(
            remote, "tick", remote.last, int(has_readers), int(is_steady), replicated=False
        )
        for server, left_ms in zip(others[::2], others[1::2], strict=True):
            if server not in self._alive and server != self.server.encode():
                self._schedule(remote, (left_ms + 1) / 1000)
        if doomed:
            # a dead server's items may be thousands, and each look is by what this one is known to be alive
            self._soon(self._bury(doomed))
        remote.lapses += begun - remote.renewed_at > self._lease_s / 2
        remote.renewed_at = max(remote.renewed_at, begun)
        came = remote.came
        if has_readers:
            remote.listed_until = begun + self._lease_s
        if came > remote.told:
            remote.told = came
            self.waiting.wake(remote.name)
        self._wake(remote, full)
        known = remote.sessions.keys() | remote.leaving.keys()
        for number in known - set(mine) if not attaching else ():
            self._wake(remote, [number])
        if not attaching and not remote.attaching:
            remote.leaving.update((number, False) for number in mine if number not in known)
        ending = {args[0] for _, args in remote.owed}
        for name in {name.decode() for name in claims} - {*remote.taking, *remote.claims.values()} - ending:
            # its end was told to a primary that is not the primary any more
            remote.owed["release", (name,)] = None
        # one after the other, the many that leave in an absence of Redis would keep this server from its next look
        await asyncio.gather(
            *(self.detach(remote, number, lost=lost) for number, lost in remote.leaving.items()),
            *(self.end_claim(remote, script, *args) for script, args in remote.owed),
        )

    async def detach(self, remote: Remote, number: int, *, lost: bool) -> None:
        """The connection is given up; if that fails, each look tries again."""
        remote.leaving[number] = lost
        await self.ask(remote, "detach", number, int(lost), replicated=False)
        remote.leaving.pop(number, None)

    async def end_claim(self, remote: Remote, script: str, *args: str) -> None:
        """The script was called with the name of a claim and what it has; if that fails, each look tries again.

        It may be called more than once: a claim's name is never given again.
        """
        remote.owed[script, args] = None
        await self.ask(remote, script, *args, replicated=False)
        remote.owed.pop((script, args), None)

    # -- readers ---------------------------------------------------------------------------------------------------

    def has_read(self, remote: Remote, came: int | None) -> None:
        """A read or a take was made when so many items had come."""
        remote.read_at = came
        if came is not None and remote.name not in self.waiting:
            remote.told = max(remote.told, came)

    def came(self, remote: Remote, frame: Frame) -> None:
        """This server's own item is there."""
        self._told(remote, remote.came)
        self.waiting.came(remote.name, frame)

    def _told(self, remote: Remote, came: int) -> None:
        if came == remote.told + 1 or remote.name not in self.waiting:
            remote.told = max(remote.told, came)

    async def wait(
        self,
        remote: Remote,
        *,
        start: int,
        tags: Tags,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        """As Storage.wait. What came between the read before and now ends it at once."""
        read_at, remote.read_at = remote.read_at, None
        if read_at is not None and remote.told > read_at:
            return
        if start == NEWEST:
            start = remote.last + 1
        if remote.listed_until < asyncio.get_running_loop().time() + self._lease_s / 2:
            if remote.name not in self.waiting and read_at is not None:
                remote.told = read_at
            self._soon(self._look(remote))
        await self.waiting.wait(
            remote.name, start=start, tags=tags, taking=taking, timeout_s=timeout_s, gone=gone
        )

    def _hear(self, message: bytes) -> None:
        prefix, kind, rest = message.split(b"\0", 2)
        remote = self._by_prefix.get(prefix)
        if remote is None:
            return
        if kind == b"s":
            self._wake(remote, map(int, rest.split()))
            return
        came, index, tags = rest.split(b"\0", 2)
        remote.saw(int(index))
        self._told(remote, int(came))
        self.waiting.came(remote.name, Frame(int(index), unpack_tags(tags)))


async def _in_turn(calls: Iterable[Awaitable[object]]) -> None:
    """Await all calls, `_AT_ONCE` at a time: the link accepts a bounded number. Raise the first error."""
    rest = iter(calls)
    while part := list(islice(rest, _AT_ONCE)):
        for error in await asyncio.gather(*part, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
