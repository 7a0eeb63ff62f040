"""A consumer that connects often is answered later; other consumers are not."""

from __future__ import annotations

from easq.model import Consumer
from easq.server.rate_limit import BURST, PER_SECOND, RateLimiter

ONE, OTHER = Consumer("g", "one"), Consumer("g", "other")


def test_a_burst_is_answered_at_once_and_what_follows_later_and_later() -> None:
    limiter = RateLimiter()
    delays = [limiter.delay(ONE, 0.0) for _ in range(int(BURST) + 3)]
    assert delays == [0.0] * int(BURST) + [1 / PER_SECOND, 2 / PER_SECOND, 3 / PER_SECOND]
    assert limiter.delay(OTHER, 0.0) == 0.0


def test_a_pause_is_made_up_for() -> None:
    limiter = RateLimiter()
    for _ in range(int(BURST) + 5):
        limiter.delay(ONE, 0.0)
    assert limiter.delay(ONE, 10.0) == 0.0


def test_a_client_that_waits_for_each_answer_connects_five_times_a_second() -> None:
    limiter, now, connects = RateLimiter(), 0.0, 0
    while now < 10.0:
        now += limiter.delay(ONE, now) + 0.001
        connects += 1
    assert connects <= 10 * PER_SECOND + BURST + 1


def test_consumers_beyond_a_number_are_forgotten() -> None:
    limiter = RateLimiter()
    for n in range(5000):
        limiter.delay(Consumer("g", str(n)), 0.0)
    assert len(limiter._left) == 1000
