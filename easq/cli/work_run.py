"""One run of `easq work`: its signals and its reports."""

from __future__ import annotations

import queue
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from easq.cli.signals import Terminated, interrupt_of, signals_call
from easq.errors import EasqError
from easq.models.inference import Fate, Outcome
from easq.protocol.durations import format_duration
from easq.render.printer import OutputClosed
from easq.render.progress import fitting

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.queue import QueueClient
    from easq.worker.worker import Worker

#: outcomes and lines for people, in the order in which they came
Events: TypeAlias = "queue.Queue[Outcome | str]"

#: seconds between two checks for a signal, and two updates of the status line
_TICK_S = 0.1
#: time to drop the connections after a second signal, in seconds
_LEAVE_S = 0.5
#: seconds between two requests for the backlog, and the time limit of one
_BACKLOG_EVERY_S, _BACKLOG_WAIT_S = 2.0, 1.0
#: number of last items whose times are summarized; seconds over which the rate is computed
_TIMES, _RATE_S = 1000, 10.0

COLUMNS = ("n", "index", "request_id", "outcome", "code", "attempt", "size", "seconds")


@dataclass
class WorkRun:
    """One run of a worker: reports each delivery that is over, and on a terminal the progress."""

    app: App
    worker: Worker
    input: QueueClient
    events: Events
    reported: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    recent: deque[float] = field(default_factory=deque)  # when the last items were done
    begun: float = field(default_factory=time.monotonic)
    signals: list[int] = field(default_factory=list)
    watches: bool = False  # True once the watch began, and items may be pushed
    stop_reported: bool = False
    lost: Exception | None = None  # the error after which stdout is no longer written
    backlog: str = "?"
    backlog_at: float = float("-inf")

    def run(self) -> None:
        """Run the worker until it ends, and report everything. Raises the error that ended it."""
        try:
            with self._signals_end_it():  # before the service shows the consumer
                self.worker.start()
                self.watches = True
                self.app.printer.info(
                    f"Start to work: window: {self.worker.window}, jobs: {self.worker.jobs}"
                )
                if self.app.output == "table":
                    self.app.printer.header(COLUMNS)
                while not self.worker.wait(0) or not self.events.empty():
                    try:
                        self._tell_next()
                    except (OutputClosed, EasqError) as error:  # nobody reads stdout, or it is full
                        self.lost = error
                        self.app.printer.abandon()
                        self.worker.stop()
        except Terminated:
            if self.watches:
                raise
        self._summarize()
        if failure := self.lost or self.worker.failed:
            raise failure
        if signal.SIGINT in self.signals:
            raise KeyboardInterrupt

    @contextmanager
    def _signals_end_it(self) -> Iterator[None]:
        """Stop the worker at the first signal within this context, and leave at once at the second."""

        def note(number: int, _frame: object) -> None:
            self.signals.append(number)
            # before the watch there is nothing to return, and connecting may take long
            if len(self.signals) > 1 or not self.watches:
                raise interrupt_of(number)
            self.worker.stop()

        with signals_call(note):
            try:
                yield
            except KeyboardInterrupt:
                self.worker.abort()
                if self.watches:
                    self.worker.wait(_LEAVE_S)
                raise

    def _tell_next(self) -> None:
        """Report the next event, or update the status line if none comes for a moment."""
        try:
            event = self.events.get(timeout=_TICK_S)
        except queue.Empty:
            self.app.printer.flush()
        else:
            if isinstance(event, str):
                self.app.printer.notice(event)
            else:
                self._count(event)
                if self.lost is None:
                    self._tell(event)
        if len(self.signals) == 1 and not self.stop_reported:
            self.stop_reported = True
            self.app.printer.info(f"stopping; {self.worker.in_flight} under way")
        self._show()

    def _count(self, outcome: Outcome) -> None:
        self.counts[outcome.fate.value] += 1
        if outcome.fate not in (Fate.RETURNED, Fate.BUSY):
            self.times.append(outcome.seconds)
            now = time.monotonic()
            self.recent.append(now)
            while self.recent[0] < now - _RATE_S:
                self.recent.popleft()

    def _tell(self, outcome: Outcome) -> None:
        printer, number = self.app.printer, self.reported
        self.reported += 1
        if self.app.output == "json":
            printer.record(
                {
                    "n": number,
                    "index": str(outcome.index),
                    "request_id": outcome.request_id,
                    "outcome": outcome.fate.value,
                    "code": outcome.code or None,
                    "reason": outcome.reason or None,
                    "attempt": outcome.attempt,
                    "size": outcome.size,
                    "seconds": round(outcome.seconds, 6),
                }
            )
            printer.flush()
        elif self.app.output == "table":
            row = (number, outcome.index, outcome.request_id, outcome.fate.value, outcome.code)
            rest = (outcome.attempt, outcome.size, f"{outcome.seconds:.6f}")
            printer.row([str(value) for value in (*row, *rest)])
            printer.flush()
        elif outcome.code and outcome.fate is not Fate.BUSY:  # a busy model has its own notice
            printer.notice(
                f"item {outcome.index} {outcome.fate.value.replace('_', ' ')}, attempt {outcome.attempt}: "
                f"{outcome.code} {outcome.reason}"
            )

    def _show(self) -> None:
        """Show on a terminal how many items are done and left, and how fast."""
        if not self.app.printer.shows_status:
            return
        now = time.monotonic()
        if now - self.backlog_at >= _BACKLOG_EVERY_S and not self.signals:
            self.backlog, self.backlog_at = "?", now
            with suppress(EasqError):
                attributes = self.input.attributes(deadline_s=_BACKLOG_WAIT_S)
                self.backlog = attributes.get("stream.length", "?")
        while self.recent and self.recent[0] < now - _RATE_S:
            self.recent.popleft()
        rate = len(self.recent) / min(max(now - self.begun, _TICK_S), _RATE_S)
        failed = self.counts["failed"]
        words = (
            f"{self.done:,} done",
            f"{failed:,} failed" if failed else "",
            "held" if self.worker.is_held else "",
            f"{rate:.1f}/s",
            f"{self.backlog} left",
            f"p99 {_ms(self._quantile(0.99))}",
            f"{self.worker.in_flight} in flight",
        )
        self.app.printer.status(fitting([word for word in words if word]))

    @property
    def done(self) -> int:
        """Items that are committed."""
        return self.counts["answered"] + self.counts["empty"] + self.counts["too_large"]

    def _quantile(self, part: float) -> float | None:
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None

    def _summarize(self) -> None:
        """Write the totals to stderr."""
        printer, seconds = self.app.printer, time.monotonic() - self.begun
        p50, p99 = self._quantile(0.5), self._quantile(0.99)
        counts = {fate.value: self.counts[fate.value] for fate in Fate}
        if self.app.output == "json":
            times = {"seconds": round(seconds, 6), "p50": p50 and round(p50, 6), "p99": p99 and round(p99, 6)}
            printer.summary({"done": self.done, **counts, **times})
            return
        printer.info("Work done.")
        printer.remark(f"Total time cost: {format_duration(seconds)}, p50 {_ms(p50)}, p99 {_ms(p99)}")
        reported = ", ".join(f"{fate.replace('_', ' ')}: {count}" for fate, count in counts.items())
        printer.remark(f"Total: {self.reported}, {reported}")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}ms"
