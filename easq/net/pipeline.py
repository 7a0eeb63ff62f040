"""Runs many exchanges at a time, and returns their outcomes in the order of their tasks.

Three threads work together: one reads the tasks, which may block on a pipe; one runs the event loop; the caller's
thread takes the outcomes. Memory is bounded: the number and the bytes of tasks that are read and not yet reported have
limits.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias, TypeVar

from easq.errors import EasqError, Unreachable
from easq.net.aio import AsyncTransport, Sender
from easq.net.failures import Unanswered
from easq.net.retry import Retry, Steps, Times, exchange
from easq.net.settings import NetworkSettings
from easq.net.trace import hidden, secrets_of
from easq.net.url import shown
from easq.protocol.operations import Caller, Operation, to_request
from easq.protocol.replies import Reply

Q = TypeVar("Q")
T = TypeVar("T")
R = TypeVar("R")

#: payloads and answers in memory that are not yet reported, in bytes; one item may be larger
MAX_HELD_BYTES = 64 * 1024 * 1024
#: largest answer that does not count as held memory, in bytes
_COUNTED = 4096
#: longest delay behind its rate that a run makes up for, in seconds: a longer one would cause a burst
_CATCH_UP_S = 0.1
#: shortest pause that a stop interrupts, in seconds
_LONG_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Task(Generic[T, Q]):
    """A request to the server, or the error that prevents it. `what` is passed on to the outcome."""

    what: T
    ask: Q | EasqError
    size: int = 0


@dataclass(slots=True)
class TaskOutcome(Generic[T, R]):
    """The `result` or the `error` of a task. Moments are in seconds on the monotonic clock."""

    what: T
    size: int  #: of its payload, in bytes
    result: R | None = None
    error: EasqError | None = None
    times: Times = field(default_factory=Times)
    due: float = 0.0  #: when the rate allows it to begin
    began: float = 0.0
    ended: float = 0.0
    done: bool = False
    held: int = 0  #: bytes in memory for this task
    given_up: bool = False  #: the run was stopped before it ended


#: begins the exchange of a question, and fills in its Times
Asking: TypeAlias = "Callable[[Q, Times], Steps[R]]"
#: a question, or the error for which there is none, and its outcome
_Entry: TypeAlias = "tuple[Any, TaskOutcome[Any, Any]]"
_Message: TypeAlias = "list[TaskOutcome[Any, Any]] | BaseException | tuple[int, str] | str | None"


def asking(
    url: str,
    caller: Caller,
    settings: NetworkSettings,
    read: Callable[[Reply], R],
    *,
    retry: Retry = Retry.READ,
) -> Asking[Operation, R]:
    """Return a function that begins the exchange of an operation on a stream. `read` converts its reply."""

    def steps(operation: Operation, times: Times) -> Steps[R]:
        reply = yield from exchange(url, to_request(operation), caller, settings, retry=retry, times=times)
        try:
            return read(reply)
        except EasqError as error:
            raise hidden(error, [caller.token, *secrets_of(settings.headers)]) from error.__cause__

    return steps


class Pipeline:
    """Runs exchanges, `workers` of them at a time."""

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        workers: int,
        rate: float | None = None,
        open_loop: bool = False,
        stop_at_failure: bool = False,
        timed: bool = False,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            rate: most exchanges that begin in a second.
            open_loop: begin each exchange at its scheduled time, even if earlier exchanges are late.
            stop_at_failure: begin no exchange after the first failure.
            timed: fill in the times of connecting and of the first byte.
            on_notice: called once, in the thread that takes the outcomes, when a refused request will be sent again.
        """
        self._workers, self._rate, self._open_loop = workers, rate, open_loop
        self._stop_at_failure = stop_at_failure
        self._stopping = False
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._trace = settings.trace
        if settings.trace is not None:  # called in the caller's thread: only that may write
            settings = replace(settings, trace=lambda level, line: self._messages.put((level, line)))
        self._session = AsyncTransport(settings, timed=timed)
        self._backlog = _Backlog(2 * workers + 16)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt: asyncio.Event | None = None
        self._leave: asyncio.Event | None = (
            None  #: set by a stop with a grace period: no further attempt is made
        )
        self._notice = on_notice
        self._tasks: list[asyncio.Task[None]] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._wants_tasks = False
        self._flushing = False
        self._next_due = 0.0
        self._steps: Callable[[Any, Times], Steps[Any]]
        self._reader: threading.Thread

    def run(self, tasks: Iterator[Task[T, Q]], steps: Asking[Q, R]) -> Iterator[list[TaskOutcome[T, R]]]:
        """Yield the outcomes in the order of the tasks, in batches. Each batch is freed when the next is requested.

        `steps` begins the exchange of a task. An error in reading a task is raised after the outcomes of earlier tasks.
        """
        reader = threading.Thread(target=self._read, args=(tasks,), name="easq-read", daemon=True)
        runner = threading.Thread(target=self._run, name="easq-bulk", daemon=True)
        self._reader, self._steps = reader, steps
        runner.start()
        try:
            reader.start()
            while (message := self._messages.get()) is not None:
                if isinstance(message, BaseException):
                    raise message
                if isinstance(message, str):
                    if self._notice is not None:
                        self._notice(message)
                        self._notice = None
                    continue
                if isinstance(message, tuple):
                    if self._trace is not None:
                        self._trace(*message)
                    continue
                yield message
                self._backlog.leave(message)
        finally:
            self.stop(grace_s=0.0)
            runner.join()
        if self._backlog.failure is not None:
            raise self._backlog.failure

    def stop(self, *, grace_s: float | None = None) -> None:
        """Begin no further task. May be called from a signal handler.

        With `grace_s`, tasks in flight fail as Unanswered after this time in seconds. A task that waits for its next
        attempt fails at once with the error of the last attempt. With None, all tasks in flight may end.
        """
        self._stopping = True
        self._call(self._stopped)
        loop = self._loop
        if loop is not None and grace_s is not None:
            if self._leave is not None:
                self._call(self._leave.set)

            def give_up() -> None:
                self._stopped()
                for task in self._tasks:
                    task.cancel()

            self._call(lambda: loop.call_later(grace_s, give_up))

    def read_all(self, *, within_s: float) -> bool:
        """Wait up to `within_s` seconds, and return whether reading the tasks has ended."""
        self._reader.join(within_s)
        return not self._reader.is_alive()

    # in the reader's thread

    def _read(self, tasks: Iterator[Task[Any, Any]]) -> None:
        backlog = self._backlog
        try:
            for task in tasks:
                if not backlog.enter(task):
                    break
                if self._wants_tasks:
                    self._call(self._feed)
        except BaseException as error:
            backlog.failure = error
        finally:
            backlog.ended = True
            self._call(self._feed)

    def _call(self, callback: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(callback)
            except RuntimeError:
                pass  # the loop has ended

    # in the loop's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._messages.put(error)
        finally:
            self._loop = None
            self._backlog.close()
            self._messages.put(None)

    async def _main(self) -> None:
        self._halt, self._leave = asyncio.Event(), asyncio.Event()
        async with self._session as session:
            self._tasks = [asyncio.ensure_future(self._work(session)) for _ in range(self._workers)]
            self._loop = asyncio.get_running_loop()
            await asyncio.gather(*self._tasks)
        self._flush()

    def _feed(self) -> None:
        waiters = self._waiters
        over = self._backlog.ended or self._stopping
        for _ in range(len(waiters) if over else min(len(waiters), len(self._backlog.waiting))):
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self._wants_tasks = bool(waiters)

    def _stopped(self) -> None:
        if self._halt is not None:
            self._halt.set()
        self._backlog.close()
        self._feed()

    async def _next(self) -> _Entry | None:
        """Return the next task; None at the end."""
        backlog = self._backlog
        while not self._stopping:
            self._wants_tasks = True  # before the check: a task that is added after it then calls `_feed`
            if backlog.waiting:
                self._wants_tasks = bool(self._waiters)
                return backlog.waiting.popleft()
            if backlog.ended:
                return None
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return None

    async def _work(self, session: AsyncTransport) -> None:
        sender = session.sender()
        try:
            while (entry := await self._next()) is not None:
                ask, outcome = entry
                if self._rate and not await self._due(outcome, self._rate):
                    return
                await self._one(sender, ask, outcome)
        except asyncio.CancelledError:
            pass  # between two tasks

    async def _due(self, outcome: TaskOutcome[Any, Any], rate: float) -> bool:
        """Wait until the task may begin by the rate. Return False if the run was stopped before."""
        now = time.monotonic()
        due = self._next_due or now
        if not self._open_loop:
            due = max(due, now - max(1 / rate, _CATCH_UP_S))
        outcome.due, self._next_due = due, due + 1 / rate
        pause_s = due - now
        if pause_s > _LONG_PAUSE_S and self._halt is not None:
            try:
                await asyncio.wait_for(self._halt.wait(), pause_s)
            except TimeoutError:
                pass
        elif pause_s > 0:
            await asyncio.sleep(pause_s)
        return not self._stopping

    async def _one(self, sender: Sender, ask: Any, outcome: TaskOutcome[Any, Any]) -> None:
        outcome.began = time.monotonic()
        outcome.due = outcome.due or outcome.began
        try:
            if isinstance(ask, EasqError):
                raise ask
            outcome.result = await self._take(sender, self._steps(ask, outcome.times), outcome)
        except EasqError as error:
            outcome.error = error
        except asyncio.CancelledError:
            outcome.given_up = True
            outcome.error = Unanswered(f"given up before {shown(sender.url)} answered")
        outcome.ended = time.monotonic()
        outcome.done = True
        if outcome.error is not None and self._stop_at_failure:
            self._stopping = True
            self._stopped()
        if not self._flushing and self._backlog.order[0].done:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def _take(self, sender: Sender, steps: Steps[R], outcome: TaskOutcome[Any, R]) -> R:
        """Return the result of an exchange, as `Transport.run`, without blocking."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    await self._pause(step, outcome)
                    step = next(steps)
                    continue
                try:
                    reply = await sender.send(step)
                except EasqError as failure:
                    step = steps.throw(failure)
                else:
                    if len(reply.body) > _COUNTED:
                        self._backlog.grow(outcome, len(reply.body))
                    step = steps.send(reply)
        except StopIteration as end:
            answer: R = end.value
            return answer

    async def _pause(self, pause_s: float, outcome: TaskOutcome[Any, Any]) -> None:
        """Wait for `pause_s`. Raise the error of the last attempt if the run is stopped meanwhile."""
        error = outcome.times.pausing
        if error is None or self._leave is None:
            await asyncio.sleep(pause_s)
            return
        if self._notice is not None and not isinstance(error, Unreachable):
            self._messages.put(f"{error.message}; trying again")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leave.wait(), pause_s)
            outcome.given_up = True
            raise error

    def _flush(self) -> None:
        """Pass outcomes to the caller, up to the first unfinished task."""
        self._flushing = False
        order, batch = self._backlog.order, []
        while order and order[0].done:
            batch.append(order.popleft())
        if batch:
            self._messages.put(batch)


class _Backlog:
    """The tasks that were read and not yet reported, in order; its limits bound the memory."""

    def __init__(self, most: int) -> None:
        self.order: deque[TaskOutcome[Any, Any]] = deque()
        self.waiting: deque[_Entry] = deque()
        self.ended = False
        self.failure: BaseException | None = None
        self._most, self._held, self._bytes = most, 0, 0
        self._closed = False
        self._room = threading.Condition()

    def enter(self, task: Task[Any, Any]) -> bool:
        """Wait for room and add a task. Return False if the backlog is closed; the task will then not begin."""
        outcome: TaskOutcome[Any, Any] = TaskOutcome(task.what, task.size)
        with self._room:
            while not self._closed and self._held:
                if self._held < self._most and self._bytes + task.size <= MAX_HELD_BYTES:
                    break
                self._room.wait()
            self._held += 1
            self._bytes += task.size
            outcome.held = task.size
            self.order.append(outcome)
            if not self._closed:
                self.waiting.append((task.ask, outcome))
            return not self._closed

    def grow(self, outcome: TaskOutcome[Any, Any], size: int) -> None:
        """Count `size` bytes more for a task: large answers that wait to be reported delay further requests."""
        with self._room:
            outcome.held += size
            self._bytes += size

    def leave(self, outcomes: list[TaskOutcome[T, R]]) -> None:
        """Remove reported tasks, which makes room for others."""
        with self._room:
            self._held -= len(outcomes)
            self._bytes -= sum(outcome.held for outcome in outcomes)
            self._room.notify()

    def close(self) -> None:
        """Accept no further task."""
        with self._room:
            self._closed = True
            self._room.notify()
