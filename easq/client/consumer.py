"""The items of one consumer, from their delivery to the answer of their commit. No I/O, threads or clocks.

    push ──▶ waiting ──begin──▶ begun ──done──▶ done ──committed──▶ remembered
                ▲                │ │
                ├── put_off ─────┤ └──leave──▶ left    pending until the watch ends
                └── again        └──release──▶ gone    a negative follows; the service may push the item again

An item belongs to the connection that delivered it last. The number of the connection is the epoch of the item. The
service returns the items of a lost connection to the group, and may push them to this consumer again:

    waiting, left      are forgotten when the connection is lost; a new delivery begins as usual
    begun, done        continue; a new delivery does not begin a second time, but moves the item to the new connection
    committed          a new delivery means that the commit was lost: it is sent again, and the item reported once
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import inf
from typing import Generic, TypeVar

from easq.model import Frame
from easq.net.breaker import Breaker

#: maximum number of indexes in one commit; the service accepts more, but they make the URL longer
MAX_BATCH = 256
#: committed indexes that are remembered, to recognize an item whose commit was lost
_MAX_REMEMBERED = 100_000

Note = TypeVar("Note")


class Deliveries(Generic[Note]):
    """The items of one consumer. `now` is the time in seconds on any monotonic clock.

    The caller gives a note for each item to `done`, and gets it back from `committed`.
    """

    def __init__(self, *, window: int, jobs: int | None = None) -> None:
        """Begin without items.

        Args:
            window: maximum number of uncommitted items that the service pushes.
            jobs: maximum number of concurrent model calls; by default `window`.
        """
        self._window = window
        self._jobs = window if jobs is None else jobs
        self._epoch = 0
        self._epochs: dict[int, int] = {}  # of every item that is not remembered or gone
        self._waiting: dict[int, Frame] = {}
        self._begun: dict[int, Frame] = {}
        self._left: dict[int, None] = {}
        self._done: dict[int, Note | None] = {}
        self._remembered: dict[int, None] = {}
        self._busy_since: dict[int, float] = {}
        self._calls = 0
        self._holds = 0
        self._breaker = Breaker()
        self._deadline = inf

    @property
    def in_flight(self) -> int:
        """Number of items that are begun or done, but not committed."""
        return len(self._begun) + len(self._done)

    @property
    def is_held(self) -> bool:
        """Whether no item begins now, or only one at a time."""
        return self._holds > 0 or self._breaker.is_open

    @property
    def is_one_at_a_time(self) -> bool:
        """Whether items begin one at a time, because the model is busy or fails."""
        return self._breaker.is_open

    @property
    def is_stopping(self) -> bool:
        """Whether no further item begins."""
        return self._deadline < inf

    @property
    def left(self) -> int:
        """Number of items that were left pending. If it reaches the window, the service pushes nothing more."""
        return len(self._left)

    @property
    def waiting(self) -> list[Frame]:
        """The items that have not begun."""
        return list(self._waiting.values())

    # delivery

    def connected(self, epoch: int) -> None:
        """Note a new connection: forget the waiting and the left items of the lost connection."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        for index in (*self._waiting, *self._left):
            del self._epochs[index]
            self._busy_since.pop(index, None)
        self._waiting.clear()
        self._left.clear()

    def push(self, frame: Frame, epoch: int) -> bool:
        """Note a delivered item. Return whether it is new; a new item waits until it begins."""
        self.connected(epoch)
        index = frame.index
        if index in self._left:  # another client of the group sent a negative for it
            del self._left[index], self._epochs[index]
        is_new = index not in self._epochs
        self._epochs[index] = epoch
        if not is_new:
            return False
        if index in self._remembered:
            self._done[index] = None
            return False
        self._waiting[index] = frame
        return True

    # the call of the model

    def begin(self, now: float) -> Frame | None:
        """Begin the next waiting item, and return it; None if no item may begin now.

        The caller has to call `call_ended` when the model call ends.
        """
        if not self._waiting or self.wait_s(now) > 0:
            return None
        self._calls += 1
        index = next(iter(self._waiting))
        frame = self._begun[index] = self._waiting.pop(index)
        return frame

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next waiting item may begin; inf if that does not depend on time."""
        if not self._waiting or self._holds or self.is_stopping or self._calls >= self._jobs:
            return inf
        return self._breaker.wait_s(now, running=self._calls)

    def call_ended(self) -> None:
        """Note that one model call ended, with or without success."""
        self._calls -= 1

    def succeeded(self) -> bool:
        """Note that the model answered. Return whether items began only one at a time before."""
        was_open = self._breaker.is_open
        self._breaker.succeeded()
        return was_open

    def failed(self, now: float) -> bool:
        """Note that the model failed. Return whether items begin only one at a time from now on."""
        was_open = self._breaker.is_open
        self._breaker.failed(now)
        return self._breaker.is_open and not was_open

    def busy(self, now: float, asked_s: float | None) -> bool:
        """Note that the model is busy, for `asked_s` seconds if it said so. Return as `failed` does."""
        was_open = self._breaker.is_open
        self._breaker.busy(now, asked_s)
        return not was_open

    def put_off(self, index: int, now: float) -> None:
        """Move a begun item back to the end of the waiting items, because the model is busy."""
        frame = self._begun.pop(index)
        if self._epochs[index] != self._epoch:
            del self._epochs[index]  # of a lost connection: another consumer may have it
            self._busy_since.pop(index, None)
            return
        self._busy_since.setdefault(index, now)
        self._waiting[index] = frame

    def busy_for_s(self, index: int, now: float) -> float:
        """Return for how many seconds the item has waited for a busy model."""
        return now - self._busy_since.get(index, now)

    def hold(self) -> None:
        """Begin no item until `resume` was called. Calls are counted: each `hold` needs its own `resume`."""
        self._holds += 1

    def resume(self) -> None:
        """End one `hold`."""
        self._holds -= 1

    # the end of an item

    def leave(self, index: int) -> None:
        """Leave a begun item pending until the watch ends: it is neither committed nor released."""
        del self._begun[index]
        if self._epochs[index] == self._epoch:
            self._left[index] = None
        else:
            del self._epochs[index]

    def is_pending(self, index: int) -> bool:
        """Return whether the item was delivered on the current connection."""
        return self._epochs.get(index, 0) == self._epoch

    def release(self, index: int) -> bool:
        """Forget an item that is not done. Return whether it needs a negative: it is pending on this connection.

        Call this before sending the negative: the service may push the item again before it answers.
        """
        for items in (self._waiting, self._begun, self._left):
            items.pop(index, None)
        self._busy_since.pop(index, None)
        return self._epochs.pop(index, 0) == self._epoch

    def release_all(self) -> list[int]:
        """Forget every item that is not done. Return the indexes of the items that need a negative."""
        return [index for index in list(self._epochs) if index not in self._done and self.release(index)]

    def done(self, index: int, note: Note) -> None:
        """Note that a begun item may be committed."""
        del self._begun[index]
        self._done[index] = note

    @property
    def uncommitted(self) -> int:
        """Number of items that are done and not committed."""
        return len(self._done)

    @property
    def is_batch_full(self) -> bool:
        """Whether to commit at once: the batch is full, or the service pushes nothing more without a commit."""
        return len(self._done) >= min(self._window, MAX_BATCH)

    def batch(self) -> list[int]:
        """Return the indexes of the next commit, in the order in which they were done; empty if there is none."""
        return list(islice(self._done, MAX_BATCH))

    def committed(self, indexes: Sequence[int]) -> list[Note]:
        """Note that the service has committed a batch. Return the notes of its items."""
        notes = []
        for index in indexes:
            note = self._done.pop(index)
            del self._epochs[index]
            self._busy_since.pop(index, None)
            self._remembered[index] = None
            if note is not None:
                notes.append(note)
        while len(self._remembered) > _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return notes

    # the end of the watch

    def stop(self, deadline: float) -> None:
        """Begin no further item. Running calls have until `deadline`; an earlier deadline set before stays."""
        self._deadline = min(self._deadline, deadline)

    def left_s(self, now: float) -> float:
        """Return the seconds until the deadline of `stop`, at least 0; inf before `stop`."""
        return max(self._deadline - now, 0.0)
