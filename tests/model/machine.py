"""Random steps on real engines. Each answer is compared with the answer of the reference."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from easq.model import Consumer, Frame, Tags
from easq.protocol import operations as op
from easq.storage.base import Lease
from tests.model.engines import START, Engine, Loop, OnRedis
from tests.model.reference import Reference, Refused
from tests.model.values import Item

#: all that is here, in one get
ALL = op.Get(length=10_000, auto_delete=False)
REAR_FULL = 7

groups = st.sampled_from(["g", "g", "h"])
users = st.sampled_from(["a", "b", "c"])
payloads = st.sampled_from([b"", b"x", b"yes", b"\0" * 12, b"z" * 60])
colors = st.sampled_from([{}, {"color": "red"}, {"color": "blue"}])
filters = st.sampled_from([{}, {}, {}, {"color": "red"}, {"color": "blue"}])
wanted_tags = st.sampled_from([{}, {"color": "red"}, {"requestId": "r1"}, {"color": "red", "requestId": "r"}])
request_ids = st.sampled_from(["r1", "r2", "r3"])
#: an index counted back from the newest, or an invented one
picks = st.one_of(st.integers(0, 12), st.sampled_from([-1, -2, -50]))
codes = st.sampled_from(["", "500", "EngineError", "Shutdown", "Busy", "Busy"])
processes = st.sampled_from(["", "", "p", "p", "q"])


def shown(frames: Sequence[Frame]) -> list[tuple[int, dict[str, str], bytes]]:
    return [(frame.index, dict(frame.tags), frame.data) for frame in frames]


def due(items: Sequence[Item]) -> list[tuple[int, dict[str, str], bytes]]:
    return [(item.index, item.tags, item.data) for item in items]


class Machine(RuleBasedStateMachine):
    """Each rule does one thing on every engine and in the reference."""

    kinds: Sequence[str] = ("memory", "sqlite")
    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.folder = Path(tempfile.mkdtemp(prefix="easq-model-"))
        self.engines: list[Engine] = []
        self.claims: list[list[int]] = []
        self.connections: list[int] = []

    @initialize(backoff_s=st.sampled_from([0.0, 0.5]))
    def start(self, backoff_s: float) -> None:
        self.engines = [self.engine(kind, backoff_s) for kind in self.kinds]
        self.reference = Reference(START, backoff_s)

    def engine(self, kind: str, backoff_s: float) -> Engine:
        if kind == "redis":
            return OnRedis(self.loop, backoff_s, self.redis_url)
        return Engine(self.loop, backoff_s, self.folder if kind == "sqlite" else None)

    def teardown(self) -> None:
        for engine in self.engines:
            engine.close()
        self.loop.finish()
        shutil.rmtree(self.folder)

    def both(self, step: Callable[[Engine], Any], expected: Callable[[], Any]) -> Any:
        """Return the answer of the step, which must be the same from every engine and the reference."""
        answers = [step(engine) for engine in self.engines]
        try:
            right = expected()
        except Refused as refused:
            right = str(refused)
        for engine, given in zip(self.engines, answers, strict=True):
            assert given == right, type(engine.storage).__name__
        for engine in self.engines:
            engine.settle()
        return right

    def index(self, pick: int) -> int:
        """Draw an index, mostly an existing one; -1 and -2 are above all indexes, -50 is never an index."""
        return max(0, self.reference.last - pick) if pick != -50 else 2**64 - 1

    def indexes(self, wanted: Sequence[int], group: str = "") -> list[int]:
        """Draw an index, mostly a pending one if the group has any."""
        out = [index for one in self.reference.of(group) for index in one.pending]
        return [out[pick % len(out)] if out and pick % 4 else self.index(pick) for pick in wanted]

    # -- put and get -----------------------------------------------------------------------------------------------

    @rule(
        data=payloads,
        tags=colors,
        request_id=request_ids,
        priority=st.sampled_from([0, 0, 0, 1, 5]),
        key=st.sampled_from(["", "", "", "k1", "k2"]),
    )
    def put(self, data: bytes, tags: dict[str, str], request_id: str, priority: int, key: str) -> None:
        given = {**tags, "requestId": request_id}
        put = op.Put(data, given, priority, content_type="text/plain", key=key)

        def step(engine: Engine) -> Any:
            answer = engine.answer(engine.queue.put(put))
            return answer if isinstance(answer, str) else (answer.index, answer.request_id, answer.duplicate)

        stored = {"Header:Content-Type": "text/plain", **given, "ts@source": "7"}
        self.both(step, lambda: self.reference.put(data, stored, priority, key))

    @rule(many=st.lists(st.tuples(payloads, colors, st.sampled_from([0, 1])), min_size=2, max_size=5))
    def put_many(self, many: list[tuple[bytes, dict[str, str], int]]) -> None:
        for data, tags, priority in many:
            self.put(data, tags, "r", priority, "")

    @rule(start=st.one_of(picks, st.just(99)), length=st.integers(1, 4), tags=wanted_tags)
    def get(self, start: int, length: int, tags: dict[str, str]) -> None:
        """Reading changes nothing."""
        index = -1 if start == 99 else self.index(start)
        get = op.Get(index, length, auto_delete=False, tags=tags)
        self.both(
            lambda engine: shown(engine.loop.run(engine.queue.get(get))),
            lambda: due(self.reference.get(index, length, tags)),
        )

    @rule(start=picks, length=st.integers(1, 3), tags=colors)
    def take(self, start: int, length: int, tags: dict[str, str]) -> None:
        """A get with auto-delete has claimed its items, and its answer is not written yet."""
        index = self.index(start)
        get = op.Get(index, length, auto_delete=True, tags=tags)

        def expected() -> Any:
            items = self.reference.get(index, length, tags)
            self.reference.claim([item.index for item in items])
            return due(items)

        found = self.both(lambda engine: shown(engine.loop.run(engine.queue.get(get))), expected)
        if found:
            self.claims.append([number for number, _, _ in found])

    @precondition(lambda self: self.claims)
    @rule(answered=st.booleans(), which=st.integers(0, 5))
    def finish_get(self, answered: bool, which: int) -> None:
        """The answer was written, or writing it failed."""
        indexes = self.claims.pop(which % len(self.claims))
        frames = [Frame(index) for index in indexes]

        def step(engine: Engine) -> None:
            finish = engine.queue.settle if answered else engine.queue.give_back
            engine.loop.run(finish(frames))

        def expected() -> None:
            if answered:
                self.reference.delete(indexes)
            else:
                self.reference.release(indexes)

        self.both(step, expected)

    @rule(length=st.integers(1, 4), tags=colors, newest=st.booleans(), seconds=st.sampled_from([0.5, 5.0]))
    def get_waiting(self, length: int, tags: dict[str, str], newest: bool, seconds: float) -> None:
        """A long poll answers at once with all wanted items, or with fewer when the time is over."""
        get = op.Get(-1 if newest else 0, length, seconds, False, tags)
        waiting = [asyncio.ensure_future(engine.queue.get(get), loop=self.loop) for engine in self.engines]
        self.loop.wait(0.0)
        for engine in self.engines:
            engine.settle()
        right = [] if newest else due(self.reference.get(0, length, tags))
        assert [task.done() for task in waiting] == [len(right) == length] * len(waiting)
        self.wait(seconds)
        right = right if len(right) == length else [] if newest else due(self.reference.get(0, length, tags))
        assert [shown(self.loop.run(task)) for task in waiting] == [right] * len(waiting)

    @rule(tags=colors, priority=st.sampled_from([None, 0, 1]))
    def count(self, tags: dict[str, str], priority: int | None) -> None:
        self.both(
            lambda engine: engine.loop.run(engine.queue.count(op.Count(tags, priority))),
            lambda: sum(priority in (None, item.priority) for item in self.reference.present(tags)),
        )

    # -- consumers -------------------------------------------------------------------------------------------------

    @rule(
        group=groups,
        user=users,
        window=st.integers(1, 4),
        tags=filters,
        after=st.sampled_from([0, 0, 3]),
        process=processes,
    )
    def attach(
        self, group: str, user: str, window: int, tags: dict[str, str], after: int, process: str
    ) -> None:
        number = self.both(
            lambda engine: engine.attach(group, user, window, after, tags, process),
            lambda: self.reference.attach(group, user, window, after, tags, process),
        )
        if isinstance(number, int):
            self.connections.append(number)
            if window % 2:
                self.read(0)

    @precondition(lambda self: self.connections)
    @rule(which=st.integers(0, 3))
    def read(self, which: int) -> None:
        """A connection is sent the items dispatched to it, with their delivery counts."""
        number = self.connections[-1 - which % len(self.connections)]

        def step(engine: Engine) -> Any:
            answer = engine.read(number)
            return answer if isinstance(answer, str) else sent(answer)

        def expected() -> Any:
            return [
                (deliveries, item.index, {**item.tags, **counted(deliveries)}, item.data)
                for item, deliveries in self.reference.read(number)
            ]

        self.both(step, expected)

    @precondition(lambda self: self.connections)
    @rule()
    def read_all(self) -> None:
        for which in range(min(4, len(self.connections))):
            self.read(which)

    @precondition(lambda self: self.connections)
    @rule(which=st.integers(0, 3), lost=st.booleans())
    def cut(self, which: int, lost: bool) -> None:
        """End a connection, maybe a second time."""
        number = self.connections[-1 - which % len(self.connections)]
        self.both(
            lambda engine: engine.detach(number, lost=lost),
            lambda: self.reference.detach(number, lost=lost),
        )

    @rule(group=groups, wanted=st.lists(picks, min_size=1, max_size=3))
    def commit(self, group: str, wanted: list[int]) -> None:
        indexes = self.indexes(wanted, group)
        self.both(
            lambda engine: engine.loop.run(engine.queue.commit(Consumer(group, "any"), indexes)),
            lambda: self.reference.commit(group, indexes),
        )

    @rule(
        group=groups,
        wanted=st.lists(picks, min_size=1, max_size=3),
        code=codes,
        reason=st.sampled_from(["", "why"]),
        delay_ms=st.sampled_from([None, 0, 500, 9000]),
    )
    def negative(self, group: str, wanted: list[int], code: str, reason: str, delay_ms: int | None) -> None:
        self.turn_away(group, self.indexes(wanted, group), code, reason, delay_ms)

    @precondition(lambda self: any(one.pending for one in self.reference.connections.values()))
    @rule(code=st.sampled_from(["Busy", "Busy", "500"]), delay_ms=st.sampled_from([None, 0, 500]))
    def negative_all(self, code: str, delay_ms: int | None) -> None:
        """Every pending item is returned, as by a worker whose model is busy."""
        for group in list(self.reference.groups):
            out = [index for one in self.reference.of(group) for index in one.pending]
            self.turn_away(group, out, code, "why", delay_ms)

    def turn_away(self, group: str, indexes: list[int], code: str, reason: str, delay_ms: int | None) -> None:
        delay_s = None if delay_ms is None else delay_ms / 1000
        negative = op.Negative(tuple(indexes), code, reason, delay_s)
        self.both(
            lambda engine: engine.loop.run(engine.queue.negative(Consumer(group, "any"), negative)),
            lambda: self.reference.negative(group, indexes, code, reason, delay_ms),
        )

    # -- the rest --------------------------------------------------------------------------------------------------

    @rule(wanted=st.lists(picks, min_size=1, max_size=3))
    def delete(self, wanted: list[int]) -> None:
        indexes = self.indexes(wanted)
        self.both(
            lambda engine: engine.loop.run(engine.queue.delete(indexes)),
            lambda: self.reference.delete(indexes),
        )

    @rule(pick=picks)
    def truncate(self, pick: int) -> None:
        below = self.index(pick)
        self.both(
            lambda engine: engine.loop.run(engine.queue.truncate(below)),
            lambda: self.reference.truncate(below),
        )

    @rule(undo=st.sampled_from([True] * 7 + [False]), force=st.sampled_from([False] * 7 + [True]))
    def end(self, undo: bool, force: bool) -> None:
        def expected() -> None:
            self.reference.ended = not undo
            if force:
                self.reference.truncate(self.reference.last + 1)

        self.both(lambda engine: engine.loop.run(engine.queue.end(op.End(force, undo))), expected)

    @rule(seconds=st.sampled_from([0.25, 0.5, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.loop.wait(seconds)
        self.both(lambda _: None, lambda: self.reference.wait(seconds))

    # -- after each step -------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        """Compare all items, dead letters and answers, and the results of attributes and search."""
        present = self.reference.present()
        told = []
        for engine in self.engines:
            run, queue = self.loop.run, engine.queue
            assert shown(run(queue.get(ALL))) == due(present)
            # of what fails at one moment nothing says which is first
            assert unnumbered(run(queue.rear.get(ALL))) == in_any_order(self.reference.rear)
            assert unnumbered(run(engine.sink.get(ALL))) == in_any_order(self.reference.sink)
            attributes = dict(run(queue.attributes()))
            for own in ("meta.durability", "meta.epoch"):
                attributes.pop(own, None)
            told.append(attributes)
            stats = run(engine.storage.attributes("q", now=self.loop.time()))
            self.check_stats(stats, present)
        assert told[1:] == told[:-1]
        if len(self.reference.rear) >= REAR_FULL:
            self.reference.rear = []
            for engine in self.engines:
                self.loop.run(engine.queue.rear.truncate(1 << 40))

    def check_stats(self, stats: Any, present: list[Item]) -> None:
        reference = self.reference
        size = sum(len(item.data) for item in present)
        first, last = (present[0].index, present[-1].index) if present else (0, 0)
        told = (stats.length, stats.size, stats.first, stats.last, stats.next, stats.ended)
        assert told == (len(present), size, first, last, reference.last + 1, reference.ended)
        pending: dict[str, list[int]] = {}
        for one in reference.connections.values():
            pending.setdefault(one.group, []).extend(one.pending)
        lines = {line.id: (line.pending, line.index) for line in stats.groups if line.consumers}
        assert lines == {name: (len(out), min(out, default=0)) for name, out in pending.items()}
        running = {
            line.id: (line.pending, line.window, line.slots, dict(line.tags))
            for line in stats.consumers
            if line.status == "Running"
        }
        assert running == {
            f"{one.group}.{one.user}": (len(one.pending), one.window, one.window - len(one.pending), one.tags)
            for one in reference.connections.values()
        }


class InMemory(Machine):
    """The same on the memory engine alone: many times faster."""

    kinds = ("memory",)


class SharedRedis(Machine):
    """The same with the engine on Redis."""

    kinds = ("memory", "redis")


class Restarts(Machine):
    """The same on the durable engine, which is stopped or killed between steps."""

    kinds = ("sqlite",)

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    @invariant()
    def a_step_was_made(self) -> None:
        self.steps += 1

    @precondition(lambda self: self.steps > 8)
    @rule(killed=st.booleans(), seconds=st.sampled_from([0.0, 0.0, 4.0, 100.0]))
    def restart(self, killed: bool, seconds: float) -> None:
        self.steps = 0
        (engine,) = self.engines
        if killed:
            engine.kill(seconds)
        else:
            engine.restart(seconds)
        stored = engine.stored_groups()
        used = {name for name, group in self.reference.groups.items() if group.committed or group.filters}
        assert used <= stored <= self.reference.groups.keys()
        self.reference.restart(stored, seconds, killed=killed)
        self.claims, self.connections = [], []


def counted(deliveries: int) -> dict[str, str]:
    return {"deliveryCount": str(deliveries)} if deliveries > 1 else {}


def sent(leases: list[Lease]) -> list[tuple[int, int, dict[str, str], bytes]]:
    return [
        (lease.deliveries, lease.frame.index, dict(lease.frame.tags), lease.frame.data) for lease in leases
    ]


def unnumbered(frames: Sequence[Frame]) -> list[tuple[dict[str, str], bytes]]:
    return in_any_order((frame.tags, frame.data) for frame in frames)


def in_any_order(found: Iterable[tuple[Tags, bytes]]) -> list[tuple[dict[str, str], bytes]]:
    return sorted(((dict(sorted(tags.items())), data) for tags, data in found), key=repr)
