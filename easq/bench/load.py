"""A load of requests and its latencies: a number of requests or a duration, at a rate or as fast as possible."""

from __future__ import annotations

import math
import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from easq.errors import EasqError
from easq.net.pipeline import Asking, Pipeline, Task, TaskOutcome
from easq.net.settings import NetworkSettings

Q = TypeVar("Q")
R = TypeVar("R")

#: percentiles that are reported, beside min, mean and max
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999))
#: bars of a histogram
_BARS = 12
#: seconds that requests in flight may take after an interrupt
_GRACE_S = 5.0

#: called with the number of finished requests, and the number of failed ones among them
OnProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Load:
    """A load: `count` requests, or requests for `duration_s` seconds, after `warmup` requests that are not measured."""

    payloads: Sequence[bytes]
    workers: int
    count: int | None = None
    duration_s: float | None = None
    rate: float | None = None
    warmup: int = 0


@dataclass
class Samples:
    """Measurements of one run, in seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    first_error: EasqError | None = None
    retried: int = 0
    size: int = 0
    began: float = math.inf
    ended: float = 0.0

    def good(self, began: float, ended: float, size: int = 0) -> None:
        """Add a request that succeeded."""
        self.latencies.append(ended - began)
        self.size += size
        self.began, self.ended = min(self.began, began), max(self.ended, ended)

    def bad(self, error: EasqError, began: float, ended: float) -> None:
        """Add a request that failed. Its time is not counted as a latency."""
        self.errors[error.kind] += 1
        self.first_error = self.first_error or error
        self.began, self.ended = min(self.began, began), max(self.ended, ended)

    def record(self) -> dict[str, object]:
        """Return the figures by name; latencies are None if no request succeeded."""
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
        """Return the bars of a histogram: upper bounds in seconds that grow by a fixed factor, and the counts."""
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
    """Return a percentile of sorted values by nearest rank, `share` being 0 to 1; None if there are no values."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None


class LoadRun:
    """One run of a load."""

    def __init__(self, settings: NetworkSettings, load: Load, progress: OnProgress) -> None:
        self.settings, self.load, self.progress = settings, load, progress
        self.samples = Samples()
        self.stopped = threading.Event()
        self._bulk: Pipeline | None = None
        self._warm_at = 0.0

    def stop(self) -> None:
        """Begin no further request. May be called from a signal handler."""
        self.stopped.set()
        if self._bulk is not None:
            self._bulk.stop(grace_s=_GRACE_S)

    def outcomes(
        self, ask: Callable[[int, bytes], Q], steps: Asking[Q, R]
    ) -> Iterator[list[TaskOutcome[int, R]]]:
        """Yield the outcomes of the requests in batches. `ask` returns the request for a number and a payload."""
        load, ended, failed = self.load, 0, 0
        self._bulk = Pipeline(
            self.settings, workers=load.workers, rate=load.rate, open_loop=load.rate is not None
        )
        for batch in self._bulk.run(self._tasks(ask), steps):
            yield batch
            ended += len(batch)
            failed += sum(outcome.error is not None for outcome in batch)
            self.progress(ended, failed)

    def sample(self, outcome: TaskOutcome[int, R], ended: float) -> None:
        """Add a request, measured from its scheduled start to `ended`. Skip warm-ups and cut off requests."""
        if outcome.what < self.load.warmup or outcome.given_up:
            return
        self.samples.retried += outcome.times.attempts > 1
        if outcome.error is None:
            self.samples.good(outcome.due, ended, outcome.size)
        else:
            self.samples.bad(outcome.error, outcome.due, ended)

    def _tasks(self, ask: Callable[[int, bytes], Q]) -> Iterator[Task[int, Q]]:
        load, number = self.load, 0
        while load.count is None or number < load.warmup + load.count:
            if number == load.warmup:
                self._warm_at = time.monotonic()
            late = load.duration_s is not None and time.monotonic() - self._warm_at >= load.duration_s
            if self.stopped.is_set() or (number > load.warmup and late):
                return
            data = load.payloads[number % len(load.payloads)]
            yield Task(number, ask(number, data), len(data))
            number += 1

    def answers(
        self,
        ask: Callable[[int, bytes], Q],
        steps: Asking[Q, R],
        *,
        failure: Callable[[R], EasqError | None],
        done: Callable[[list[R]], None],
    ) -> None:
        """Measure each request, from its scheduled start to its answer.

        Args:
            failure: returns the error that an answer reports; None for a good answer.
            done: called with the answers of each batch.
        """
        for batch in self.outcomes(ask, steps):
            came = []
            for outcome in batch:
                if outcome.result is not None:
                    came.append(outcome.result)
                    outcome.error = failure(outcome.result)
                self.sample(outcome, outcome.ended)
            if came:
                done(came)
