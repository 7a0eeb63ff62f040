"""Load on a queue, and what it took: puts, drains and round trips, each request timed.

What was put is deleted again, by index, so that nothing else in the queue is touched.
"""

from __future__ import annotations

import math
import queue
import re
import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TypeAlias, TypeVar

from easq.client.bulk import Asking, Bulk, Outcome, Task, asking
from easq.client.exchange import Settings
from easq.client.queue import MAX_INDEXES_PER_REQUEST, QueueClient, put_operation
from easq.client.watch import Watcher
from easq.errors import DeadlineExceeded, EasqError
from easq.model import Ack, Consumer
from easq.wire.durations import format_duration, parse_duration
from easq.wire.operations import Delete, Operation, Watch
from easq.wire.replies import Reply, read_ok, read_put

R = TypeVar("R")

#: the tag that tells items of one run from all others
TAG = "easqBench"
#: what is reported of the latencies, beside min, mean and max
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999))
#: items out at each consumer, and in one commit
_WINDOW, _BATCH = 1000, 256
#: how long a thread that waits for items looks before it looks whether it is still wanted, in seconds
_LOOK_S = 0.05
#: bars of a histogram
_BARS = 12
#: requests in flight while cleaning up, and the seconds that it may take after an interrupt
_CLEANERS, _GRACE_S = 8, 5.0

#: told how many items are done and how many of them failed
OnProgress: TypeAlias = Callable[[int, int], None]
#: indexes, each with when it was pushed
_Pushed: TypeAlias = "queue.SimpleQueue[tuple[int, float]]"


@dataclass(frozen=True)
class Load:
    """What is asked of a queue: `count` items or as many as `duration_s` has room for, behind `warmup` others."""

    payloads: Sequence[bytes]
    workers: int
    count: int | None = None
    duration_s: float | None = None
    rate: float | None = None
    warmup: int = 0


@dataclass
class Samples:
    """What was measured, in seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    first_error: EasqError | None = None
    retried: int = 0
    size: int = 0
    began: float = math.inf
    ended: float = 0.0

    def good(self, began: float, ended: float, size: int = 0) -> None:
        """A request succeeded."""
        self.latencies.append(ended - began)
        self.size += size
        self.began, self.ended = min(self.began, began), max(self.ended, ended)

    def bad(self, error: EasqError, began: float, ended: float) -> None:
        """A request failed; how long that took is no latency."""
        self.errors[error.kind] += 1
        self.first_error = self.first_error or error
        self.began, self.ended = min(self.began, began), max(self.ended, ended)

    def record(self) -> dict[str, object]:
        """The figures under flat names; latencies are None where nothing succeeded."""
        latencies = sorted(self.latencies)
        count, failed = len(latencies), self.errors.total()
        seconds = max(self.ended - self.began, 1e-9) if count or failed else 0.0
        figures: dict[str, object] = {
            "requests": count + failed,
            "succeeded": count,
            "failed": failed,
            "retried": self.retried,
            "seconds": round(seconds, 6),
            "throughput": round(count / seconds, 3) if seconds else 0.0,
            "bytes_per_second": round(self.size / seconds) if seconds else 0,
        }
        mean = sum(latencies) / count if count else None
        values = {
            "min": latencies[0] if count else None,
            "mean": mean,
            **{name: percentile(latencies, share) for name, share in PERCENTILES},
            "max": latencies[-1] if count else None,
        }
        figures |= {f"{name}_ms": None if v is None else round(v * 1000, 6) for name, v in values.items()}
        return figures | {f"error_{kind}": number for kind, number in sorted(self.errors.items())}

    def histogram(self) -> list[tuple[float, int]]:
        """Upper bounds in seconds, each one a fixed factor above the last, and how many latencies are below."""
        latencies = sorted(self.latencies)
        if not latencies:
            return []
        low, high = max(latencies[0], 1e-6), max(latencies[-1], 1e-6)
        if high <= low * 1.001:
            return [(high, len(latencies))]
        factor = (high / low) ** (1 / _BARS)
        bounds = [*(low * factor**step for step in range(1, _BARS)), high]
        ends = [*(bisect_left(latencies, bound) for bound in bounds[:-1]), len(latencies)]
        return list(zip(bounds, (b - a for a, b in zip([0, *ends], ends, strict=False)), strict=True))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The least of `ordered` that `share` of them are not above (nearest rank); None of nothing."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None


class Bench:
    """One run against a stream. `stop` ends it early; `clean` is due in any case."""

    def __init__(self, client: QueueClient, settings: Settings, load: Load, progress: OnProgress) -> None:
        self.client, self.settings, self.load = client, settings, load
        self._progress = progress
        self.samples = Samples()
        self._run = token_hex(8)
        self._put: array[int] = array("Q")
        self._bulk: Bulk | None = None
        self._stopped = threading.Event()
        self._warm_at = 0.0

    def stop(self) -> None:
        """No further item is put or waited for. May be called from a signal handler."""
        self._stopped.set()
        if self._bulk is not None:
            self._bulk.stop(grace_s=_GRACE_S)

    def put(self) -> None:
        """Times each put, from the moment it was due to its answer."""
        for outcome in self._puts(tags={}):
            if outcome.what >= self.load.warmup:
                self._sample(outcome, outcome.ended)

    def roundtrip(self) -> None:
        """Times each item from the moment its put was due until a watch was pushed it, and commits it."""
        with _Consumers(self.client, self._run, 1) as consumers:
            waiting: dict[int, Outcome[int, Ack]] = {}
            for outcome in self._puts(tags={TAG: self._run}):
                if outcome.result is not None:
                    waiting[outcome.result.index] = outcome
                elif outcome.what >= self.load.warmup:
                    self._sample(outcome, outcome.ended)
            consumers.wait_for(len(waiting), self._stopped, self.settings.request_timeout_s)
            for index, outcome in waiting.items():
                if outcome.what < self.load.warmup:
                    continue
                times = consumers.times.get(index)
                if times is None:
                    outcome.error = DeadlineExceeded(f"item {index} was not pushed")
                self._sample(outcome, times[0] if times is not None else outcome.ended)

    def drain(self) -> None:
        """Puts all items first, then times each from its push to the answer of its commit."""
        stored = sum(outcome.result is not None for outcome in self._puts(tags={TAG: self._run}))
        with _Consumers(self.client, self._run, self.load.workers) as consumers:
            consumers.wait_for(
                stored, self._stopped, self.settings.request_timeout_s, lambda done: self._progress(done, 0)
            )
            began = consumers.began
        size = sum(map(len, self.load.payloads)) // len(self.load.payloads)
        times = sorted(consumers.times.values(), key=lambda pair: pair[1])
        for pushed, committed in times[self.load.warmup :]:
            self.samples.good(pushed, committed, size)
        self.samples.began = times[self.load.warmup - 1][1] if 0 < self.load.warmup < len(times) else began
        for _ in range(stored - len(times)):
            self.samples.bad(DeadlineExceeded("not every item was pushed"), began, time.monotonic())

    def clean(self) -> int:
        """What was put is not there any more; how many items that were. Raises EasqError where it may be."""
        indexes, bulk = self._put, Bulk(self.settings, workers=_CLEANERS)
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
        load, failed = self.load, 0
        self._bulk = Bulk(
            self.settings,
            workers=load.workers,
            rate=load.rate,
            open_loop=load.rate is not None,
        )
        for batch in self._bulk.run(self._tasks(tags), self._asking(read_put)):
            for outcome in batch:
                if outcome.result is not None:
                    self._put.append(outcome.result.index)
                failed += outcome.error is not None
                yield outcome
            self._progress(len(self._put) + failed, failed)

    def _tasks(self, tags: dict[str, str]) -> Iterator[Task[int, Operation]]:
        load, number = self.load, 0
        while load.count is None or number < load.warmup + load.count:
            if number == load.warmup:
                self._warm_at = time.monotonic()
            late = load.duration_s is not None and time.monotonic() - self._warm_at >= load.duration_s
            if self._stopped.is_set() or (number > load.warmup and late):
                return
            data = load.payloads[number % len(load.payloads)]
            yield Task(number, put_operation(data, tags=tags, key=f"{self._run}-{number}"), len(data))
            number += 1

    def _sample(self, outcome: Outcome[int, Ack], ended: float) -> None:
        self.samples.retried += outcome.times.attempts > 1
        if outcome.error is None:
            self.samples.good(outcome.due, ended, outcome.size)
        else:
            self.samples.bad(outcome.error, outcome.due, ended)


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
                self._watchers.append(client.watch(operation).__enter__())
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


# conditions

_CONDITION = re.compile(r"\s*([a-z][a-z0-9._]*)\s*(<=|>=|==|=|<|>)\s*(\S.*?)\s*")
_LATENCIES = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True)
class Condition:
    """What `--fail-if` names: a metric, a comparison, a value in the metric's unit."""

    text: str
    metric: str
    sign: str
    value: float
    percent: bool = False

    def holds(self, record: dict[str, object]) -> bool:
        """Whether it holds of the figures; what nothing was measured of is never fine."""
        found = self._found(record)
        if found is None:
            return True
        return {
            "<": found < self.value,
            "<=": found <= self.value,
            ">": found > self.value,
            ">=": found >= self.value,
            "=": found == self.value,
        }[self.sign]

    def told(self, record: dict[str, object]) -> str:
        """The condition and what was found."""
        found = self._found(record)
        if found is None:
            shown = "not known"
        elif self.metric in _LATENCIES:
            shown = format_duration(found)
        else:
            shown = f"{found:g}{'%' if self.percent else '/s' if self.metric == 'throughput' else ''}"
        return f"{self.text} holds: {self.metric} is {shown}"

    def _found(self, record: dict[str, object]) -> float | None:
        if self.metric in _LATENCIES:
            value = record[f"{self.metric.replace('.', '_')}_ms"]
            return None if value is None else float(str(value)) / 1000
        if self.metric == "throughput":
            return float(str(record["throughput"]))
        failed, requests = int(str(record["failed"])), int(str(record["requests"]))
        if not self.percent:
            return float(failed)
        return 100 * failed / requests if requests else None


def read_condition(text: str) -> Condition:
    """The condition that `text` writes: `p99>50ms`, `throughput<5000/s`, `errors>0`, `errors>=1%`.

    Raises ValueError for anything else.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not METRIC OP VALUE, as in 'p99>50ms'")
    metric, sign, value = match[1].replace("p99_9", "p99.9"), match[2].replace("==", "="), match[3]
    if metric in _LATENCIES:
        if _NUMBER.fullmatch(value):
            raise ValueError(f"{value!r} has no unit: write {value}ms or {value}s")
        return Condition(text, metric, sign, parse_duration(value))
    if metric == "throughput":
        number, percent = value.removesuffix("/s").rstrip(), False
    elif metric == "errors":
        number, percent = value.removesuffix("%").rstrip(), value.endswith("%")
    else:
        raise ValueError(f"{metric!r} is none of {', '.join((*_LATENCIES, 'throughput', 'errors'))}")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{value!r} is no number for {metric}")
    return Condition(text, metric, sign, float(number), percent)
