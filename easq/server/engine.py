"""The engines of `easq serve --model`: each consumes a queue and puts the model's answers into its sink.

They run on the service's event loop and call the queues directly. (200 engines that connected to the service's own
address took 1,800 threads.) An answer is stored before its item is committed. All engines share one thread pool for
models whose calls block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from easq.errors import (
    ChildFailed,
    EasqError,
    KeyReused,
    PayloadTooLarge,
    QueueFull,
    Refused,
    StorageError,
    StreamEnded,
    Unavailable,
    UsageError,
)
from easq.model import Consumer, Frame
from easq.models.base import ENGINE_ERROR, Answer, Model, ModelAnswerTooLarge, ModelFailed
from easq.models.inference import call_of, is_model_failing, negative_of, result_put, too_large_put
from easq.net.breaker import Breaker
from easq.net.retry import short_pause_after
from easq.protocol import operations as op
from easq.protocol.attributes import consumers_of
from easq.protocol.operations import SHUTDOWN
from easq.server.queues import Pair, Queues
from easq.server.subscriber import Subscriber

log = logging.getLogger(__name__)

#: uncommitted items of one engine, at most: the default of EAS's `worker_threads`
WINDOW = 5
#: pause before an engine connects again, in seconds
_RECONNECT_S = 1.0
#: time in which running calls may finish when the service stops, in seconds
_GRACE_S = 5.0
#: time in which cancelled calls may end, in seconds
_CANCEL_S = 2.0
#: seconds between heartbeats; after 5 s without one, another consumer can take over the name
_HEARTBEAT_S = 2.5
#: longest pause between two checks whether the model may be called, in seconds
_POLL_S = 0.5
#: temporary errors: the same operation may succeed later
_TEMPORARY = (QueueFull, Unavailable, StreamEnded)


class Engines:
    """All engines of a service: on every queue, one for each of `users`."""

    def __init__(self, queues: Queues, model: Model, *, users: Sequence[str], item_timeout_s: float) -> None:
        """Prepare; `start` begins. `stop` closes the model."""
        self._model = model
        self._engines = [
            Engine(pair, user, self._ask, item_timeout_s) for pair in queues.pairs.values() for user in users
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the engines as tasks of the running event loop."""
        self._tasks = [asyncio.create_task(engine.run()) for engine in self._engines]
        self._tasks.append(asyncio.create_task(self._send_heartbeats()))

    async def stop(self) -> None:
        """Stop the engines and close the model. Items unfinished after the grace period are returned to the queue."""
        items = [item for engine in self._engines for item in engine.stop()]
        if items:
            _, late = await asyncio.wait(items, timeout=_GRACE_S)
            if late:
                for engine in self._engines:
                    engine.give_up()
                self._model.cancel()
                await asyncio.wait(late, timeout=_CANCEL_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._model.close()

    async def _ask(self, frame: Frame, timeout_s: float) -> Answer:
        return await self._model.answer(call_of(frame), timeout_s=timeout_s)

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            for engine in self._engines:
                await engine.heartbeat()


@dataclass(slots=True, eq=False)
class _InFlight:
    """One item that is processed, and the connection that delivered it last."""

    subscriber: Subscriber


class Engine:
    """One consumer of a queue. It puts the answer to each item into the sink. Its group is named after the queue."""

    def __init__(
        self,
        pair: Pair,
        user: str,
        call: Callable[[Frame, float], Awaitable[Answer]],
        item_timeout_s: float,
    ) -> None:
        """Prepare; `run` connects.

        Args:
            call: returns the model's answer to an item; its second argument is the time limit in seconds.
        """
        self._input, self._sink = pair.input, pair.sink
        self._consumer = Consumer(pair.input.name, user)
        self._call = call
        self._item_timeout_s = item_timeout_s
        self._subscriber: Subscriber | None = None
        self._items: dict[int, _InFlight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._breaker = Breaker()
        self._running = 0  # calls of the model
        self._shared = 0  # number of times that waiting items were returned for other workers
        self._is_stopping = False
        self._give_up = asyncio.Event()

    async def run(self) -> None:
        """Process items until cancelled. Items in flight are then returned to the group, and not counted as failed."""
        reported = ""
        while True:
            began = time.monotonic()
            try:
                await self._watch()
            except StreamEnded:
                pass  # the stream may be opened again
            except EasqError as error:
                if error.message != reported or time.monotonic() - began > _RECONNECT_S:
                    reported = error.message
                    log.warning(
                        "engine %s of %s stopped, and connects again: %s",
                        self._consumer.user, self._input.name, reported,
                    )  # fmt: skip
            await asyncio.sleep(_RECONNECT_S)

    def stop(self) -> set[asyncio.Task[None]]:
        """Accept no more items, and return the tasks of the items in flight."""
        self._is_stopping = True
        return set(self._tasks)

    def give_up(self) -> None:
        """Stop waiting for the model and the storage: items in flight are returned."""
        self._give_up.set()

    async def heartbeat(self) -> None:
        """Send a heartbeat, so that no other consumer can take over the name."""
        if self._subscriber is not None:
            with contextlib.suppress(EasqError):
                await self._subscriber.heartbeat()

    async def _watch(self) -> None:
        """Begin each item that is delivered, until another connection takes over the name.

        Raises StreamEnded when the stream ends.
        """
        self._subscriber = await Subscriber.open(self._input, self._consumer, op.Watch(window=WINDOW))
        try:
            while frames := await self._subscriber.next():
                for frame in frames:
                    self._take(frame, self._subscriber)
        finally:
            subscriber, self._subscriber = self._subscriber, None
            await asyncio.shield(subscriber.close(lost=False))

    def _take(self, frame: Frame, subscriber: Subscriber) -> None:
        """Begin to process a delivered item, unless it is in flight already."""
        if (item := self._items.get(frame.index)) is not None:
            item.subscriber = subscriber
        elif not self._is_stopping:
            item = self._items[frame.index] = _InFlight(subscriber)
            task = asyncio.create_task(self._work_on(frame, item))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work_on(self, frame: Frame, item: _InFlight) -> None:
        """Process one item: commit it once its answer is stored, or return it with the reason of its failure.

        When the service stops, the item stays pending until its connection ends. Never raises.
        """
        index = frame.index
        try:
            negative = await self._outcome(frame)
            if negative is None:
                await self._persist(
                    lambda: self._input.commit(self._consumer, [index]), "done and not committed"
                )
            elif self._subscriber is item.subscriber:  # else another consumer may have the item
                # before the negative: the item may be delivered here again at once
                del self._items[index]
                await self._persist(
                    lambda: self._input.negative(self._consumer, negative), "a failure cannot be reported"
                )
                if self._breaker.is_open:
                    group = self._consumer.group
                    if consumers_of(await self._input.attributes(), group) > 1:
                        self._shared += 1  # the items that wait for the model go to the other consumers
        except (_EngineStopped, StorageError):  # the service stops
            pass
        except EasqError as error:
            log.debug("item %d of %s: %s", index, self._input.name, error.message)
        finally:
            if self._items.get(index) is item:
                del self._items[index]

    async def _outcome(self, frame: Frame) -> op.Negative | None:
        """Return the negative for an item that failed; None once its answer is stored. Raises _EngineStopped."""
        try:
            await self._store_answer(frame, await self._ask_model(frame))
        except ModelFailed as error:
            if error.code == SHUTDOWN:
                raise _EngineStopped from error
            return negative_of(frame, error)
        except (Refused, UsageError) as error:  # the sink refuses this answer, not all answers
            return negative_of(frame, error)
        except (StorageError, _EngineStopped):
            raise
        except Exception:
            log.exception("item %d of %s failed", frame.index, self._input.name)
            return op.Negative((frame.index,), ENGINE_ERROR, "internal error")
        return None

    async def _ask_model(self, frame: Frame) -> Answer | ModelAnswerTooLarge:
        """Return the model's answer, or that it is too large.

        While the model is busy or fails, it is called for one item at a time.

        Raises ModelFailed; busy when the item is returned for another worker of the group.
        """
        shared = self._shared
        while (wait_s := self._breaker.wait_s(time.monotonic(), running=self._running)) > 0:
            await self._pause(min(wait_s, _POLL_S))
            if self._shared != shared:
                raise ModelFailed("another worker may have it", status=503, busy=True, retry_after_s=0.0)
        self._running += 1
        answer: Answer | ModelAnswerTooLarge
        try:
            answer = await self._call(frame, self._item_timeout_s)
        except ChildFailed as error:  # the command cannot be started: not the item's fault
            busy = ModelFailed(error.message, status=503, busy=True)
            self._note_failure(busy)
            raise busy from error
        except ModelAnswerTooLarge as error:  # as when the sink refuses it: another call would not help
            answer = error
        except ModelFailed as error:
            self._note_failure(error)
            raise
        finally:
            self._running -= 1
        if self._breaker.is_open:
            log.info("the model of %s answers again", self._input.name)
        self._breaker.succeeded()
        return answer

    def _note_failure(self, error: ModelFailed) -> None:
        was_open = self._breaker.is_open
        if error.busy:
            self._breaker.busy(time.monotonic(), error.retry_after_s)
        elif is_model_failing(error):
            self._breaker.failed(time.monotonic())
        if self._breaker.is_open and not was_open:
            log.warning(
                "the model of %s is called for one item at a time: %s", self._input.name, error.message
            )

    async def _store_answer(self, frame: Frame, answer: Answer | ModelAnswerTooLarge) -> None:
        key_of = (self._input.name, self._consumer.group, frame)
        if isinstance(answer, Answer) and not answer.data:
            return
        try:
            if isinstance(answer, ModelAnswerTooLarge):
                raise answer
            await self._put(result_put(*key_of, answer))
        except (PayloadTooLarge, ModelAnswerTooLarge) as error:
            await self._put(too_large_put(*key_of, error))

    async def _put(self, put: op.Put) -> None:
        """Put the result into the sink, but only once if the item is delivered again."""
        # KeyReused: an earlier delivery stored another answer, and was not committed
        with contextlib.suppress(KeyReused):
            await self._persist(lambda: self._sink.put(put), "the result cannot be put into the sink")

    async def _persist(self, action: Callable[[], Awaitable[object]], what: str) -> None:
        """Call `action` until it succeeds. Raises every error that is not temporary, and _EngineStopped."""
        failures = 0
        while True:
            try:
                await action()
                return
            except _TEMPORARY as error:
                if not failures:
                    log.info("%s yet: %s", what, error.message)
                failures += 1
                await self._pause(short_pause_after(error, failures))

    async def _pause(self, seconds: float) -> None:
        """Wait for `seconds`. Raises _EngineStopped after `give_up`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._give_up.wait(), seconds)
            raise _EngineStopped


class _EngineStopped(Exception):
    """The engine stops: the item is returned."""
