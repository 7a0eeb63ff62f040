"""Load tests of a queue: puts, drains and round trips.

At the end the items of the test are deleted by index, so that other items stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from secrets import token_hex
from typing import TypeVar

from easq.bench.load import Load, LoadRun, OnProgress
from easq.client.async_watch import commit_batches
from easq.client.consumer import Deliveries
from easq.client.queue import MAX_INDEXES_PER_REQUEST, QueueClient, put_operation
from easq.errors import DeadlineExceeded
from easq.model import Ack, Consumer, Frame
from easq.net.aio import AsyncTransport
from easq.net.pipeline import Asking, Pipeline, Task, TaskOutcome, asking
from easq.net.settings import NetworkSettings
from easq.protocol.operations import Commit, Delete, Operation, Watch
from easq.protocol.replies import Reply, read_counted, read_ok, read_put

R = TypeVar("R")

#: the tag that identifies the items of one run
TAG = "easqBench"
#: maximum number of uncommitted items of each consumer
_WINDOW = 1000
#: seconds between two checks whether all items were committed
_LOOK_S = 0.05
#: requests in flight while cleaning up
_CLEANERS = 8


class Bench(LoadRun):
    """One load test on a stream. Call `clean` at its end, also after an error."""

    def __init__(
        self, client: QueueClient, settings: NetworkSettings, load: Load, progress: OnProgress
    ) -> None:
        super().__init__(settings, load, progress)
        self.client = client
        self._run = token_hex(8)
        self._put: array[int] = array("Q")

    def put(self) -> None:
        """Measure each put, from its scheduled start to its answer."""
        for outcome in self._puts(tags={}):
            self.sample(outcome, outcome.ended)

    def roundtrip(self) -> None:
        """Measure each item, from the scheduled start of its put to its delivery. A watch commits the items."""
        with _BenchConsumers(self.client, self._run, 1) as consumers:
            waiting: dict[int, TaskOutcome[int, Ack]] = {}
            for outcome in self._puts(tags={TAG: self._run}):
                if outcome.result is not None:
                    waiting[outcome.result.index] = outcome
                else:
                    self.sample(outcome, outcome.ended)
            consumers.wait_for(len(waiting), self.stopped, self.settings.request_timeout_s)
            for index, outcome in waiting.items():
                times = consumers.times.get(index)
                if times is None and self.stopped.is_set():
                    continue
                if times is None:
                    outcome.error = DeadlineExceeded(f"item {index} was not pushed")
                self.sample(outcome, times[0] if times is not None else outcome.ended)

    def drain(self) -> None:
        """Put all items. Then measure each item, from its delivery to the answer to its commit."""
        stored = sum(outcome.result is not None for outcome in self._puts(tags={TAG: self._run}))
        if self.stopped.is_set():
            return
        with _BenchConsumers(self.client, self._run, self.load.workers) as consumers:
            consumers.wait_for(
                stored, self.stopped, self.settings.request_timeout_s, lambda done: self.progress(done, 0)
            )
            began = consumers.began
        size = sum(map(len, self.load.payloads)) // len(self.load.payloads)
        times = sorted(consumers.times.values(), key=lambda pair: pair[1])
        for pushed, committed in times[self.load.warmup :]:
            self.samples.good(pushed, committed, size)
        self.samples.began = times[self.load.warmup - 1][1] if 0 < self.load.warmup < len(times) else began
        for _ in range(0 if self.stopped.is_set() else stored - len(times)):
            self.samples.bad(DeadlineExceeded("not every item was pushed"), began, time.monotonic())

    def clean(self) -> int:
        """Delete the items of the run, and return their number. Raises EasqError if some may remain."""
        indexes, bulk = self._put, Pipeline(self.settings, workers=_CLEANERS)
        tasks = (
            Task(0, Delete(tuple(indexes[at : at + MAX_INDEXES_PER_REQUEST])))
            for at in range(0, len(indexes), MAX_INDEXES_PER_REQUEST)
        )
        for batch in bulk.run(tasks, self._asking(read_ok)):
            for outcome in batch:
                if outcome.error is not None:
                    raise outcome.error
        return len(indexes)

    def _asking(self, read: Callable[[Reply], R]) -> Asking[Operation, R]:
        return asking(self.client.url, self.client.caller, self.settings, read)

    def _puts(self, *, tags: dict[str, str]) -> Iterator[TaskOutcome[int, Ack]]:
        def operation(number: int, data: bytes) -> Operation:
            return put_operation(data, tags=tags, key=f"{self._run}-{number}")

        for batch in self.outcomes(operation, self._asking(read_put)):
            for outcome in batch:
                if outcome.result is not None:
                    self._put.append(outcome.result.index)
                yield outcome


class _BenchConsumers:
    """Consumers in a group of their own, on an event loop in a thread; each commits the items of one run in batches."""

    def __init__(self, client: QueueClient, run: str, count: int) -> None:
        #: index -> when it was pushed, and when its commit was answered
        self.times: dict[int, tuple[float, float]] = {}
        self.began = 0.0
        self._client, self._run, self._count = client, run, count
        self._failure: Exception | None = None
        self._started: Future[asyncio.Task[None]] = Future()
        self._thread = threading.Thread(target=self._work, name="easq-bench", daemon=True)

    def __enter__(self) -> _BenchConsumers:
        self.began = time.monotonic()
        self._thread.start()
        self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        task = self._started.result()
        with contextlib.suppress(RuntimeError):  # it has ended
            task.get_loop().call_soon_threadsafe(task.cancel)
        self._thread.join()

    def wait_for(
        self,
        count: int,
        stopped: threading.Event,
        patience_s: float,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Wait until `count` items are committed, none was committed for `patience_s` seconds, or `stopped` is set."""
        seen, since = -1, time.monotonic()
        while len(self.times) < count and not stopped.wait(_LOOK_S):
            if self._failure is not None:
                raise self._failure
            if len(self.times) > seen:
                seen, since = len(self.times), time.monotonic()
            elif time.monotonic() - since > patience_s:
                return
            progress(seen)

    def _work(self) -> None:
        try:
            asyncio.run(self._consume_all())
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
            self._failure = error

    async def _consume_all(self) -> None:
        async with AsyncTransport(self._client.settings) as transport, contextlib.AsyncExitStack() as at_end:
            consumers = []
            for number in range(self._count):
                client = self._client.called_by(Consumer(f"easq-bench-{self._run}", f"c{number}"))
                consumer = _BenchConsumer(client, self._run, self.times)
                at_end.push_async_callback(consumer.watcher.close)
                await consumer.watcher.connect()
                consumers.append(consumer)
            task = asyncio.current_task()
            assert task is not None
            self._started.set_result(task)
            await asyncio.gather(
                *(consumer.watcher.run() for consumer in consumers),
                *(consumer.commit_all(transport) for consumer in consumers),
            )


class _BenchConsumer:
    """One consumer, which commits each item as soon as it is pushed."""

    def __init__(self, client: QueueClient, run: str, times: dict[int, tuple[float, float]]) -> None:
        self._client, self._times = client, times
        self._items = Deliveries[tuple[int, float]](window=_WINDOW)
        self._has_done = asyncio.Event()
        self.watcher = client.async_watcher(Watch(window=_WINDOW, tags={TAG: run}), on_frame=self._received)

    def _received(self, frame: Frame) -> None:
        if self._items.push(frame, self.watcher.epoch):
            self._items.begin(0.0)
            self._items.call_ended()
            self._items.done(frame.index, (frame.index, time.monotonic()))
        self._has_done.set()

    async def commit_all(self, transport: AsyncTransport) -> None:
        """Commit items until cancelled, and store the times of their delivery and commit."""
        sender = transport.sender()

        async def commit(batch: list[int]) -> None:
            await sender.run(self._client.asking(Commit(tuple(batch)), read_counted))
            now = time.monotonic()
            for index, at in self._items.committed(batch):
                self._times[index] = (at, now)

        await commit_batches(self._items, self._has_done, commit)
