"""Durations of operations, as figures at the end of the test log.

The bounds asserted are many times what is promised, for noisy machines; the figures are what to read.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import pytest

from tests.conftest import Serve
from tests.support.http import Connection
from tests.support.waiting import eventually
from tests.support.websocket import PONG, watch

Record = Callable[[str, object], None]
#: times each thing is done
ROUNDS, PUSHES = 8, 200
#: what is waited for before a test gives up, in seconds
FAR_TOO_LONG_S = 10.0


def note(record: Record, name: str, seconds: list[float], promised: str) -> None:
    """p50, p99 and the longest, in milliseconds, beside what is promised."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    shown = (f"{value * 1000:.1f}" for value in (statistics.median(ordered), p99, ordered[-1]))
    p50_text, p99_text, max_text = shown
    record(
        name, f"n={len(ordered)} p50={p50_text} ms p99={p99_text} ms max={max_text} ms (promised: {promised})"
    )
    assert ordered[-1] < FAR_TOO_LONG_S


@pytest.mark.parametrize(
    ("how", "promised"),
    [
        ("close", "250 ms, p99 100 ms"),
        ("reset", "grace 0.5 s + 250 ms"),
        ("freeze", "silent 2 s + grace 0.5 s + 250 ms"),
    ],
)
def test_redelivery_to_another_consumer(
    serve: Serve, record_property: Record, how: str, promised: str
) -> None:
    """From the moment a consumer with a full window ends until another one has the first of its items."""
    service = serve(
        "--leave-grace", "500ms", "--silent-after", "2s", "--max-delivery", "0", storage="memory:"
    )
    stream = service.stream()
    taken: list[float] = []
    for number in range(ROUNDS if how != "freeze" else 3):
        for _ in range(5):
            stream.put()
        leaving = watch(stream.as_consumer(f"leaving{number}"), _window_=5)
        assert len(leaving.take(5)) == 5
        with watch(stream.as_consumer(f"heir{number}"), _window_=5) as heir:
            over = threading.Event()
            pinger = threading.Thread(target=_ping, args=(heir, over))
            pinger.start()
            began = time.monotonic()
            if how == "close":
                leaving.leave()
            elif how == "reset":
                leaving.reset()
            first = heir.take(1)  # a frozen one does nothing at all: no byte comes from it
            taken.append(time.monotonic() - began)
            over.set()
            pinger.join()
            for item in first:
                stream.as_consumer("heir").commit(item.index)
            for _ in range(4):  # one at a time where a connection was lost
                (item,) = heir.take(1)
                stream.as_consumer("heir").commit(item.index)
        leaving.connection.close()
    note(record_property, f"redelivery after a {how}", taken, promised)


def _ping(heir: object, over: threading.Event) -> None:
    while not over.wait(0.3):
        heir.send(PONG, b"")


def test_put_to_push_on_an_idle_service(serve: Serve, record_property: Record) -> None:
    """From before the put is sent until its frame is read, with an fsync between."""
    service = serve()
    stream = service.stream()
    taken: list[float] = []
    with watch(stream.as_consumer("u"), _window_=1) as watching, Connection(service.port) as connection:
        for _ in range(PUSHES):
            began = time.monotonic()
            connection.ask("POST", stream.path, (), b"x" * 256)
            (item,) = watching.take(1)
            taken.append(time.monotonic() - began)
            connection.ask("PUT", stream.target(_indexes_=item.index), stream.as_consumer("u").headers, b"")
    note(record_property, "put to push", taken, "3 ms + 2 fsyncs at p50")


def test_a_long_poll_wakes(serve: Serve, record_property: Record) -> None:
    """From before a put is sent until the waiting get has its item."""
    service = serve(storage="memory:")
    stream = service.stream()
    taken: list[float] = []
    with Connection(service.port) as waiting, Connection(service.port) as putting:
        for number in range(50):
            waiting.send_request("GET", stream.target(_timeout_="30s", requestId=f"r{number}"), (), None)
            # another get answered after it shows that the first one is being waited for
            assert putting.ask("GET", stream.target(requestId="none"), (), None).status == 204
            began = time.monotonic()
            putting.ask("POST", stream.target(requestId=f"r{number}"), (), b"x")
            assert waiting.read_answer().body == b"x"
            taken.append(time.monotonic() - began)
    note(record_property, "wake of a long poll", taken, "50 ms")


def test_a_thousand_pending_items_come_back_at_once(serve: Serve, record_property: Record) -> None:
    """A consumer closes with a thousand items pending; another one with as many slots has them all."""
    service = serve(storage="memory:")
    stream = service.stream()
    with Connection(service.port) as connection:
        for _ in range(1000):
            connection.ask("POST", stream.path, (), b"x")
    leaving = watch(stream.as_consumer("leaving"), _window_=1000)
    assert len(leaving.take(1000)) == 1000
    with watch(stream.as_consumer("heir"), _window_=1000) as heir:
        eventually(lambda: stream.attributes()["consumers.stats.total"] == "2")
        began = time.monotonic()
        leaving.leave()
        heir.take(1)
        first = time.monotonic() - began
        heir.take(999)
        leaving.connection.close()
        note(record_property, "first of 1000 after a close", [first], "250 ms")
        note(record_property, "all of 1000 after a close", [time.monotonic() - began], "no number")
