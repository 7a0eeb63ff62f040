"""The rules of an exchange, step by step: no server, no clock but the real one, and no time that passes."""

from __future__ import annotations

import pytest

from easq import errors
from easq.net.failures import Unanswered, Unconnected, unconnected
from easq.net.retry import CAP_S, Attempt, Retry, Steps, Times, exchange, full_jitter, pause_after
from easq.net.settings import NetworkSettings
from easq.protocol.operations import Caller, Request
from easq.protocol.replies import STORED_HEADER, Reply

PUT = Request("POST", body=b"x")
SETTINGS = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=30.0, environ={})
GOOD, BUSY = Reply(200, {}, b"7"), Reply(502, {}, b"busy")
FULL = Reply(429, {}, b"full")
NOT_STORED = Reply(503, {STORED_HEADER: "no"}, b"ending")
LOST = Unanswered("no answer")
REFUSED = Unconnected("refused")
TIMED_OUT = unconnected(TimeoutError(), "http://h/q")


def begin(retry: Retry, times: Times, **limits: float) -> Steps[Reply]:
    return exchange("http://h/q", PUT, Caller(), SETTINGS, retry=retry, times=times, **limits)


def play(steps: Steps[Reply], *answers: Reply | errors.EasqError) -> Reply:
    """What the exchange ends in when its attempts are answered so; pauses take no time."""
    step = next(steps)
    try:
        for answer in answers:
            while isinstance(step, float):
                step = next(steps)
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as end:
        found: Reply = end.value
        return found
    raise AssertionError(f"it goes on with {step}")


def test_an_attempt_says_where_what_and_until_when() -> None:
    steps = begin(Retry.READ, Times(), deadline_s=9.0)
    step = next(steps)
    assert isinstance(step, Attempt)
    assert (step.url, step.request, step.caller) == ("http://h/q", PUT, Caller())
    again = steps.throw(LOST)
    assert isinstance(again, float)
    assert 0.0 <= again <= 0.1
    second = next(steps)
    assert isinstance(second, Attempt)
    assert step.until == second.until


@pytest.mark.parametrize(
    ("retry", "first", "doubt"),
    [
        (Retry.READ, LOST, True),
        (Retry.READ, BUSY, True),
        (Retry.READ, NOT_STORED, False),
        (Retry.READ, REFUSED, False),
        (Retry.WRITE, REFUSED, False),
        (Retry.WRITE, FULL, False),
        (Retry.WRITE, Reply(450, {}, b"full"), False),
        (Retry.WRITE, NOT_STORED, False),
        (Retry.PREDICT, LOST, True),
        (Retry.PREDICT, BUSY, True),
    ],
)
def test_a_repeated_request_is_in_doubt_if_it_may_have_had_an_effect(
    retry: Retry, first: Reply | errors.EasqError, doubt: bool
) -> None:
    times = Times()
    assert play(begin(retry, times), first, GOOD) is GOOD
    assert (times.attempts, times.doubt) == (2, doubt)


@pytest.mark.parametrize(
    ("retry", "first", "kind"),
    [
        (Retry.WRITE, LOST, Unanswered),
        (Retry.WRITE, BUSY, errors.ServerError),
        (Retry.PREDICT, FULL, errors.QueueFull),
        (Retry.NEVER, REFUSED, Unconnected),
        (Retry.NEVER, NOT_STORED, errors.Unavailable),
        (Retry.READ, Reply(404, {}, b"gone"), errors.NotFound),
        (Retry.READ, errors.UsageError("no header"), errors.UsageError),
    ],
)
def test_the_error_of_a_request_that_is_not_repeated_is_raised(
    retry: Retry, first: Reply | errors.EasqError, kind: type[errors.EasqError]
) -> None:
    times = Times()
    with pytest.raises(kind):
        play(begin(retry, times), first)
    assert times.attempts == 1


def test_a_put_into_a_full_queue_is_tried_three_times() -> None:
    times = Times()
    with pytest.raises(errors.QueueFull):
        play(begin(Retry.WRITE, times), FULL, FULL, FULL)
    assert times.attempts == 3


@pytest.mark.parametrize("status", [429, 450])
def test_a_full_queue_that_says_when_to_try_again_is_asked_then(status: int) -> None:
    """As often as the time for the exchange lets it."""
    full = Reply(status, {"Retry-After": "3"}, b"full")
    for retry in (Retry.READ, Retry.WRITE, Retry.PREDICT):
        steps = begin(retry, Times())
        step = next(steps)
        for _ in range(5):
            assert isinstance(step, Attempt)
            pause_s = steps.send(full)
            assert isinstance(pause_s, float)
            assert 3.0 <= pause_s <= 3.1
            step = next(steps)
        with pytest.raises(StopIteration) as end:
            steps.send(GOOD)
        assert end.value.value is GOOD


def test_a_pause_beyond_the_time_for_the_exchange_is_not_begun() -> None:
    times = Times()
    with pytest.raises(errors.QueueFull) as caught:
        play(begin(Retry.WRITE, times), Reply(429, {"Retry-After": "31"}, b"full"))
    assert (times.attempts, caught.value.retry_after_s) == (1, 31.0)


@pytest.mark.parametrize(("retry", "kind"), [(Retry.READ, Unconnected), (Retry.WRITE, Unanswered)])
def test_the_error_of_an_attempt_that_was_cut_short_is_raised_only_if_it_is_in_doubt(
    retry: Retry, kind: type[errors.EasqError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put without a key must not be called certainly not stored because it was refused before it was lost."""
    now = [100.0]
    monkeypatch.setattr("easq.net.retry.time.monotonic", lambda: now[0])
    times = Times()
    steps = begin(retry, times, deadline_s=10.0)
    next(steps)
    assert isinstance(steps.throw(REFUSED), float)
    next(steps)
    now[0] = 110.0
    with pytest.raises(kind):
        steps.throw(LOST)
    assert times.doubt


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        (REFUSED, TIMED_OUT, "refused"),
        (TIMED_OUT, REFUSED, "refused"),
        (NOT_STORED, TIMED_OUT, "no answer in time"),
        (NOT_STORED, REFUSED, "refused"),
    ],
)
@pytest.mark.parametrize("retry", [Retry.READ, Retry.WRITE])
def test_a_refused_connection_is_told_though_the_last_attempt_ran_out_of_time(
    first: Reply | errors.EasqError,
    last: errors.EasqError,
    told: str,
    retry: Retry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time for connecting ends 5 s after the first attempt; an attempt on a busy machine is still under way."""
    now = [100.0]
    monkeypatch.setattr("easq.net.retry.time.monotonic", lambda: now[0])
    steps = begin(retry, Times())
    next(steps)
    assert isinstance(steps.throw(first) if isinstance(first, Exception) else steps.send(first), float)
    next(steps)
    now[0] = 105.2
    with pytest.raises(Unconnected, match=f"{told}$"):
        steps.throw(last)


def test_pauses_lie_below_a_bound_that_doubles_up_to_the_cap() -> None:
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, CAP_S), (10_000, CAP_S)):
        pauses = [full_jitter(failures) for _ in range(200)]
        assert all(0 <= pause <= bound for pause in pauses)
        assert max(pauses) > bound / 2


def test_a_server_that_asks_for_a_pause_gets_it_and_a_little_more() -> None:
    error = errors.QueueFull("full")
    assert 0.0 <= pause_after(error, 3) <= 0.4
    error.retry_after_s = 7.0
    assert {7.0 <= pause_after(error, failures) <= 7.1 for failures in range(1, 20)} == {True}
