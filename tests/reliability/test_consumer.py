"""A consumer dies or is stopped with a full window: the same user gets the items at once, another user after the grace
period.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from tests.conftest import Serve
from tests.support.http import Stream
from tests.support.process import PYTHON, ROOT, Service
from tests.support.websocket import watch

WINDOW = 5
Consume: TypeAlias = Callable[..., "Consumer"]


class Consumer:
    """A process that watches as `user`."""

    def __init__(self, service: Service, user: str) -> None:
        command = [*PYTHON, "tests.reliability.consumer", str(service.port), user, str(WINDOW)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, cwd=ROOT, env=service.environ(), **pipes)

    def line(self) -> str:
        """The next line it prints."""
        return str(self.process.stdout.readline()).strip()

    def indexes(self, count: int) -> list[int]:
        return [int(self.line()) for _ in range(count)]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def commit(self, index: int) -> str:
        self.process.stdin.write(f"commit {index}\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def consume() -> Iterator[Consume]:
    """Starts consumers, and ends them."""
    started: list[Consumer] = []

    def start(service: Service, user: str) -> Consumer:
        started.append(Consumer(service, user))
        return started[-1]

    yield start
    for consumer in started:
        consumer.end()


def test_the_same_name_has_the_items_of_a_killed_consumer_at_once(serve: Serve, consume: Consume) -> None:
    """Though the grace is an hour, and though another one has room: its very items, one of which may be the killer."""
    service = serve("--leave-grace", "1h")
    queue = service.stream()
    for _ in range(4 * WINDOW):
        queue.put()
    killed = consume(service, "engine-1")
    mine = killed.indexes(WINDOW)
    with watch(queue.as_consumer("engine-2"), _window_=WINDOW) as other:
        theirs = other.indexes(WINDOW)
        killed.signal(signal.SIGKILL)
        assert other.has_no_more(1.0)
        again = consume(service, "engine-1")
        for index in mine:
            assert again.indexes(1) == [index]
            assert "Pending: 6," in queue.attributes()["groups.list.[0]"]
            queue.as_consumer("engine-1").commit(index)
        assert other.has_no_more(0.3)
    assert not set(mine) & set(theirs)


def test_another_has_the_items_of_a_killed_consumer_after_the_grace(serve: Serve, consume: Consume) -> None:
    """In their order, marked as redelivered, and not above its own window."""
    service = serve("--leave-grace", "1s")
    queue = service.stream()
    for _ in range(2 * WINDOW):
        queue.put()
    killed = consume(service, "engine-1")
    mine = killed.indexes(WINDOW)
    other_name = queue.as_consumer("engine-2")
    with watch(other_name, _window_=WINDOW) as other:
        theirs = other.indexes(WINDOW)
        killed.signal(signal.SIGKILL)
        assert other.has_no_more(1.5)  # its window is full
        other_name.commit(*theirs)
        for index in mine:
            (item,) = other.take(1)
            assert (item.index, item.tags["deliveryCount"]) == (index, "2")
            other_name.commit(index)
    assert queue.length() == 0


def test_a_frozen_consumer_is_given_up_and_its_late_commit_counts(serve: Serve, consume: Consume) -> None:
    """A short freeze changes nothing; a long one is silence. What it finishes after waking is not done twice."""
    service = serve("--leave-grace", "0s", "--silent-after", "6s")
    queue = service.stream()
    for _ in range(WINDOW):
        queue.put()
    frozen = consume(service, "engine-1")
    mine = frozen.indexes(WINDOW)
    other = consume(service, "engine-2")
    frozen.signal(signal.SIGSTOP)
    thawed_at = time.monotonic() + 2.0
    while time.monotonic() < thawed_at:
        assert f"Pending: {WINDOW}, Status: Running" in consumer_line(queue, "engine-1")
    frozen.signal(signal.SIGCONT)
    assert frozen.commit(mine[0]) == "committed 1"
    frozen.signal(signal.SIGSTOP)
    assert other.indexes(1) == [mine[1]]  # alone: it may be what froze the first one
    frozen.signal(signal.SIGCONT)
    assert frozen.commit(mine[1]) == "committed 1"
    assert other.indexes(1) == [mine[2]]
    assert [item.index for item in queue.get(_length_=9)] == mine[2:]


def consumer_line(queue: Stream, user: str) -> str:
    """Return the attributes of a consumer."""
    return next(text for text in queue.attributes().values() if text.startswith(f"Id: g.{user},"))
