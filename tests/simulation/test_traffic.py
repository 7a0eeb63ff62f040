"""Hundreds of busy services in virtual time, around the real engine: what their clients saw keeps every promise.

`EASQ_FIRST_SEED=N` starts at another seed, `EASQ_TRAFFIC=1000` plays so many. A failure names its seed, and
`play(seed)` repeats it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest

from easq.model import REQUEST_ID
from easq.storage.engine import Settle
from easq.storage.rules.changes import Change, Keyed, Removed
from easq.storage.rules.consumers import ConsumerSession
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.groups import Hold
from easq.storage.rules.stream import Stream
from tests.reliability.check import violations
from tests.simulation.engine import OnDisk, StoredStream
from tests.simulation.traffic import Course, play, text_of

SEEDS = int(os.environ.get("EASQ_TRAFFIC", "64"))
FIRST = int(os.environ.get("EASQ_FIRST_SEED", "0"))
#: seeds are spread over so many tests, so that workers share them
_SHARES = 8


def judge(course: Course) -> list[str]:
    """All that is wrong with it: the checker's verdicts for each group, and what only this world knows."""
    found = [*course.complaints, *(f"not drained: {course.left}" for _ in [0] if any(course.left.values()))]
    for (queue, group), history in course.history.items():
        found += [f"{queue} {group}: {text}" for text in violations(history)]
    return [*found, *_dead(course)]


def _dead(course: Course) -> Iterator[str]:
    """A copy in the rear store is what was put; who waits is answered once, for what every group gave up (I9)."""
    copies = Counter(frame.tags[REQUEST_ID] for frame in course.rear)
    groups = Counter(queue for queue, _ in course.history)
    put = {event.payload for history in course.history.values() for event in history if event.f == "put"}
    for frame in course.rear:
        own = {key: value for key, value in frame.tags.items() if not key.startswith(("rear@", "last"))}
        text = text_of(type(frame)(frame.index, own, frame.data))
        if text not in put:
            yield f"the rear store has {text}, which nobody put"
    answers = Counter(frame.tags[REQUEST_ID] for frame in course.answers)
    for request_id, times in answers.items():
        if times > 1 or copies[request_id] != groups[request_id[0]]:
            yield f"{request_id} is answered {times} times, and given up by {copies[request_id]} groups"


@pytest.mark.parametrize("share", range(_SHARES))
def test_what_clients_saw_keeps_every_promise(share: int) -> None:
    for seed in range(FIRST + share, FIRST + SEEDS, _SHARES):
        assert judge(play(seed)) == [], f"seed {seed}"


@pytest.mark.long
def test_a_thousand_services(record_property: Callable[[str, object], None]) -> None:
    """So many seeds more, and how long what was due for redelivery waited."""
    waits_s: list[float] = []
    for seed in range(FIRST + SEEDS, FIRST + SEEDS + 1000):
        course = play(seed)
        assert judge(course) == [], f"seed {seed}"
        waits_s += course.waits_s
    told = f"{len(waits_s)} redeliveries, the slowest {max(waits_s) * 1000:.0f} ms after it was due (virtual time)"
    record_property("a thousand simulated services", told)


def test_a_seed_is_the_same_each_time() -> None:
    assert play(1).history == play(1).history


# -- planted bugs: each shows in one of the first lives, under the name of its promise -------------------------


def told_too_early(patch: pytest.MonkeyPatch) -> None:
    """A put is acknowledged, and shown, before it is written."""
    original = OnDisk.submit

    def submit(self: OnDisk, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        original(self, changes, settle)
        return asyncio.sleep(0)

    patch.setattr(OnDisk, "submit", submit)


def keys_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    """An idempotency key is known until the next start."""
    patch.setattr(StoredStream, "write", _without(Keyed))


def removals_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    """Committed and deleted items are back after the next start."""
    patch.setattr(StoredStream, "write", _without(Removed))


def _without(kind: type[Change]) -> Callable[[StoredStream, Change], None]:
    original = StoredStream.write

    def write(self: StoredStream, change: Change) -> None:
        if not isinstance(change, kind):
            original(self, change)

    return write


def queues_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    """Entries are found by their index alone."""
    original = OnDisk.load
    patch.setattr(
        OnDisk,
        "load",
        lambda self, stream, index: original(self, "q", index) or original(self, stream, index),
    )


def a_goodbye_waits_too(patch: pytest.MonkeyPatch) -> None:
    """The items of every connection that ends are held for its user for half a second."""
    original = Stream._leave

    def leave(self: Stream, session: ConsumerSession, *, lost: bool, now: float, effects: Effects) -> None:
        out, group = set(session.pending) - set(session.unsent), self._groups[session.consumer.group]
        original(self, session, lost=lost, now=now, effects=effects)
        for index in () if lost else out:
            self._hold(group, index, Hold(now + 0.5, session.consumer.user))

    patch.setattr(Stream, "_leave", leave)


def answers_too_much(patch: pytest.MonkeyPatch) -> None:
    """An item that one group gave up is answered, although another group committed it."""
    original = Stream._retire

    def retire(self: Stream, indexes: Sequence[int], effects: Effects) -> None:
        for index in indexes:
            if any(index in group.given_up for group in self._groups.values()):
                effects.unanswered.append((index, DeliveryRecord()))
        original(self, indexes, Effects())
        effects.removed += indexes

    patch.setattr(Stream, "_retire", retire)


@pytest.mark.parametrize(
    ("bug", "complaint"),
    [
        (told_too_early, "lost: "),
        (keys_are_not_kept, "doubled: "),
        (removals_are_not_kept, "back after its "),
        (queues_are_mixed_up, "reused: "),
        (a_goodbye_waits_too, "not redelivered: "),
        (answers_too_much, "is answered 1 times, and given up by 1 groups"),
    ],
)
def test_a_planted_bug_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    assert any(complaint in found for seed in range(100) for found in judge(play(seed)))
