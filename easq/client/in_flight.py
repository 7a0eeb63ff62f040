"""What a consumer with many threads has in hand: waiting, begun, done and not committed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from easq.model import Frame
from easq.net.breaker import Breaker

#: indexes in one commit
_MAX_BATCH = 256
#: committed indexes that are remembered, to know one whose commit was lost
_MAX_REMEMBERED = 100_000

Note = TypeVar("Note")


class Hands(Generic[Note]):
    """Shared by the threads of one consumer. An item carries a note from `done` to `committed`.

    Whose an item is depends on the connection it came on, its epoch: one that comes again while it is in hand was
    given back by a lost connection and pushed to us once more. It is ours as before, and not done twice.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._begun = 0
        self._to_commit: dict[int, Note | None] = {}
        self._epochs: dict[int, int] = {}  # of all in hand
        self._committed: dict[int, None] = {}
        self._held = 0
        self._breaker = Breaker()
        self._deadline = float("inf")
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Items begun and not committed or released."""
        with self._changed:
            return len(self._epochs) - len(self._waiting)

    @property
    def begun(self) -> int:
        """Takes that have not ended."""
        return self._begun

    @property
    def is_held(self) -> bool:
        """Whether items are not begun now, or only one at a time."""
        return self._held > 0 or self._breaker.is_open

    @property
    def is_one_at_a_time(self) -> bool:
        """Whether items are begun one at a time."""
        return self._breaker.is_open

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is begun."""
        return self._deadline != float("inf")

    # what comes

    def accepts(self, frame: Frame, epoch: int) -> bool:
        """Whether the frame is new, and in hand from now on. One that was committed is to be committed again."""
        with self._changed:
            known = frame.index in self._epochs
            self._epochs[frame.index] = epoch
            if not known and frame.index in self._committed:
                self._to_commit[frame.index] = None
                self._changed.notify_all()
                return False
            return not known

    def add(self, frame: Frame, epoch: int) -> bool:
        """Queue the frame for `take` if it is new. Return whether it was new."""
        if not self.accepts(frame, epoch):
            return False
        with self._changed:
            self._waiting.append(frame)
            self._changed.notify_all()
        return True

    def take(self, epoch: Callable[[], int]) -> Frame | None:
        """The next frame to be begun, waited for; None once there is to be an end. `end_take` has to follow.

        One that came on a connection that was lost since is left out: it may be in other hands.
        """
        with self._changed:
            while not self.is_stopping:
                wait_s = self._breaker.wait_s(time.monotonic(), running=self._begun)
                if not self._waiting or self._held or wait_s > 0:
                    self._changed.wait(wait_s if 0 < wait_s < float("inf") else None)
                    continue
                frame = self._waiting.popleft()
                if self._epochs[frame.index] == epoch():
                    self._begun += 1
                    return frame
                del self._epochs[frame.index]
            return None

    def end_take(self) -> None:
        """What was taken is done or released, and all was said about it."""
        with self._changed:
            self._begun -= 1
            self._changed.notify_all()

    def release(self, index: int) -> int:
        """The item is in hand no longer; the epoch that it came in last, 0 when it was not.

        This comes before the service is told: it may push the item again before its answer is here.
        """
        with self._changed:
            return self._epochs.pop(index, 0)

    def drop_waiting(self) -> list[Frame]:
        """What is not begun, and will not be."""
        with self._changed:
            frames = list(self._waiting)
            self._waiting.clear()
            return frames

    # what is held up

    def succeeded(self) -> bool:
        """Note that the model answered. Return whether items were begun one at a time until now."""
        with self._changed:
            was_open = self._breaker.is_open
            self._breaker.succeeded()
            self._changed.notify_all()
            return was_open

    def failed(self) -> bool:
        """Note that the model failed. Return whether items begin one at a time because of it."""
        with self._changed:
            was_open = self._breaker.is_open
            self._breaker.failed(time.monotonic())
            self._changed.notify_all()
            return self._breaker.is_open and not was_open

    def busy(self, asked_s: float | None) -> bool:
        """Note that the model is busy. Return whether items begin one at a time because of it."""
        with self._changed:
            was_open = self._breaker.is_open
            self._breaker.busy(time.monotonic(), asked_s)
            self._changed.notify_all()
            return not was_open

    def put_off(self, frame: Frame) -> None:
        """Queue the frame again, after all others."""
        with self._changed:
            self._waiting.append(frame)
            self._changed.notify_all()

    def hold(self, by: int) -> None:
        """So many more, or fewer, hold all up."""
        with self._changed:
            self._held += by
            self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Nothing holds all up; False once there is to be an end."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopping or not self._held)
            return not self.is_stopping

    # what is done

    def done(self, index: int, note: Note) -> None:
        """The item may be committed."""
        with self._changed:
            self._to_commit[index] = note
            self._changed.notify_all()

    def next_batch(self) -> list[int]:
        """Items to commit, waited for; empty once there are none and will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._to_commit or self._closed)
            return list(islice(self._to_commit, _MAX_BATCH))

    def committed(self, indexes: Sequence[int]) -> list[Note]:
        """The items are in hand no longer, and remembered; their notes."""
        notes = []
        with self._changed:
            for index in indexes:
                note = self._to_commit.pop(index)
                self._epochs.pop(index, None)
                self._committed[index] = None
                if note is not None:
                    notes.append(note)
            while len(self._committed) > _MAX_REMEMBERED:
                del self._committed[next(iter(self._committed))]
            self._changed.notify_all()
        return notes

    # the end

    def stop(self, deadline: float) -> None:
        """Nothing more is begun; what is under way has until `deadline`, on the monotonic clock."""
        with self._changed:
            self._deadline = min(self._deadline, deadline)
            self._changed.notify_all()

    def is_busy_in_time(self) -> bool:
        """Whether something is begun and not committed, and the deadline not over."""
        with self._changed:
            return bool(self._begun or self._to_commit) and time.monotonic() < self._deadline

    def wait_until_idle(self, timeout_s: float) -> None:
        """Nothing is begun and not committed, or `timeout_s` is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self._begun and not self._to_commit, timeout_s)

    def close(self) -> None:
        """What is to be committed is all there will be."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
