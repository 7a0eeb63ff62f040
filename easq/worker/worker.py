"""The inference engine of a queue: watch the input, run the model, put its answer into the sink, commit.

    pushed ── model answers ── put to the sink ── commit       answered, or its answer was too large
       │            └── without a word ────────── commit       empty: the sink is skipped
       ├── model fails ── negative                             delivered again, until the service gives it up
       ├── model busy ─── negative Busy                        delivered again when it is due, and no failure
       └── we stop ────── negative Shutdown                    another worker's, and no failure

The commit goes out after the sink has acknowledged the answer, never before. A crash between the two has the item
delivered again; the key of the put is made from the item alone, so the answer is in the sink once. While the sink is
full no item is begun, and answers are held until there is room. A model that is busy, or failed three times in a row,
is called for one item at a time, 1 s to 30 s apart, until it answers; items that wait here are returned for other
workers. EAS does not know the code Busy: there, the worker keeps the items and calls the model again later.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from easq.client.in_flight import Hands
from easq.client.queue import check_pair
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
from easq.model import LAST_CODE, LAST_REASON, Consumer, Frame, Tags
from easq.models.base import ABOUT_THE_ITEM, DEFAULT_TIMEOUT_S, Answer, Model, ModelFailed
from easq.models.inference import (
    Fate,
    Outcome,
    answer_tags,
    answer_type,
    attempt_of,
    call_of,
    inherited,
    outcome_of,
    reason_of,
    result_key,
)
from easq.net.retry import pause_after
from easq.protocol.operations import BUSY, SHUTDOWN, Watch
from easq.protocol.replies import BUSY_FEATURE, GroupLine

if TYPE_CHECKING:
    from easq.client.queue import QueueClient
    from easq.client.watch import Watcher

#: items that may be out to one worker, as with EAS's `worker_threads`
DEFAULT_WINDOW = 5
#: what is under way when a worker stops may take so long, in seconds
DEFAULT_GRACE_S = 5.0

#: an item that waits here because the model is busy has failed after so many seconds
DEFAULT_BUSY_LIMIT_S = 600.0
#: time limit of the request that asks whether there are other workers, in seconds
_SHARE_S = 1.0

#: one look for items may take so long, and so the notice that there is to be an end, in seconds
_TICK_S = 0.1
#: what was cut off at the end of the grace has so long to be handed back, in seconds
_LAST_S = 2.0
#: of back-off at most that of so many failures: a full sink has room soon after somebody reads it
_MAX_FAILURES = 4
#: while these last, the same request may succeed later
_PASSING = (QueueFull, Unreachable, ServerError)


def engine_user() -> str:
    """HOST-PID: the name under which a worker watches, other than that of any other."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"
    return f"{host}-{os.getpid()}"


class Worker:
    """Works on a queue between `start` and the end, in threads of its own; `stop` and `abort` may come from any
    thread, and both return at once. `wait` says when all is over; then `failed` is why, None after a stop or the
    end of the stream.

    At most `jobs` calls of the model are under way, and at most `window` items in hand.
    """

    def __init__(
        self,
        input: QueueClient,
        sink: QueueClient,
        model: Model,
        *,
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
    ) -> None:
        """The model stays the caller's to close. Raises ConfigError where input and sink are one stream.

        Args:
            group: the queue's name by default.
            user: HOST-PID by default.
            jobs: as many as the window by default.
            upgrade: watch over WebSocket; False: over the endless HTTP answer.
            grace_s: for what is under way when the worker has to end by itself.
            busy_limit_s: an item that waits here because the model is busy has failed after so many seconds; 0: never.
            on_outcome: called in threads of the worker, for each delivery that is over.
            on_notice: called in threads of the worker, with a line for people.
        """
        check_pair(input, sink)
        self._input, self._sink, self._model = input, sink, model
        self._group, self._user = group, user or engine_user()
        self.window, self.jobs = window, window if jobs is None else min(jobs, window)
        self._item_timeout_s, self._grace_s = item_timeout_s, grace_s
        self._upgrade, self._reconnect_for_s = upgrade, reconnect_for_s
        self._busy_limit_s = busy_limit_s
        #: index -> when the model was first busy for an item that waits here
        self._busy_since: dict[int, float] = {}
        self._features: frozenset[str] = frozenset()
        self._on_outcome = on_outcome or (lambda _: None)
        self._notice = on_notice or (lambda _: None)
        self._queue = ""
        self._watcher: Watcher | None = None
        self._hands = Hands[Outcome]()
        self._give_up = threading.Event()
        self._over = threading.Event()
        self.failed: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Items that the model, the sink or the commit is at."""
        return self._hands.in_flight

    @property
    def is_held(self) -> bool:
        """Whether items wait: the sink accepts no answers, or the model is called for one item at a time."""
        return self._hands.is_held

    def start(self) -> None:
        """The input is watched. Raises why it cannot be."""
        description = self._input.describe()
        self._queue, self._features = description.name, description.features
        self._input = self._input.called_by(Consumer(self._group or self._queue, self._user))
        watcher = self._input.watch(
            Watch(window=self.window, upgrade=self._upgrade),
            on_notice=self._notice,
            reconnect_for_s=self._reconnect_for_s,
        )
        self._watcher = watcher.__enter__()
        jobs = [self._thread(f"easq-job-{number}", self._run_jobs) for number in range(self.jobs)]
        committer = self._thread("easq-commit", self._commit_all)
        lead = self._thread("easq-work", lambda: self._lead(watcher, committer))
        for thread in (*jobs, committer, lead):
            thread.start()

    def stop(self, grace_s: float | None = None) -> None:
        """Nothing more is begun. What is under way has `grace_s` to end, then it is cut off; all that is not done
        is handed back, without counting as a failure.
        """
        self._hands.stop(time.monotonic() + (self._grace_s if grace_s is None else grace_s))

    def abort(self) -> None:
        """All is dropped where it stands, as in a crash."""
        self._hands.stop(0.0)
        self._give_up.set()
        self._model.cancel()
        if self._watcher is not None:
            self._watcher.abort()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all is over, within `timeout_s`."""
        return self._over.wait(timeout_s)

    # threads

    def _thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                body()
            except BaseException as error:  # a bug surfaces to whoever waits
                self._fail(error)

        return threading.Thread(target=run, name=name, daemon=True)

    def _fail(self, error: BaseException) -> None:
        self.failed = self.failed or error
        self.stop()

    def _lead(self, watcher: Watcher, committer: threading.Thread) -> None:
        try:
            self._feed(watcher)
            self._drain(watcher)
            self._hands.close()
            committer.join(_LAST_S)
        except BaseException as error:  # a bug
            self._fail(error)
        finally:
            watcher.close()
            self._over.set()

    def _feed(self, watcher: Watcher) -> None:
        """Hands on what comes, while it is wanted."""
        try:
            while self._hands.wait_for_room():
                frame = watcher.next(_TICK_S)
                if frame is not None and self._hands.add(frame, watcher.epoch):
                    self._busy_since.pop(frame.index, None)  # of an earlier delivery
        except StreamEnded as ended:
            self._notice(ended.message)
            self.stop()
        except EasqError as error:
            self._fail(error)

    def _drain(self, watcher: Watcher) -> None:
        """What is under way has ended, or the grace has; what was not begun is handed back."""
        self._hand_back(self._hands.drop_waiting())
        while self._hands.is_busy_in_time():
            self._refuse_next(watcher)
        end = time.monotonic() + _LAST_S
        self._give_up.set()
        while self._hands.begun and time.monotonic() < end:
            self._model.cancel()  # again: a call may have begun after the one before
            self._refuse_next(watcher)

    def _refuse_next(self, watcher: Watcher) -> None:
        """What still comes goes back at once; after the first of it the service sends no more."""
        try:
            frame = watcher.next(_TICK_S)
        except EasqError:
            self._hands.wait_until_idle(_TICK_S)
            return
        if frame is not None and self._hands.accepts(frame, watcher.epoch):
            self._hand_back([frame])

    def _run_jobs(self) -> None:
        while (frame := self._hands.take(lambda: self._epoch)) is not None:
            try:
                self._work_on(frame)
            finally:
                self._hands.end_take()

    @property
    def _epoch(self) -> int:
        return self._watcher.epoch if self._watcher is not None else 0

    # one item

    def _work_on(self, frame: Frame) -> None:
        began = time.monotonic()
        try:
            answer = self._model.run(call_of(frame), timeout_s=self._item_timeout_s)
            if self._hands.succeeded():
                self._notice("the model answers")
            self._busy_since.pop(frame.index, None)
            outcome = self._store_answer(frame, answer, began)
            self._hands.done(frame.index, outcome)
        except ModelFailed as error:
            if error.code == SHUTDOWN:
                self._hand_back([frame])
            elif error.busy:
                self._put_off(frame, error, began)
            else:
                if error.status not in ABOUT_THE_ITEM and self._hands.failed():
                    self._notice(f"the model fails, calling it for one item at a time: {error.message}")
                self._refuse(frame, error.code, reason_of(error), began)
                self._share_waiting()
        except StreamEnded as ended:
            self._fail(Refused(f"the sink takes no answers: {ended.message}", status=ended.status))
            self._hand_back([frame])
        except (Refused, UsageError) as error:  # this answer cannot be in the sink, others may
            self._refuse(frame, str(error.status), f"the result was refused: {error.message}", began)
        except _Stopped:
            self._hand_back([frame])
        except EasqError as error:  # nothing works: no command, no access
            self._fail(error)
            self._hand_back([frame])

    def _put_off(self, frame: Frame, error: ModelFailed, began: float) -> None:
        """Put off an item because the model is busy: return it to a service that knows the code Busy, else keep it."""
        if self._hands.busy(error.retry_after_s):
            self._notice(f"waiting for the model: {error.message}")
        if BUSY_FEATURE in self._features:
            outcome = outcome_of(frame, Fate.BUSY, began, code=error.code, reason=reason_of(error))
            self._give_back(frame, outcome, BUSY, delay_s=error.retry_after_s)
            self._share_waiting()
            return
        now = time.monotonic()
        since = self._busy_since.setdefault(frame.index, now)
        if self._busy_limit_s and now - since > self._busy_limit_s:
            self._refuse(frame, error.code, reason_of(error), began)
        else:
            self._hands.put_off(frame)

    def _share_waiting(self) -> None:
        """Return the items that wait here for the model to other workers of the group, if there are any."""
        if BUSY_FEATURE not in self._features or not self._hands.is_one_at_a_time:
            return
        try:
            attributes = self._input.attributes(deadline_s=_SHARE_S)
        except EasqError:
            return
        group = self._input.caller.consumer.group
        try:
            lines = [
                GroupLine.parse(text) for key, text in attributes.items() if key.startswith("groups.list.")
            ]
        except ValueError:  # this service describes its groups otherwise
            return
        if any(line.id == group and line.consumers > 1 for line in lines):
            self._tell_back(self._hands.drop_waiting(), BUSY, "another worker may have it", delay_s=0.0)

    def _store_answer(self, frame: Frame, answer: Answer, began: float) -> Outcome:
        """What became of the item once its answer is in the sink."""
        fate, code, reason = Fate.ANSWERED, "", ""
        if not answer.data:
            fate = Fate.EMPTY
        else:
            try:
                self._put(frame, answer.data, answer_tags(frame, answer), answer_type(answer))
            except PayloadTooLarge as error:
                fate, code, reason = (
                    Fate.TOO_LARGE,
                    str(error.status),
                    f"the result is too large: {error.message}",
                )
                tags = {**inherited(frame.tags), LAST_CODE: code, LAST_REASON: reason}
                self._put(frame, reason.encode(), tags, "text/plain; charset=utf-8")
        return outcome_of(frame, fate, began, code=code, reason=reason, size=len(answer.data))

    def _put(self, frame: Frame, data: bytes, tags: Tags, content_type: str) -> None:
        """The result is in the sink, once. Held until there is room; raises _Stopped when we stop before."""
        key = result_key(self._queue, self._input.caller.consumer.group, frame)

        def put() -> None:
            try:
                self._sink.put(data, tags=tags, content_type=content_type, key=key)
            except KeyReused:
                pass  # answered before, in other words: by a worker that came no further than that

        self._persist(put, "the result cannot be put into the sink", holds=True)

    def _refuse(self, frame: Frame, code: str, reason: str, began: float) -> None:
        """Report a failure of the item to the service."""
        self._give_back(frame, outcome_of(frame, Fate.FAILED, began, code=code, reason=reason), code)

    def _give_back(self, frame: Frame, outcome: Outcome, code: str, *, delay_s: float | None = None) -> None:
        """Send a negative and report the outcome. Nothing is sent after a new connection: the item is not ours then."""
        epoch = self._hands.release(frame.index)
        self._busy_since.pop(frame.index, None)

        def negative() -> None:
            if epoch == self._epoch:
                self._input.negative([frame.index], code=code, reason=outcome.reason, delay_s=delay_s)

        try:
            self._persist(negative, "a failure cannot be told", holds=False)
        except _Stopped:
            pass  # the connection that ends gives it back
        self._on_outcome(outcome)

    def _hand_back(self, frames: Sequence[Frame]) -> None:
        """The items are the group's again, as far as the service can be told; else the lost connection says so."""
        self._tell_back(frames, SHUTDOWN, "the worker stops")
        for frame in frames:
            self._on_outcome(Outcome(frame.index, frame.request_id, attempt_of(frame), Fate.RETURNED))

    def _tell_back(
        self, frames: Sequence[Frame], code: str, reason: str, *, delay_s: float | None = None
    ) -> None:
        ours = [frame.index for frame in frames if self._hands.release(frame.index) == self._epoch]
        if ours:
            try:
                self._input.negative(ours, code=code, reason=reason, delay_s=delay_s)
            except EasqError as error:
                self._notice(f"not handed back: {error.message}")

    def _persist(self, action: Callable[[], object], what: str, *, holds: bool) -> None:
        """`action` has succeeded, however often it had to be tried; with `holds` nothing is taken meanwhile.

        Raises _Stopped when the time of the worker is over, and what will not pass.
        """
        failures = 0
        try:
            while True:
                try:
                    action()
                    return
                except _PASSING as error:
                    if not failures:
                        self._notice(f"{what} yet: {error.message}")
                        self._hands.hold(by=int(holds))
                    failures += 1
                    if self._give_up.wait(pause_after(error, min(failures, _MAX_FAILURES))):
                        raise _Stopped from error
        finally:
            if failures:
                self._hands.hold(by=-int(holds))

    # commits

    def _commit_all(self) -> None:
        """Commits what is done, all that is there at once: the commit under way is what the next ones wait for."""
        while batch := self._hands.next_batch():
            try:
                self._persist(partial(self._input.commit, batch), "done and not committed", holds=False)
            except _Stopped:
                return  # it is delivered again, and its result is known by its key
            for outcome in self._hands.committed(batch):
                self._on_outcome(outcome)


class _Stopped(Exception):
    """The worker's time is over."""
