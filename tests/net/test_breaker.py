"""When a model is called next, with a clock that only the test moves."""

from __future__ import annotations

from math import inf

from easq.net.breaker import Breaker


def pauses(breaker: Breaker, count: int, *, asked_s: float | None = None) -> list[float]:
    """How long each next call waits, when each one finds the model busy."""
    found, now = [], 0.0
    for _ in range(count):
        breaker.busy(now, asked_s)
        found.append(breaker.wait_s(now, running=0))
        now += found[-1]
    return found


def test_a_closed_breaker_delays_no_call() -> None:
    assert Breaker().wait_s(5.0, running=7) == 0.0


def test_the_pause_before_calls_of_a_busy_model_doubles() -> None:
    assert pauses(Breaker(), 7) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_pause_that_a_model_asks_for_is_limited() -> None:
    assert pauses(Breaker(), 4, asked_s=5.0) == [5.0, 5.0, 5.0, 8.0]
    assert pauses(Breaker(), 1, asked_s=3600.0) == [30.0]


def test_an_open_breaker_lets_one_call_run_at_a_time() -> None:
    breaker = Breaker()
    breaker.busy(0.0, None)
    assert breaker.wait_s(9.0, running=1) == inf
    assert breaker.wait_s(9.0, running=0) == 0.0


def test_calls_that_began_before_it_was_opened_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.busy(0.0, None)
    assert breaker.wait_s(0.0, running=0) == 1.0


def test_three_failures_in_a_row_open_it_and_a_success_closes_it() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
    assert not breaker.is_open
    breaker.failed(0.0)
    assert breaker.wait_s(0.0, running=0) == 1.0
    breaker.failed(1.0)
    assert breaker.wait_s(1.0, running=0) == 2.0
    breaker.succeeded()
    assert (breaker.is_open, breaker.wait_s(1.0, running=3)) == (False, 0.0)
