"""The worker of a queue: watch the input, call the model, put its answer into the sink, commit.

    pushed ── model answers ── put to the sink ── commit       answered, or the answer was too large
       │            └── empty answer ──────────── commit       nothing is put into the sink
       ├── model fails ── negative                             delivered again, until the service gives it up
       ├── model busy ─── negative Busy                        delivered again after a delay; not a failure
       └── worker stops ─ negative Shutdown                    delivered to another worker; not a failure

The commit is sent after the sink has acknowledged the answer, never before. After a crash between the two, the item is
delivered again. The idempotency key of the put depends only on the item, so the answer is in the sink once. While the
sink is full, no item begins, and the worker holds finished answers. If the model is busy, or failed three times in a
row, it is called for one item at a time, 1 s to 30 s apart, until it answers. Waiting items are then returned to other
workers of the group. EAS does not support the code Busy; there, the worker holds the items and calls the model later.

Everything runs on one event loop in a separate thread. Each item in flight has a task; one more task commits items in
batches. A model with blocking calls is called in a fixed number of threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING

from easq.client.async_watch import AsyncWatcher, commit_batches
from easq.client.consumer import Deliveries
from easq.client.queue import check_pair, check_tags, chunks, negative_operation
from easq.errors import (
    EasqError,
    KeyReused,
    PayloadTooLarge,
    QueueFull,
    Refused,
    ServerError,
    StreamEnded,
    Unreachable,
    UsageError,
)
from easq.model import LAST_CODE, Consumer, Frame
from easq.models.base import DEFAULT_TIMEOUT_S, Answer, BlockingModel, Model, ModelAnswerTooLarge, ModelFailed
from easq.models.inference import (
    Fate,
    Outcome,
    attempt_of,
    call_of,
    is_model_failing,
    negative_of,
    outcome_of,
    result_put,
    too_large_put,
)
from easq.models.open import ModelSource, open_model
from easq.net.aio import AsyncTransport, Sender
from easq.net.retry import short_pause_after
from easq.protocol.attributes import consumers_of
from easq.protocol.operations import BUSY, SHUTDOWN, Codec, Commit, Describe, Put, Watch
from easq.protocol.replies import BUSY_FEATURE, read_attributes, read_counted, read_put

if TYPE_CHECKING:
    from easq.client.async_watch import AsyncWatcher
    from easq.client.queue import QueueClient

#: maximum number of uncommitted items of one worker: the default of EAS's `worker_threads`
DEFAULT_WINDOW = 5
#: time for items in flight when a worker stops, in seconds
DEFAULT_GRACE_S = 5.0

#: maximum time that an item waits in the worker for a busy model before it fails, in seconds
DEFAULT_BUSY_LIMIT_S = 600.0
#: time limit of the request that asks whether there are other workers, in seconds
_SHARE_S = 1.0

#: time between two cancellations of calls that still run at the end of the grace, in seconds
_TICK_S = 0.1
#: time to return the items whose calls were cancelled, in seconds
_LAST_S = 2.0
#: maximum number of outcomes that the caller has not processed
_MAX_UNREAD = 10_000
#: temporary errors: the same request may succeed later
_PASSING = (QueueFull, Unreachable, ServerError)


def engine_user() -> str:
    """Return HOST-PID, a unique name for the consumer."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"
    return f"{host}-{os.getpid()}"


class Worker:
    """A worker of a queue: from `start` it processes items until it is stopped, it fails, or the stream ends.

    The worker calls the model with each item of the input, puts the answer into the sink with the item's request id,
    and commits the item. If the model fails on an item, the item is delivered again, until the service gives it up.

    `run` returns at the end of the worker. As a context manager, the worker runs in the background. `stop` and `abort`
    return at once; they may be called from any thread and from a signal handler. After `wait` has returned True,
    `failed` is the error that ended the worker, or None.

    At most `jobs` model calls run at a time, and at most `window` items are in flight.

        with QueueClient(url) as queue:
            Worker(queue, lambda data: data.upper()).run()
    """

    def __init__(
        self,
        queue: QueueClient,
        model: ModelSource | Model | BlockingModel,
        *,
        sink: QueueClient | None = None,
        group: str = "",
        user: str = "",
        window: int = DEFAULT_WINDOW,
        jobs: int | None = None,
        item_timeout_s: float = DEFAULT_TIMEOUT_S,
        upgrade: bool = True,
        grace_s: float = DEFAULT_GRACE_S,
        busy_limit_s: float = DEFAULT_BUSY_LIMIT_S,
        reconnect_for_s: float = 60.0,
        on_outcome: Callable[[Outcome], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        unread: Callable[[], int] | None = None,
    ) -> None:
        """Prepare a worker. It closes the model at its end.

        Raises UsageError if `model` is no model or a number is out of range, and ConfigError if input and sink are the
        same stream.

        Args:
            queue: a client of the input. The worker uses its address, token and settings.
            model: a function, a command or a text. A function gets the data of an item as bytes, and returns the answer
                as bytes or text, or None for no answer. A command is a list of words; it reads the data from stdin and
                writes the answer to stdout. A text is `echo`, `exec:COMMAND ARG...` or `http://HOST:PORT/PATH`.
            sink: a client of the stream for the answers; by default the sink of the queue.
            group: the consumer group; by default the name of the queue.
            user: the consumer's name in the group; by default HOST-PID.
            window: maximum number of items in flight, 1 or more.
            jobs: maximum number of concurrent model calls; by default `window`.
            item_timeout_s: time limit of one model call, in seconds.
            upgrade: watch over WebSocket; if False, over an endless HTTP response.
            grace_s: time for items in flight at the end of the worker, in seconds.
            busy_limit_s: maximum time that an item waits in the worker for a busy model before it fails, in seconds;
                0 for no limit. It is used only if the service does not support the code Busy.
            reconnect_for_s: time for which a lost connection is retried, in seconds.
            on_outcome: called in a thread of the worker with the outcome of each delivery; must not block.
            on_notice: called in a thread of the worker with a line of text for the user; must not block.
            unread: returns the number of outcomes that the caller has not processed. Above 10,000 the worker pauses its
                commits, so that a slow caller slows the worker down.
        """
        self._input, self._sink = queue, queue.sink if sink is None else sink
        check_pair(self._input, self._sink)
        if window < 1 or (jobs is not None and jobs < 1):
            raise UsageError(f"window and jobs are 1 or more, and not {window} and {jobs}")
        self._group, self._user = group, user or engine_user()
        self.window, self.jobs = window, window if jobs is None else min(jobs, window)
        self._model = open_model(model, threads=self.jobs)
        self._item_timeout_s, self._grace_s = item_timeout_s, grace_s
        self._upgrade, self._reconnect_for_s = upgrade, reconnect_for_s
        self._busy_limit_s = busy_limit_s
        self._features: frozenset[str] = frozenset()
        self._tell, self._notice = on_outcome or (lambda _: None), on_notice or (lambda _: None)
        self._unread = unread or (lambda: 0)
        self._queue = ""
        self._items = Deliveries[Outcome](window=window, jobs=self.jobs)
        self._over = threading.Event()
        self._is_aborted = False
        self._thread: threading.Thread | None = None
        self.failed: BaseException | None = None
        # of the event loop
        self._watcher: AsyncWatcher
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._slots: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[Frame]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Number of items between the begin of the model call and the answer to the commit."""
        return self._items.in_flight

    @property
    def is_held(self) -> bool:
        """Whether items have to wait: the sink is full, or the model is called for one item at a time."""
        return self._items.is_held

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and wait for the end. Raises the error that ended the worker, unless another exception is raised."""
        self.stop()
        self._join()
        if error is None and self.failed is not None:
            raise self.failed

    def run(self) -> None:
        """Work until the stream ends or `stop` is called. Raises the error that ended the worker.

        A KeyboardInterrupt stops the worker; items in flight have `grace_s` seconds.
        """
        with self:
            self._over.wait()

    def _join(self) -> None:
        self._over.wait()
        if self._thread is not None:
            self._thread.join()

    def start(self) -> None:
        """Connect, and work in the background. Raises the error for which the input cannot be watched."""
        description = self._input.describe()
        self._queue, self._features = description.name, description.features
        self._input = self._input.called_by(Consumer(self._group or self._queue, self._user))
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="easq-work", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:  # also an interrupt
            self.abort()
            raise

    def stop(self, grace_s: float | None = None) -> None:
        """Begin no further item. Items in flight have `grace_s` seconds; then their calls are cancelled.

        The other items are returned to the group, and do not count as failed.
        """
        deadline = time.monotonic() + (self._grace_s if grace_s is None else grace_s)
        self._call(lambda: self._stop(deadline))

    def abort(self) -> None:
        """Cancel all calls and drop the connection, as in a crash."""
        self._is_aborted = True
        self._call(self._drop)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether the worker has ended, within `timeout_s` seconds."""
        return self._over.wait(timeout_s)

    # outside the event loop

    def _run(self, started: Future[None]) -> None:
        try:
            asyncio.run(self._work(started))
        except asyncio.CancelledError:  # by `abort`
            started.cancel()
        except BaseException as error:  # a bug surfaces to whoever waits
            self.failed = self.failed or error
            if not started.done():
                started.set_exception(error)
        finally:
            self._loop = None
            self._over.set()

    def _call(self, callback: Callable[[], object]) -> None:
        """Call `callback` on the event loop. Does nothing if the loop does not run."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(callback)

    # on the event loop

    async def _work(self, started: Future[None]) -> None:
        self._main, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        self._changed, self._has_done = asyncio.Event(), asyncio.Event()
        self._stopping, self._give_up = asyncio.Event(), asyncio.Event()
        if self._is_aborted:
            raise asyncio.CancelledError
        watcher = self._watcher = self._input.async_watcher(
            Watch(window=self.window, upgrade=self._upgrade),
            on_frame=self._received,
            on_notice=self._notice,
            reconnect_for_s=self._reconnect_for_s,
        )
        async with (
            AsyncTransport(self._input.settings) as self._transport,
            contextlib.AsyncExitStack() as at_end,
        ):
            at_end.push_async_callback(self._model.close)
            try:
                await watcher.connect()
            except Exception as error:
                started.set_exception(error)
                return
            started.set_result(None)
            tasks = [asyncio.create_task(work) for work in (self._watch(), self._commit_all())]
            for task in tasks:
                task.add_done_callback(self._ended)
            try:
                await self._stopping.wait()
                await self._drain()
            except BaseException:  # `abort`, or a bug
                await watcher.abort()
                raise
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await watcher.close()

    async def _watch(self) -> None:
        """Read items until the stream ends or the watch fails, which stops the worker."""
        try:
            await self._watcher.run()
        except StreamEnded as ended:
            self._notice(ended.message)
            self._stop(time.monotonic() + self._grace_s)

    async def _change(self, timeout_s: float) -> None:
        """Wait until an item or the state of the worker has changed, or `timeout_s` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        self._changed.clear()

    async def _drain(self) -> None:
        """Return the waiting items, and wait for the items in flight until the deadline; then return these as well."""
        await self._hand_back(self._items.waiting)
        while (self._working or self._items.uncommitted) and (left_s := self._items.left_s(time.monotonic())):
            await self._change(left_s)
        self._give_up.set()
        end = time.monotonic() + _LAST_S
        while (self._working or self._items.uncommitted) and time.monotonic() < end:
            self._model.cancel()  # again: a call may have begun after the one before
            await self._change(_TICK_S)

    @property
    def _working(self) -> int:
        """Number of tasks that process or return an item."""
        return len(self._slots) - len(self._idle)

    def _drop(self) -> None:
        self._model.cancel()
        if self._main is not None:
            self._main.cancel()

    def _fail(self, error: BaseException) -> None:
        self.failed = self.failed or error
        self._stop(time.monotonic() + self._grace_s)

    def _stop(self, deadline: float) -> None:
        self._items.stop(deadline)
        self._stopping.set()
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the worker if a task has ended with an exception."""
        self._slots.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _received(self, frame: Frame) -> None:
        if self._items.push(frame, self._watcher.epoch) and self._items.is_stopping:
            # after the first negative with Shutdown, the service sends no further item
            self._spawn(self._hand_back([frame]))
        self._begin()

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._slots.add(task)
        task.add_done_callback(self._ended)

    def _begin(self) -> None:
        """Begin each item that may begin, in an idle or a new task. Set a timer for the next item."""
        self._sync()
        now = time.monotonic()
        while (frame := self._items.begin(now)) is not None:
            if self._idle:
                self._idle.pop().set_result(frame)
            else:
                self._spawn(self._slot(frame))
        wait_s = self._items.wait_s(now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_s < inf and self._loop is not None:
            self._timer = self._loop.call_later(wait_s, self._begin)
        self._changed.set()

    def _sync(self) -> None:
        """Forget the items of a lost connection."""
        self._items.connected(self._watcher.epoch)

    async def _slot(self, frame: Frame) -> None:
        """Process one item after the other, with one sender: a sender belongs to one task."""
        sender = self._transport.sender()
        while True:
            try:
                await self._work_on(frame, sender)
            except BaseException:
                self._items.release(frame.index)  # the connection that ends returns it
                raise
            waiter: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            self._begin()
            frame = await waiter

    # one item

    async def _work_on(self, frame: Frame, sender: Sender) -> None:
        began = time.monotonic()
        try:
            answer: Answer | ModelAnswerTooLarge
            try:
                answer = await self._model.answer(call_of(frame), timeout_s=self._item_timeout_s)
            except ModelAnswerTooLarge as error:  # as when the sink refuses it: another call would not help
                answer = error
            finally:
                self._items.call_ended()
            if self._items.succeeded():
                self._notice("the model answers")
                self._begin()
            outcome = await self._store_answer(frame, answer, began, sender)
            self._items.done(frame.index, outcome)
            self._has_done.set()
        except ModelFailed as error:
            if error.code == SHUTDOWN:
                await self._hand_back([frame], sender)
            elif error.busy:
                await self._put_off(frame, error, began, sender)
            else:
                if is_model_failing(error) and self._items.failed(time.monotonic()):
                    self._notice(f"the model fails, calling it for one item at a time: {error.message}")
                await self._give_back(frame, error, began, sender)
                await self._share_waiting(sender)
        except StreamEnded as ended:
            self._fail(Refused(f"the sink takes no answers: {ended.message}", status=ended.status))
            await self._hand_back([frame], sender)
        except (Refused, UsageError) as error:  # the sink refuses this answer, not all answers
            await self._give_back(frame, error, began, sender)
        except _GraceOver:
            await self._hand_back([frame], sender)
        except EasqError as error:  # nothing works: no command, no access
            self._fail(error)
            await self._hand_back([frame], sender)

    async def _put_off(self, frame: Frame, error: ModelFailed, began: float, sender: Sender) -> None:
        """Defer an item because the model is busy: send Busy if the service supports it, else wait in the worker."""
        now = time.monotonic()
        if self._items.busy(now, error.retry_after_s):
            self._notice(f"waiting for the model: {error.message}")
        if BUSY_FEATURE in self._features:
            await self._give_back(frame, error, began, sender)
            await self._share_waiting(sender)
        elif self._busy_limit_s and self._items.busy_for_s(frame.index, now) > self._busy_limit_s:
            await self._give_back(frame, error, began, sender)
        else:
            self._items.put_off(frame.index, now)

    async def _share_waiting(self, sender: Sender) -> None:
        """Return the waiting items to the group if the model is busy and the group has other workers."""
        if BUSY_FEATURE not in self._features or not self._items.is_one_at_a_time:
            return
        read = partial(read_attributes, codec=Codec.JSON)
        try:
            attributes = await sender.run(self._input.asking(Describe(), read, deadline_s=_SHARE_S))
        except EasqError:
            return
        if consumers_of(attributes, self._input.caller.consumer.group) > 1:
            self._sync()
            indexes = [frame.index for frame in self._items.waiting if self._items.release(frame.index)]
            await self._return(indexes, BUSY, "another worker may have it", sender, delay_s=0.0)

    async def _store_answer(
        self, frame: Frame, answer: Answer | ModelAnswerTooLarge, began: float, sender: Sender
    ) -> Outcome:
        """Put the answer into the sink, and return the outcome of the item."""
        fate, code, reason = Fate.ANSWERED, "", ""
        key_of = (self._queue, self._input.caller.consumer.group, frame)
        if isinstance(answer, Answer) and not answer.data:
            fate = Fate.EMPTY
        else:
            try:
                if isinstance(answer, ModelAnswerTooLarge):
                    raise answer
                await self._put(result_put(*key_of, answer), sender)
            except (PayloadTooLarge, ModelAnswerTooLarge) as error:
                put = too_large_put(*key_of, error)
                fate, code, reason = Fate.TOO_LARGE, put.tags[LAST_CODE], put.data.decode()
                await self._put(put, sender)
        return outcome_of(frame, fate, began, code=code, reason=reason, size=len(answer.data))

    async def _put(self, put: Put, sender: Sender) -> None:
        """Put a result into the sink once, as soon as there is room. Raises _GraceOver if the worker stops before."""
        check_tags(put.tags)
        # KeyReused: an earlier delivery stored another answer, and was not committed
        with contextlib.suppress(KeyReused):
            await self._persist(
                lambda: sender.run(self._sink.asking(put, read_put)),
                "the result cannot be put into the sink",
                holds=True,
            )

    async def _give_back(
        self, frame: Frame, error: ModelFailed | Refused | UsageError, began: float, sender: Sender
    ) -> None:
        """Send a negative and report the outcome. Nothing is sent for an item of a lost connection."""
        found = negative_of(frame, error, knows_busy=BUSY_FEATURE in self._features)
        self._sync()
        epoch = self._watcher.epoch
        if self._items.release(frame.index):
            negative = negative_operation(
                found.indexes, code=found.code, reason=found.reason, delay_s=found.delay_s
            )

            async def tell() -> None:
                if self._watcher.epoch == epoch:
                    await sender.run(self._input.asking(negative, read_counted))

            with contextlib.suppress(_GraceOver):  # the connection that ends returns it
                await self._persist(tell, "a failure cannot be told", holds=False)
        fate, code = (Fate.BUSY, str(error.status)) if found.code == BUSY else (Fate.FAILED, found.code)
        self._tell(outcome_of(frame, fate, began, code=code, reason=found.reason))

    async def _hand_back(self, frames: Sequence[Frame], sender: Sender | None = None) -> None:
        """Return items because the worker stops. If the service is unreachable, the lost connection returns them."""
        sender = sender or self._transport.sender()
        self._sync()
        indexes = [frame.index for frame in frames if self._items.release(frame.index)]
        await self._return(indexes, SHUTDOWN, "the worker stops", sender)
        for frame in frames:
            self._tell(Outcome(frame.index, frame.request_id, attempt_of(frame), Fate.RETURNED))

    async def _return(
        self,
        indexes: list[int],
        code: str,
        reason: str,
        sender: Sender,
        *,
        delay_s: float | None = None,
    ) -> None:
        try:
            for chunk in chunks(tuple(indexes)):
                negative = negative_operation(chunk, code=code, reason=reason, delay_s=delay_s)
                await sender.run(self._input.asking(negative, read_counted))
        except EasqError as error:
            self._notice(f"not handed back: {error.message}")

    async def _persist(self, action: Callable[[], Awaitable[object]], what: str, *, holds: bool) -> None:
        """Call `action` until it succeeds. With `holds`, no item begins until then.

        Raises _GraceOver at the deadline of `stop`, and any error that is not temporary.
        """
        failures = 0
        try:
            while True:
                try:
                    await action()
                    return
                except _PASSING as error:
                    if not failures:
                        self._notice(f"{what} yet: {error.message}")
                        if holds:
                            self._items.hold()
                    failures += 1
                    with contextlib.suppress(TimeoutError):
                        pause_s = short_pause_after(error, failures)
                        await asyncio.wait_for(self._give_up.wait(), pause_s)
                        raise _GraceOver from error
        finally:
            if failures and holds:
                self._items.resume()
                self._begin()

    # commits

    async def _commit_all(self) -> None:
        """Commit finished items at once, until the deadline of `stop`."""
        sender = self._transport.sender()

        async def commit(batch: list[int]) -> None:
            await self._persist(lambda: self._commit(batch, sender), "done and not committed", holds=False)
            for outcome in self._items.committed(batch):
                self._tell(outcome)
            self._changed.set()
            while self._unread() > _MAX_UNREAD:
                await asyncio.sleep(_TICK_S)

        # _GraceOver: the items are delivered again; the sink recognises their results by the idempotency keys
        with contextlib.suppress(_GraceOver):
            await commit_batches(self._items, self._has_done, commit)

    async def _commit(self, batch: Sequence[int], sender: Sender) -> None:
        await sender.run(self._input.asking(Commit(tuple(batch)), read_counted))


class _GraceOver(Exception):
    """Raised when the deadline of `Worker.stop` has passed."""
