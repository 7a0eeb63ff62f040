"""Comparisons, and how the wait for a condition ends."""

from __future__ import annotations

import pytest

from easq.client.queue import QueueClient
from easq.client.wait import (
    Comparison,
    consumers_condition,
    length_condition,
    read_comparison,
    ready_condition,
    wait_for,
)
from easq.errors import DeadlineExceeded, NotAQueueService, Unreachable
from tests.client.servers import answering, free_port, reply


def silent(_text: str) -> None:
    """Nothing is told."""


@pytest.mark.parametrize(
    ("text", "found"),
    [(" >= 10 ", Comparison(">=", 10)), ("=0", Comparison("=", 0)), ("!=5", Comparison("!=", 5))],
)
def test_a_comparison_is_read(text: str, found: Comparison) -> None:
    assert read_comparison(text) == found


@pytest.mark.parametrize("text", ["", "10", "=>1", "< -1", "< 1 2", "> ١"])
def test_any_other_text_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no comparison such as '>= 10'"):
        read_comparison(text)


def test_the_wait_ends_once_the_condition_holds() -> None:
    lengths = [reply(200, b'{"stream.length":"%d"}' % length) for length in (2, 1, 0)]
    with answering(*lengths) as server, QueueClient(f"http://127.0.0.1:{server.port}/q") as client:
        found = wait_for(client, length_condition(Comparison("=", 0)), 60.0, notice=silent)
    assert (found.holds, found.value, len(server.requests)) == (True, 0, 3)


def test_without_time_it_looks_once_and_tells_what_it_saw() -> None:
    with (
        answering(reply(200, b'{"stream.length":"7"}')) as server,
        QueueClient(f"http://127.0.0.1:{server.port}/q") as client,
        pytest.raises(DeadlineExceeded, match="length < 3: the length is 7"),
    ):
        wait_for(client, length_condition(Comparison("<", 3)), 0.0, notice=silent)
    assert len(server.requests) == 1


def test_connected_consumers_are_counted_alone() -> None:
    lines = b'{"consumers.list.0":"Id: g.a, Status: Running","stream.length":"0"}'
    with (
        answering(reply(200, lines)) as server,
        QueueClient(f"http://127.0.0.1:{server.port}/q") as client,
        pytest.raises(NotAQueueService, match="the list of consumers cannot be read"),
    ):
        wait_for(client, consumers_condition(Comparison(">", 0)), 0.0, notice=silent)


def test_a_service_that_never_answered_is_unreachable() -> None:
    with (
        QueueClient(f"http://127.0.0.1:{free_port()}/q") as client,
        pytest.raises(Unreachable, match="in vain for ready"),
    ):
        wait_for(client, ready_condition(), 0.0, notice=silent)
