"""Load on a queue, and what it took: puts, drains and round trips, each request timed.

What was put is deleted again, by index, so that nothing else in the queue is touched.
"""

from __future__ import annotations

import queue
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import TypeAlias, TypeVar

from easq.bench.load import Load, LoadRun, OnProgress
from easq.client.queue import MAX_INDEXES_PER_REQUEST, QueueClient, put_operation
from easq.client.watch import Watcher
from easq.errors import DeadlineExceeded, EasqError
from easq.model import Ack, Consumer
from easq.net.pipeline import Asking, Outcome, Pipeline, Task, asking
from easq.net.settings import NetworkSettings
from easq.protocol.operations import Delete, Operation, Watch
from easq.protocol.replies import Reply, read_ok, read_put

R = TypeVar("R")

#: the tag that tells items of one run from all others
TAG = "easqBench"
#: items out at each consumer, and in one commit
_WINDOW, _BATCH = 1000, 256
#: how long a thread that waits for items looks before it looks whether it is still wanted, in seconds
_LOOK_S = 0.05
#: requests in flight while cleaning up
_CLEANERS = 8

#: indexes, each with when it was pushed
_Pushed: TypeAlias = "queue.SimpleQueue[tuple[int, float]]"


class Bench(LoadRun):
    """One run against a stream. `clean` is due in any case."""

    def __init__(
        self, client: QueueClient, settings: NetworkSettings, load: Load, progress: OnProgress
    ) -> None:
        super().__init__(settings, load, progress)
        self.client = client
        self._run = token_hex(8)
        self._put: array[int] = array("Q")

    def put(self) -> None:
        """Times each put, from the moment it was due to its answer."""
        for outcome in self._puts(tags={}):
            self.sample(outcome, outcome.ended)

    def roundtrip(self) -> None:
        """Times each item from the moment its put was due until a watch was pushed it, and commits it."""
        with _Consumers(self.client, self._run, 1) as consumers:
            waiting: dict[int, Outcome[int, Ack]] = {}
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
        """Puts all items first, then times each from its push to the answer of its commit."""
        stored = sum(outcome.result is not None for outcome in self._puts(tags={TAG: self._run}))
        if self.stopped.is_set():
            return
        with _Consumers(self.client, self._run, self.load.workers) as consumers:
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
        """What was put is not there any more; how many items that were. Raises EasqError where it may be."""
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

    def _puts(self, *, tags: dict[str, str]) -> Iterator[Outcome[int, Ack]]:
        def operation(number: int, data: bytes) -> Operation:
            return put_operation(data, tags=tags, key=f"{self._run}-{number}")

        for batch in self.outcomes(operation, self._asking(read_put)):
            for outcome in batch:
                if outcome.result is not None:
                    self._put.append(outcome.result.index)
                yield outcome


class _Consumers:
    """Watches in a group of their own, pushed one run's items alone; each item is committed in a batch."""

    def __init__(self, client: QueueClient, run: str, count: int) -> None:
        #: index -> when it was pushed, and when its commit was answered
        self.times: dict[int, tuple[float, float]] = {}
        self.began = 0.0
        self._client, self._run, self._count = client, run, count
        self._over = threading.Event()
        self._failure: EasqError | None = None
        self._watchers: list[Watcher] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Consumers:
        self.began = time.monotonic()
        operation = Watch(window=_WINDOW, tags={TAG: self._run})
        try:
            for number in range(self._count):
                me = Consumer(f"easq-bench-{self._run}", f"c{number}")
                client = self._client.called_by(me)
                self._watchers.append(client.watcher(operation).__enter__())
                pushed: _Pushed = queue.SimpleQueue()
                self._start(self._take, self._watchers[-1], pushed)
                self._start(self._commit, client, pushed)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for watcher in self._watchers:
            watcher.close()

    def wait_for(
        self,
        count: int,
        stopped: threading.Event,
        patience_s: float,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """So many items are committed, or none was for `patience_s`, or the run is `stopped`."""
        seen, since = -1, time.monotonic()
        while len(self.times) < count and not stopped.wait(_LOOK_S):
            if self._failure is not None:
                raise self._failure
            if len(self.times) > seen:
                seen, since = len(self.times), time.monotonic()
            elif time.monotonic() - since > patience_s:
                return
            progress(seen)

    def _start(self, body: Callable[..., None], *what: object) -> None:
        def run() -> None:
            try:
                body(*what)
            except EasqError as error:
                self._failure = self._failure or error

        thread = threading.Thread(target=run, name="easq-bench", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _take(self, watcher: Watcher, pushed: _Pushed) -> None:
        while not self._over.is_set():
            frame = watcher.next(_LOOK_S)
            if frame is not None:
                pushed.put((frame.index, time.monotonic()))

    def _commit(self, client: QueueClient, pushed: _Pushed) -> None:
        while not self._over.is_set():
            held: dict[int, float] = {}
            try:
                while len(held) < _BATCH:
                    index, at = pushed.get(block=not held, timeout=_LOOK_S)
                    held.setdefault(index, at)
            except queue.Empty:
                pass
            if held:
                client.commit(held)
                now = time.monotonic()
                for index, at in held.items():
                    self.times.setdefault(index, (at, now))
