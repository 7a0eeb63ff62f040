"""One seed of a busy service: putters, groups of consumers, deletes and power cuts around the real engine, in virtual
time, and the history that is judged afterwards.

Two queues share the disk. Every group has one consumer that stays and commits at once, so that something is always free
for what comes back. In the last life nothing fails any more, and everything drains.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from easq.errors import QueueFull, StorageError
from easq.model import DELIVERY_COUNT, Consumer, Frame
from easq.protocol.operations import Negative
from easq.server.queue import Clock, QueuePolicy
from easq.server.queues import Queues
from easq.storage.base import Lease, Limits, Selection, Subscription, Timing
from tests.reliability.oplog import Event
from tests.simulation.engine import Loop, OnDisk, StoredStream

QUEUES = ("q", "p")
GRACE_S, MAX_FAILURES, PUTS = 2.0, 3, 12
#: what is due for redelivery is with a consumer that has room after so long at most (P11), in seconds
PROMISED_S = 0.25
#: everything drains within so much virtual time, in seconds
DRAINED_S = 300.0


@dataclass
class Order:
    """A put that is to be made; with a key it is repeated until it is acknowledged."""

    data: str
    tags: dict[str, str]
    priority: int
    key: str


@dataclass
class Course:
    """The result of a seed."""

    history: dict[tuple[str, str], list[Event]] = field(default_factory=lambda: defaultdict(list))
    rear: list[Frame] = field(default_factory=list)
    answers: list[Frame] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)  # redelivery, from when it was due
    complaints: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)


def play(seed: int) -> Course:
    """The whole seed."""
    loop = Loop()
    try:
        traffic = Traffic(seed)
        loop.run_until_complete(traffic.live())
        return traffic.course
    finally:
        loop.close()


def text_of(frame: Frame) -> str:
    """Return data and tags as text for the history: a delivered item must equal the item that was put."""
    tags = sorted((key, value) for key, value in frame.tags.items() if key != DELIVERY_COUNT)
    return f"{frame.data.decode()} {tags}"


class Traffic:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.course = Course()
        self.disk: dict[str, StoredStream] = {}
        self.groups = {"q": ("g", "h")[: self.random.choice((1, 2))], "p": ("g",)}
        self.ops = count(1)
        self.orders = {
            queue: [
                [self.order(f"{queue}{putter}-{number}") for number in range(PUTS)] for putter in range(3)
            ]
            for queue in QUEUES
        }
        self.refusing = self.random.choice((0.1, 0.6))
        self.pace_s = self.random.choice((0.0, 0.05, 0.5))
        self.deleted: dict[str, set[int]] = defaultdict(set)
        self.put_before: list[tuple[str, Order, int]] = []
        self.life = 0
        self.failures: dict[tuple[str, str, int], int] = defaultdict(int)
        self.due: dict[tuple[str, str, int], float] = {}  # index -> when others may have it
        self.last = False

    def order(self, name: str) -> Order:
        pick = self.random.choice
        tags = {"requestId": name, "color": pick(("red", "blue"))}
        key = f"key-{name}" if self.random.random() < 0.6 else ""
        return Order(name + "." * pick((0, 3, 30)), tags, pick((0, 0, 1)), key)

    # -- the history -----------------------------------------------------------------------------------------------

    def tell(self, queue: str, group: str, f: str, phase: str = "ok", **details: Any) -> None:
        """One event of a group of a queue; "" is all groups of it."""
        moment = asyncio.get_running_loop().time() + 1e-9 * next(self.ops)
        for name in [group] if group else self.groups[queue]:
            self.course.history[queue, name].append(Event(moment, "", f, phase, **details))

    # -- lives -----------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """A few lives, each but the last ended by a power cut."""
        for _ in range(self.random.choice((0, 1, 2, 3))):
            actors = await self.start()
            await asyncio.sleep(self.random.choice((0.05, 0.5, 3.0, 10.0)))
            self.engine.cut_power(written=self.random.random() < 0.5)
            await self.stop(actors)
            for queue in QUEUES:
                self.tell(queue, "", "kill")
            self.due.clear()
        self.last = True
        actors = await self.start()
        await self.drain()
        await self.look()
        await self.stop(actors)
        await self.engine.close()

    async def start(self) -> list[asyncio.Task[None]]:
        random = self.random
        self.life += 1
        self.engine = OnDisk(
            self.disk,
            Timing(leave_grace_s=GRACE_S, backoff_s=(0.0, 0.3)),
            takes_s=lambda: random.choice((0.0, 0.001, 0.02)),
            fails=lambda: not self.last and random.random() < 0.1,
        )
        await self.engine.start(lambda _: None)
        clock = Clock(asyncio.get_running_loop().time, lambda: 7)
        policy = QueuePolicy(max_failures=MAX_FAILURES)
        await Queues(self.engine, QUEUES, policy=policy, sink_policy=policy, clock=clock).open()
        work: list[Coroutine[Any, Any, None]] = []
        for queue in QUEUES:
            for group in self.groups[queue]:
                session = await self.attach(queue, group, "free", 2)
                work.append(self.stay(queue, group, session))
                work += [self.come_and_go(queue, group, user) for user in ("a", "b")]
            work += [self.put_all(queue, orders) for orders in self.orders[queue]]
            work.append(self.delete_some(queue))
        return [asyncio.ensure_future(one) for one in work]

    async def stop(self, actors: list[asyncio.Task[None]]) -> None:
        for actor in actors:
            actor.cancel()
        for ended in await asyncio.gather(*actors, return_exceptions=True):
            if isinstance(ended, Exception) and not isinstance(ended, StorageError):
                raise ended

    async def drain(self) -> None:
        """I15: nothing is put any more, and soon nothing is there."""
        until = asyncio.get_running_loop().time() + DRAINED_S
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(1.0)
            lengths = {queue: await self.length(queue) for queue in QUEUES}
            if not any(lengths.values()) and not any(any(left) for left in self.orders.values()):
                break
        self.course.left = {queue: await self.length(queue) for queue in QUEUES}

    async def length(self, stream: str) -> int:
        return (await self.engine.attributes(stream, now=asyncio.get_running_loop().time())).length

    async def look(self) -> None:
        """Collect the contents of the rear stores and sinks at the end."""
        for stream in await self.engine.streams():
            if stream not in QUEUES:
                frames = await self.engine.read(stream, Selection(0, length=10_000))
                (self.course.answers if stream.endswith("/sink") else self.course.rear).extend(frames)

    # -- who puts and deletes --------------------------------------------------------------------------------------

    async def put_all(self, queue: str, orders: list[Order]) -> None:
        while orders:
            await asyncio.sleep(self.random.random() * self.pace_s)
            if await self.put(queue, orders[0]) or not orders[0].key:
                orders.pop(0)
            if self.put_before and self.random.random() < 0.2:
                await self.repeat()

    async def put(self, queue: str, order: Order) -> bool:
        """Whether it is known what became of it."""
        frame = Frame(0, order.tags, order.data.encode())
        op, text = next(self.ops), text_of(frame)
        self.tell(queue, "", "put", "invoke", op=op, payload=text)
        try:
            done = await self.engine.append(
                queue, frame, priority=order.priority, limits=Limits(), key=order.key
            )
        except QueueFull:
            # refused, and certainly not stored: put again as another item
            order.data += "'"
            self.tell(queue, "", "put", "fail", op=op, payload=text)
            return False
        except (asyncio.CancelledError, StorageError):
            self.tell(queue, "", "put", "info", op=op, payload=text)
            if not order.key:
                order.data += "!"
            raise
        self.tell(queue, "", "put", op=op, payload=text, index=done.index)
        self.put_before.append((queue, order, done.index))
        return True

    async def repeat(self) -> None:
        """A put that was acknowledged, sent again with its key: the first answer, and nothing stored (I4)."""
        queue, order, index = self.random.choice(self.put_before)
        if order.key:
            frame = Frame(0, {"requestId": "another"}, order.data.encode())
            try:
                again = await self.engine.append(queue, frame, priority=0, limits=Limits(), key=order.key)
            except QueueFull:
                self.course.complaints.append(f"repeated: {order} was {index}, and then was stored anew")
                return
            if (again.index, again.request_id, again.duplicate) != (index, order.tags["requestId"], True):
                self.course.complaints.append(f"repeated: {order} was {index}, and then {again}")

    async def delete_some(self, queue: str) -> None:
        for _ in range(3):
            await asyncio.sleep(self.random.random() * 4)
            stats = await self.engine.attributes(queue, now=0.0)
            if not stats.length:
                continue
            index = self.random.randint(stats.first, stats.last)
            truncating = self.random.random() < 0.3
            indexes = tuple(range(1, index)) if truncating else (index,)
            self.deleted[queue].update(indexes)
            self.forget_due(queue, self.groups[queue], indexes)
            self.tell(queue, "", "delete", "invoke", indexes=indexes)
            if truncating:
                await self.engine.truncate(queue, index)
            else:
                await self.engine.delete(queue, indexes)
            self.tell(queue, "", "delete", indexes=indexes)

    # -- who consumes ----------------------------------------------------------------------------------------------

    async def attach(self, queue: str, group: str, user: str, window: int) -> int:
        now = asyncio.get_running_loop().time()
        session = await self.engine.attach(queue, Consumer(group, user), Subscription(window), now=now)
        self.tell(queue, group, "open", connection=f"{self.life}-{session}", window=window)
        return session

    async def lease(self, queue: str, group: str, session: int, within_s: float) -> list[int]:
        """Return the items that arrive within the time, and enter them into the history."""
        try:
            leases = await asyncio.wait_for(
                self.engine.lease(queue, session, index_only=False), timeout=within_s
            )
        except TimeoutError:
            return []
        self.delivered(queue, group, session, leases)
        return [lease.frame.index for lease in leases]

    def delivered(self, queue: str, group: str, session: int, leases: Iterable[Lease]) -> None:
        for lease in leases:
            index = lease.frame.index
            self.tell(
                queue,
                group,
                "deliver",
                index=index,
                payload=text_of(lease.frame),
                connection=f"{self.life}-{session}",
            )
            due = self.due.pop((queue, group, index), None)
            if due is not None:
                self.course.waits_s.append(max(0.0, asyncio.get_running_loop().time() - due))

    async def stay(self, queue: str, group: str, session: int) -> None:
        """Always there, commits at once. I11: it never waits beside an item that was due a quarter second ago."""
        while True:
            indexes = await self.lease(queue, group, session, PROMISED_S)
            if indexes:
                await self.commit(queue, group, indexes)
                continue
            now = asyncio.get_running_loop().time()
            for (other, name, index), due in self.due.items():
                if (other, name) == (queue, group) and due <= now - PROMISED_S:
                    self.course.complaints.append(
                        f"not redelivered: {index} of {group}, due {now - due} s ago"
                    )

    async def come_and_go(self, queue: str, group: str, user: str) -> None:
        """Takes items, commits, refuses or forgets them, and leaves in any way; in the last life it does not fail."""
        random, now = self.random, asyncio.get_running_loop().time
        while True:
            session = await self.attach(queue, group, user, window := random.randint(1, 5))
            out: list[int] = []
            for _ in range(random.randint(1, 12)):
                if len(out) < window:
                    out += await self.lease(queue, group, session, random.choice((0.1, 1.0)))
                chosen = [index for index in out if random.random() < 0.6]
                out = [index for index in out if index not in chosen]
                if chosen and not self.last and random.random() < self.refusing:
                    await self.refuse(queue, group, chosen)
                else:
                    await self.commit(queue, group, chosen)
            if self.last:
                await self.commit(queue, group, out)
            lost = random.random() < 0.6
            self.leave(queue, group, out if not self.last else [], lost=lost)
            with suppress(QueueFull):  # of something that was given up with it: it comes again
                await self.engine.detach(queue, session, lost=lost, now=now())
            await asyncio.sleep(random.choice((0.0, 0.3, 5.0)))

    def leave(self, queue: str, group: str, out: list[int], *, lost: bool) -> None:
        """Note when the pending items are due: at once after a close, after the grace period when the connection was
        lost.
        """
        self.tell(queue, group, "close")
        moment = asyncio.get_running_loop().time() + (GRACE_S if lost else 0.0)
        for index in out:
            self.failures[queue, group, index] += lost
            if self.failures[queue, group, index] < 2 and index not in self.deleted[queue]:
                self.due[queue, group, index] = moment

    async def refuse(self, queue: str, group: str, indexes: list[int]) -> None:
        self.tell(queue, group, "negative", "invoke", indexes=tuple(indexes))
        for index in indexes:
            self.failures[queue, group, index] += 1
        now = asyncio.get_running_loop().time()
        with suppress(QueueFull):  # nothing could be given up: it comes again
            await self.engine.negative(queue, group, Negative(tuple(indexes), "500", "no"), now=now)

    async def commit(self, queue: str, group: str, indexes: list[int]) -> None:
        if indexes:
            self.forget_due(queue, [group], indexes)
            self.tell(queue, group, "commit", "invoke", indexes=tuple(indexes))
            await self.engine.commit(queue, group, indexes)
            self.tell(queue, group, "commit", indexes=tuple(indexes))

    def forget_due(self, queue: str, groups: Iterable[str], indexes: Iterable[int]) -> None:
        for group in groups:
            for index in indexes:
                self.due.pop((queue, group, index), None)
