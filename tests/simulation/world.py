"""One seed: a stream, a disk, a clock that only moves here, random events, and the books that judge them.

In eager phases every connection fetches after every event, so that each dispatch is judged exactly; in lazy ones
frames wait to be fetched, and connections end, items are claimed, and commits come in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random

from easq.errors import QueueFull, StreamEnded
from easq.model import Consumer
from easq.protocol.operations import BUSY, SHUTDOWN, Negative
from easq.storage.base import Limits, Subscription, Timing
from easq.storage.rules.effects import Effects
from tests.simulation.books import Books, Broken, Item, Seat, counts_of, hold
from tests.simulation.disk import Disk, Job

#: random events of one seed
EVENTS = 300
GROUPS, USERS = ("g1", "g2", "g3"), ("a", "b", "c")
#: rounds of the last phase, each of which moves the clock when nothing came
_ROUNDS = 400


@dataclass(frozen=True)
class Played:
    """Statistics of one seed."""

    events: int
    deliveries: int
    crashes: int


def play(seed: int, events: int = EVENTS) -> Played:
    """A whole seed. Raises Broken with the seed and all its events."""
    world = World(seed)
    try:
        for _ in range(events):
            world.step()
        world.drain()
    except Exception as error:
        story = "\n".join(f"  {number:3} {event}" for number, event in enumerate(world.story))
        raise Broken(f"seed {seed}: {type(error).__name__}: {error}\n{story}") from error
    return Played(len(world.story), world.deliveries, world.crashes)


class World:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        pick = self.random.choice
        self.timing = Timing(
            leave_grace_s=pick((0.0, 2.0, 2.0)),
            group_retention_s=pick((5.0, 60.0)),
            backoff_s=pick(((0.0,), (0.0, 0.1, 0.5, 2.0, 5.0), (0.3,))),
            busy_limit_s=pick((0.0, 0.4, 0.4)),
            forget_s=pick((3.0, 300.0)),
        )
        self.limits = Limits(pick((6, 20, 1000)), pick((60, 10_000)), evict=self.random.random() < 0.15)
        self.groups = GROUPS[: pick((1, 1, 2, 3))]
        self.now = 1000.0
        self.story: list[str] = [f"{self.timing} {self.limits}"]
        self.deliveries = self.crashes = 0
        self.eager = self.exact = True
        self.may_fail = True
        max_failures = pick((0, 2, 3, 5))
        self.books = Books(self.timing, max_failures)
        self.disk = Disk()
        self.stream = self.disk.start(self.timing, max_failures, self._has_rear_room, self.now)
        self.seats: dict[int, Seat] = {}
        self.left: list[int] = []  # numbers of connections that ended
        self.sent: dict[int, list[int]] = {}
        weights: dict[Callable[[], None], float] = {
            self.put: 22,
            self.sync: 16,
            self.commit: 16,
            self.wait: 10,
            self.negative: 7,
            self.attach: 7,
            self.fetch: 8,
            self.leave: 5,
            self.claim: 3,
            self.release: 3,
            self.delete: 2,
            self.flush: 2,
            self.truncate: 0.7,
            self.crash: 1,
            self.end: 0.7,
            self.rear: 1,
            self.pace: 2,
        }
        # no two seeds have the same mixture: some fail often, some never, some hardly commit
        self._events = list(weights)
        self._weights = [weight * pick((0.2, 1.0, 1.0, 3.0)) for weight in weights.values()]

    def _has_rear_room(self, _items: int, _size: int) -> bool:
        return self.books.has_rear_room

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One random event, and all checks."""
        (event,) = self.random.choices(self._events, self._weights)
        was_eager = self.eager
        self.sent = {}
        self.exact = False
        event()
        self.exact = was_eager and self.eager
        if self.eager:
            self.fetch_all()
            self.books.idle(self.sent if was_eager else {})
        self.books.no_others()
        self.check()

    def tell(self, *what: object) -> None:
        self.story.append(f"{self.now:.2f} " + " ".join(map(str, what)))

    def done(self, effects: Effects, *acks: Callable[[], None]) -> None:
        """Check the effects and write them to the disk; `acks` are called once they are stored."""
        self.books.settle(effects)
        for number in effects.replaced:
            self._forget(number)
        self.submit(Job(effects=effects), *acks)

    def submit(self, job: Job, *acks: Callable[[], None]) -> None:
        def told() -> None:
            for ack in acks:
                ack()

        job.told = told
        for name in job.effects.groups:
            job.filters[name] = self.stream.filters(name) or []
        self.disk.submit(job, self.now)

    def _forget(self, number: int) -> None:
        self.seats.pop(number)
        self.left.append(number)

    # -- what is asked of the stream -------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare the attributes of the stream with the model (I1, I3, I13)."""
        books, stream = self.books, self.stream
        seen = [index for index in sorted(books.items) if index not in books.claimed]
        there = list(stream.entries.indexes_from(0))
        hold("I1 what is there, in order", there == seen, there, seen)
        stats = stream.stats(self.now)
        size = sum(books.items[index].size for index in seen)
        told = (stats.length, stats.size, stats.first, stats.last, stats.next, stats.ended)
        due = (
            len(seen),
            size,
            seen[0] if seen else 0,
            seen[-1] if seen else 0,
            books.highest + 1,
            books.ended,
        )
        hold("I13 stats", told == due, told, due)
        counts = {name: len(team.seats) for name, team in books.teams.items() if team.seats}
        lines = {line.id: line for line in stats.groups}
        told_counts = {name: line.consumers for name, line in lines.items() if line.consumers}
        hold("I13 groups", told_counts == counts, told_counts, counts)
        running = {line.id: line for line in stats.consumers if line.status == "Running"}
        hold("I13 consumers", len(running) == len(self.seats) == sum(counts.values()), running, self.seats)
        for seat in self.seats.values():
            line = running[f"{seat.team.name}.{seat.user}"]
            pending = (
                line.pending == len(seat.pending)
                if self.eager
                else len(seat.pending) <= line.pending <= seat.window
            )
            fits = line.window == seat.window and line.slots == seat.window - line.pending
            hold("I13 a consumer's line", pending and fits, line, seat)
        hold("P11 what is due is done in time", stream.due <= books.due(), stream.due, books.due())
        if self.eager:
            for name in books.teams if seen else ():
                self._check_place(name, seen[len(self.story) % len(seen)])
            for name, line in lines.items():
                out = {index for seat in books.teams[name].seats.values() for index in seat.pending}
                hold(
                    "I13 a group's line",
                    (line.pending, line.index) == (len(out), min(out, default=0)),
                    line,
                    out,
                )

    def _check_place(self, name: str, index: int) -> None:
        """How many items come before it in the group (search's WaitCount)."""
        team, items = self.books.teams[name], self.books.items
        out = {other for seat in team.seats.values() for other in seat.pending}
        place = self.stream.locate(name, index)
        due = [
            other
            for other in items.keys() - self.books.claimed - out - team.committed
            if (-items[other].priority, other) < (-items[index].priority, index)
        ]
        hold("I13 its place", place is not None and (index in out or place.ahead == len(due)), place, due)

    def pending(self, name: str, index: int) -> Seat | None:
        """The connection that has the item, sent or not."""
        team = self.books.teams.get(name)
        for seat in team.seats.values() if team is not None else ():
            if index in seat.pending:
                return seat
        if self.eager or team is None:
            return None
        place = self.stream.locate(name, index)
        return team.seats[place.owner] if place is not None and place.owner is not None else None

    def unsent(self, seat: Seat) -> set[int]:
        """The items dispatched to the connection that it has not fetched."""
        if self.eager:
            return set()
        waiting = self.books.items.keys() - seat.pending - seat.team.committed
        return {index for index in waiting if self.pending(seat.team.name, index) is seat}

    # -- events: entries -------------------------------------------------------------------------------------------

    def put(self) -> None:
        priority = self.random.choice((0, 0, 0, 1, 7))
        tags = {"color": self.random.choice(("red", "blue"))}
        item = Item(priority, self.random.randint(0, 12), tags)
        had_room = not self.books.ended and self.books.make_room(item.size, self.limits)
        try:
            index, effects = self.stream.allocate(item.size, self.limits)
        except (QueueFull, StreamEnded) as refused:
            self.tell("put refused", type(refused).__name__)
            hold(
                "P14 refused when full",
                not had_room and isinstance(refused, StreamEnded) == self.books.ended,
                item,
            )
            return
        hold("P14 taken when there is room", had_room, item)
        fails = self.may_fail and self.random.random() < 0.08
        self.tell("put", index, item, "which fails" if fails else "")
        self.books.allocate(index, item)
        effects = effects or Effects()
        gone = tuple(effects.removed)
        self.done(effects, lambda: self.books.gone.update(gone))

        def told() -> None:
            if fails:
                self.stream.entries.drop(index)
                self.books.drop(index)
            else:
                self.stream.entries.show(index, priority)
                self.books.show(index)

        self.submit(Job(stored=(index, priority, item.size, tags), fails=fails), told)

    def sync(self, count: int | None = None) -> None:
        """Writes are durable: items become visible and are dispatched."""
        jobs = self.disk.sync(self.random.randint(1, 6) if count is None else count)
        self.tell("sync", len(jobs))
        for job in jobs:
            job.told()
        effects = self.stream.dispatch()
        self.books.settle(effects)

    def some(self, most: int = 3) -> list[int]:
        """Indexes: present ones, stale ones and invented ones."""
        random, highest = self.random, self.books.highest
        present = sorted(self.books.items)
        pool = [0, highest + 1, highest + 50, 2**64 - 1]
        return [
            random.choice(present)
            if present and random.random() < 0.7
            else random.choice([*pool, *range(highest)])
            for _ in range(random.randint(1, most))
        ]

    def delete(self) -> None:
        indexes = self.some()
        self.tell("delete", indexes)
        self.books.delete(indexes)
        effects = self.stream.delete(indexes)
        effects = effects or Effects()
        gone = tuple(effects.removed)
        self.done(effects, lambda: self.books.gone.update(gone))

    def truncate(self) -> None:
        below = self.random.choice(
            [*self.some(1), max(self.books.items, default=0), self.books.highest // 2 + 1]
        )
        self.tell("truncate", below)
        gone = {index for index in self.books.items if index < below}
        due = self.books.truncate(below)
        count, effects = self.stream.truncate(below)
        hold("truncate counts what it removes", count == due, count, due)
        self.done(effects, lambda: self.books.gone.update(gone))

    def claim(self) -> None:
        free = sorted(self.books.items.keys() - self.books.claimed)
        indexes = self.random.sample(free, min(len(free), self.random.randint(1, 3)))
        self.tell("claim", indexes)
        unsent = {seat.team.name: set[int]() for seat in self.seats.values()}
        for seat in self.seats.values():
            unsent[seat.team.name] |= self.unsent(seat) & set(indexes)
        self.books.claim(indexes, unsent)
        self.done(self.stream.claim(indexes))

    def release(self) -> None:
        claimed = sorted(self.books.claimed)
        indexes = [*self.random.sample(claimed, min(len(claimed), 2)), *self.some(1)]
        self.tell("release", indexes)
        self.books.release(indexes)
        self.done(self.stream.release(indexes))

    # -- events: consumers -----------------------------------------------------------------------------------------

    def attach(self) -> None:
        group, user = self.random.choice(self.groups), self.random.choice(USERS)
        tags = {"color": self.random.choice(("red", "blue"))} if self.random.random() < 0.3 else {}
        after = self.random.choice((0, 0, 0, 0, self.books.highest, self.books.highest // 2))
        process = self.random.choice(("", "p", "p", "q"))
        self.join(group, user, self.random.randint(1, 5), after, tags, process)

    def join(
        self, group: str, user: str, window: int, after: int, tags: dict[str, str], process: str = ""
    ) -> None:
        self.tell("attach", group, user, "window", window, "after", after, tags, process)
        known = self.books.teams.get(group)
        replaced = known.seats.get(user) if known is not None else None
        unsent = self.unsent(replaced) if replaced is not None else set()
        is_through = self.books.is_through(group)
        auto = self.random.random() < 0.1
        try:
            number, effects = self.stream.attach(
                Consumer(group, user), Subscription(window, after, tags, auto, process), self.now
            )
        except StreamEnded:
            hold("a watch is refused when nothing is left", is_through, group)
            return
        hold("a watch is refused when nothing is left", not is_through, group)
        hold("no connection number twice", number not in self.seats and number not in self.left, number)
        due = set() if replaced is None else {replaced.number}
        hold("the older connection is replaced", effects.replaced == due, effects, due)
        seat = Seat(number, self.books.team(group), user, window, after, tags, process=process)
        self.books.attach(seat, self.now, unsent)
        self.seats[number] = seat
        self.group_done(group, effects)

    def leave(self, seat: Seat | None = None) -> None:
        """A connection ends, closed or lost; now and then one that has ended before."""
        lost = self.random.random() < 0.6
        if self.left and self.random.random() < 0.1:
            number = self.random.choice(self.left)
            self.tell("leave again", number)
            self.done(self.stream.detach(number, lost=lost, now=self.now))
            return
        if not self.seats:
            return
        seat = self.random.choice(list(self.seats.values()))
        self.tell("leave", seat.team.name, seat.user, "lost" if lost else "closed", sorted(seat.pending))
        self.books.leave(seat, self.now, lost=lost, unsent=self.unsent(seat))
        self._forget(seat.number)
        self.group_done(seat.team.name, self.stream.detach(seat.number, lost=lost, now=self.now))

    def group_done(self, name: str, effects: Effects, counted: set[int] | None = None) -> None:
        """As `done`: commits and given-up items are final once they are durable."""
        gone = tuple(effects.removed)
        known = {*(counted or ()), *(index for _, index, _ in effects.given_up)}

        def ack() -> None:
            self.books.gone.update(gone)
            self.books.done.setdefault(name, set()).update(known)

        self.done(effects, ack)

    def fetch(self) -> None:
        """A connection fetches some of its items."""
        if self.seats:
            self.take(self.random.choice(list(self.seats.values())))

    def take(self, seat: Seat) -> bool:
        most, size = self.random.choice((1, 2, 256)), self.random.choice((1, 20, 1 << 22))
        fetched = self.stream.fetch(seat.number, most=most, most_bytes=size, now=self.now)
        hold("a fetch keeps its bounds", len(fetched) <= most, fetched, most)
        for index, deliveries in fetched:
            self.tell("   ", seat.team.name, seat.user, "gets", index, deliveries)
            self.books.delivered(seat, index, deliveries, now=self.now, exact=self.exact)
            self.disk.remember(seat.team.name, index, self.now)
            self.sent.setdefault(seat.number, []).append(index)
            self.deliveries += 1
        over = sum(self.books.items[index].size for index, _ in fetched) > size
        hold("a fetch keeps its bounds", len(fetched) <= 1 or not over, fetched, size)
        return bool(fetched)

    def fetch_all(self) -> None:
        seats = list(self.seats.values())
        self.random.shuffle(seats)
        for seat in seats:
            while self.take(seat):
                pass

    def pace(self) -> None:
        self.eager = not self.eager
        self.tell("eager" if self.eager else "lazy")

    def chosen(self, name: str) -> list[int]:
        """Draw indexes, mostly pending ones of the group."""
        team = self.books.teams.get(name)
        out = (
            sorted(index for seat in team.seats.values() for index in seat.pending)
            if team is not None
            else []
        )
        if out and self.random.random() < 0.85:
            return self.random.sample(out, min(len(out), self.random.randint(1, 3)))
        return self.some()

    def commit(self, name: str = "", indexes: list[int] | None = None) -> None:
        name = name or self.random.choice(self.groups)
        indexes = self.chosen(name) if indexes is None else indexes
        self.tell("commit", name, indexes)
        present = self.books.items.keys() & set(indexes)
        due = self.books.commit(name, indexes)
        count, effects = self.stream.commit(name, indexes)
        hold("P9 a commit counts what it does", count == due, count, due)
        self.group_done(name, effects, present)

    def negative(self) -> None:
        name = self.random.choice(self.groups)
        indexes = self.chosen(name)
        shutdown = self.random.random() < 0.15
        code = SHUTDOWN if shutdown else self.random.choice(("", "500", "EngineError", BUSY, BUSY))
        delay_s = self.random.choice((None, 0.0, 0.5, 9.0))
        self.tell("negative", name, indexes, code, delay_s)
        pending: dict[int, Seat] = {}
        unsent: set[int] = set()
        for index in indexes:
            seat = self.pending(name, index)
            if seat is not None:
                pending[index] = seat
                unsent |= {index} - seat.pending
        for seat in pending.values() if shutdown else ():
            unsent |= self.unsent(seat)
        self.books.negative(name, pending, unsent, code=code, now=self.now, delay_s=delay_s)
        count, effects = self.stream.negative(
            name, Negative(tuple(indexes), code, "why", delay_s), now=self.now
        )
        hold("P10 a negative counts what is pending", count == len(pending), count, pending)
        self.group_done(name, effects)

    # -- events: time, the end, the disk ---------------------------------------------------------------------------

    def wait(self, seconds: float | None = None) -> None:
        """Time goes by; what is due is done, as an engine does it."""
        seconds = self.random.choice((0.0, 0.05, 0.3, 1.0, 2.0, 7.0, 70.0)) if seconds is None else seconds
        self.now += seconds
        self.tell("wait", seconds)
        if self.disk.lazy and self.now >= self.disk.lazy_due:
            self.flush()
        if self.now >= self.stream.due or self.random.random() < 0.1:
            self.books.tick(self.now)
            effects = self.stream.tick(self.now)
            hold("what is due comes later", self.stream.due > self.now, self.stream.due)
            given_up: dict[str, set[int]] = {}
            for name, index, _ in effects.given_up:
                given_up.setdefault(name, set()).add(index)
            gone = tuple(effects.removed)

            def ack() -> None:
                self.books.gone.update(gone)
                for name, indexes in given_up.items():
                    self.books.done.setdefault(name, set()).update(indexes)

            self.done(effects, ack)

    def flush(self) -> None:
        """The counts that changed are under way to the disk, as they are."""
        counts = {}
        for name, index, record in self.disk.flush(self.stream.record):
            team = self.books.teams[name]
            counts[name, index] = team.counts(index)
            told = counts_of(record)
            hold("I9 counts", told == counts[name, index], name, index, told, counts[name, index])
        self.disk.jobs[-1].told = lambda: self.books.counted.update(counts)
        self.tell("flush", counts)

    def end(self, ended: bool | None = None) -> None:
        ended = not self.books.ended and self.random.random() < 0.5 if ended is None else ended
        self.tell("end" if ended else "reopen")
        self.stream.ended = self.books.ended = ended
        self.submit(Job(ended=ended))

    def rear(self) -> None:
        self.books.has_rear_room = not self.books.has_rear_room
        self.tell("the rear store has room:", self.books.has_rear_room)

    def crash(self) -> None:
        """Kill the process; some of the writes under way are stored."""
        stored = self.random.choice((0, 0, 1, 3, 100))
        self.tell("crash, with", stored, "of", len(self.disk.jobs), "stored")
        disk = self.disk
        disk.cut_power(stored)
        records = {
            name: {index: counts_of(record) for index, record in rows.items()}
            for name, rows in disk.records.items()
        }
        self.books.recover(disk.items, disk.last, disk.committed, records, disk.groups, self.now)
        self.books.ended = disk.ended
        self.stream = disk.start(self.timing, self.books.max_failures, self._has_rear_room, self.now)
        self.seats, self.left = {}, []
        self.crashes += 1

    # -- the last phase --------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Faults stop; consumers of every group commit all they get: everything is gone in the end (I15)."""
        self.tell("drain")
        self.may_fail, self.eager = False, True
        self.books.has_rear_room = True
        self.end(False)
        self.sync(len(self.disk.jobs))
        self.books.release(self.books.claimed.copy())
        self.done(self.stream.release(list(range(1, self.books.highest + 1))))
        for tags in ({"color": "red"}, {}):
            for name in sorted({*self.groups, *self.books.teams}):
                self.join(name, "drain", self.random.randint(1, 4), 0, tags)
            self._drain_matching(tags)
        hold("I15 everything drains", not self.books.items, self.books.items)
        stats = self.stream.stats(self.now)
        hold("I15 everything drains", (stats.length, stats.size) == (0, 0), stats)
        self.wait(self.timing.group_retention_s)
        while self.seats:
            self.leave()
        for _ in range(4):
            self.wait(max(self.timing.forget_s, self.timing.group_retention_s))
        self.sync(len(self.disk.jobs) + 1)
        hold("I16 nothing is left on the disk", not self.disk.items and not self.disk.groups, vars(self.disk))
        hold("I16 nothing is left to wait for", self.stream.due == inf, self.stream.due)

    def _drain_matching(self, tags: dict[str, str]) -> None:
        for _ in range(_ROUNDS):
            self.fetch_all()
            self.books.idle({})
            self.check()
            out = {(seat.team.name, index) for seat in self.seats.values() for index in seat.pending}
            for name, index in sorted(out):
                self.commit(name, [index])
            if not out:
                waiting = [
                    (name, index)
                    for name, team in self.books.teams.items()
                    for index, item in self.books.items.items()
                    if index not in team.committed and tags.items() <= item.tags.items()
                ]
                if not waiting:
                    return
                self.wait(1.0)
                self.sync(len(self.disk.jobs))
        hold("I15 nothing is stuck", False, waiting)
