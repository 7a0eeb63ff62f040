"""easq work: be the inference engine of a queue."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import transport_option
from easq.cli.param_types import DURATION, WholeNumber

if TYPE_CHECKING:
    from typing import TypeAlias

    from easq.cli.app import App
    from easq.client.queue import QueueClient
    from easq.models.base import BlockingModel, Model
    from easq.models.inference import Outcome
    from easq.worker.worker import Worker

    Events: TypeAlias = queue.Queue[Outcome | str]

#: how late a signal, or the progress shown, may be, in seconds
_TICK_S = 0.1
#: a second signal leaves after this at the latest, in seconds
_LEAVE_S = 0.5
#: the backlog is asked for so often, in seconds, and an answer waited for so long
_BACKLOG_EVERY_S, _BACKLOG_WAIT_S = 2.0, 1.0
#: of so many last items the times, and of so many last seconds the rate, are told
_TIMES, _RATE_S = 1000, 10.0

COLUMNS = ("n", "index", "request_id", "outcome", "code", "attempt", "size", "seconds")


@command(
    "work",
    examples=(
        "easq work --forward http://127.0.0.1:8501/",
        "easq work --window 2 --item-timeout 5m -- python predict.py",
        "easq work --forward http://127.0.0.1:8501/ -o json | jq -c 'select(.outcome == \"failed\")'",
    ),
)
@click.option(
    "--window",
    type=WholeNumber(1, 10_000),
    default=5,
    show_default=True,
    help="Maximum number of uncommitted items, 1 to 10000.",
)
@click.option(
    "--jobs",
    type=WholeNumber(1, 10_000),
    help="Maximum number of concurrent model calls, 1 to 10000.  [default: as --window]",
)
@click.option(
    "--item-timeout", type=DURATION, default="60s", show_default=True, help="Maximum time of one model call."
)
@click.option(
    "--grace",
    type=DURATION,
    default="5s",
    show_default=True,
    help="Time for running calls to finish after a signal.",
)
@click.option(
    "--busy-limit",
    type=DURATION,
    default="10m",
    show_default=True,
    help="Maximum time an item waits in the worker for a busy model before it fails; 0 is no limit.",
)
@transport_option
@click.option("--forward", metavar="URL", help="Send each item to this URL with POST.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def work(
    app: App,
    window: int,
    jobs: int | None,
    item_timeout: float,
    grace: float,
    busy_limit: float,
    transport: str,
    forward: str | None,
    cmd: tuple[str, ...],
) -> None:
    """Run a worker: process items and write results to the sink.

    For each item, the worker calls the model, puts the answer into the sink and commits the item. The model is a
    service (--forward URL) or a command (-- CMD). CMD reads the item from standard input and writes the answer to
    standard output. EASQ_INDEX, EASQ_REQUEST_ID, EASQ_ATTEMPT and EASQ_TAGS_JSON are in its environment.

    An item on which the model fails is delivered again. When the service gives an item up, it puts a result with
    the tag lastCode into the sink.

    The consumer group is the queue's name and the user is HOST-PID, unless --group and --user are given. After SIGTERM
    or Ctrl-C, running calls finish, and the exit code is 0 or 130; a second signal stops the worker at once.
    """
    from easq.errors import UsageError
    from easq.worker.worker import Worker

    if jobs is not None and jobs > window:
        raise UsageError(f"--jobs {jobs} is above --window {window}: no more than the window is in hand")
    if not item_timeout:
        raise UsageError("--item-timeout 0s leaves no time for a call")
    # no SimpleQueue: a signal at the end of its timeout makes it wait for ever (CPython 3.11)
    events: Events = queue.Queue()
    input = app.queue(sink=False)
    worker = Worker(
        input,
        _model(forward, cmd),
        sink=app.queue(sink=True),
        group=app.options.get("group") or "",
        user=app.options.get("user") or "",
        window=window,
        jobs=jobs,
        item_timeout_s=item_timeout,
        upgrade=transport == "ws",
        grace_s=grace,
        busy_limit_s=busy_limit,
        on_outcome=events.put,
        on_notice=events.put,
        unread=events.qsize,
    )
    Session(app, worker, input, events).run()


def _model(forward: str | None, cmd: Sequence[str]) -> Model | BlockingModel:
    """The model that the command line names. Raises UsageError where it names none, or two."""
    from easq.errors import UsageError
    from easq.models.command import Exec
    from easq.models.http import Http

    if forward is not None and cmd:
        raise UsageError("--forward and -- CMD exclude each other")
    if forward is not None:
        return Http(forward)
    if not cmd:
        raise UsageError("no model", hint="--forward URL, or -- CMD ARG...")
    return Exec(cmd)


@dataclass
class Session:
    """One run of the worker, as it is told: each delivery that is over, and on a terminal how it goes."""

    app: App
    worker: Worker
    input: QueueClient
    events: Events
    told: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    recent: deque[float] = field(default_factory=deque)  # when the last items were done
    begun: float = field(default_factory=time.monotonic)
    signals: list[int] = field(default_factory=list)
    watches: bool = False  # True once the watch began, and items may be pushed
    stop_told: bool = False
    lost: Exception | None = None  # why nothing can be written any more
    backlog: str = "?"
    backlog_at: float = float("-inf")

    def run(self) -> None:
        """The worker has ended and all it did was told; what it ended of is raised."""
        from easq.cli.signals import Terminated
        from easq.errors import EasqError
        from easq.render.printer import OutputClosed

        try:
            with self._signals_end_it():  # from before anybody can see that we watch
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
        """Inside, the first signal to end makes the worker stop, and the second one leaves at once."""
        from easq.cli.signals import interrupt_of, signals_call

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
                dropping = threading.Thread(target=self.worker.abort, daemon=True)
                dropping.start()
                dropping.join(_LEAVE_S)  # it may be about to connect to what does not answer
                raise

    def _tell_next(self) -> None:
        """What comes next was told, or nothing came for a moment."""
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
        if len(self.signals) == 1 and not self.stop_told:
            self.stop_told = True
            self.app.printer.info(f"stopping; {self.worker.in_flight} under way")
        self._show()

    def _count(self, outcome: Outcome) -> None:
        from easq.models.inference import Fate

        self.counts[outcome.fate.value] += 1
        if outcome.fate not in (Fate.RETURNED, Fate.BUSY):
            self.times.append(outcome.seconds)
            now = time.monotonic()
            self.recent.append(now)
            while self.recent[0] < now - _RATE_S:
                self.recent.popleft()

    def _tell(self, outcome: Outcome) -> None:
        from easq.models.inference import Fate

        printer, number = self.app.printer, self.told
        self.told += 1
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
        """On a terminal: how many, how fast, how slow, and how many are left."""
        from easq.render.progress import fitting

        if not self.app.printer.shows_status:
            return
        now = time.monotonic()
        if now - self.backlog_at >= _BACKLOG_EVERY_S and not self.signals:
            self.backlog, self.backlog_at = self._ask_backlog(), now
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

    def _ask_backlog(self) -> str:
        from easq.errors import EasqError

        try:
            return self.input.attributes(deadline_s=_BACKLOG_WAIT_S).get("stream.length", "?")
        except EasqError:
            return "?"

    @property
    def done(self) -> int:
        """Items that need not be delivered again."""
        return self.counts["answered"] + self.counts["empty"] + self.counts["too_large"]

    def _quantile(self, part: float) -> float | None:
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None

    def _summarize(self) -> None:
        """The totals are said, on stderr."""
        from easq.models.inference import Fate
        from easq.protocol.durations import format_duration

        printer, seconds = self.app.printer, time.monotonic() - self.begun
        p50, p99 = self._quantile(0.5), self._quantile(0.99)
        counts = {fate.value: self.counts[fate.value] for fate in Fate}
        if self.app.output == "json":
            times = {"seconds": round(seconds, 6), "p50": p50 and round(p50, 6), "p99": p99 and round(p99, 6)}
            printer.summary({"done": self.done, **counts, **times})
            return
        printer.info("Work done.")
        printer.remark(f"Total time cost: {format_duration(seconds)}, p50 {_ms(p50)}, p99 {_ms(p99)}")
        told = ", ".join(f"{fate.replace('_', ' ')}: {count}" for fate, count in counts.items())
        printer.remark(f"Total: {self.told}, {told}")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}ms"
