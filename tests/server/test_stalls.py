"""No callback blocks the event loop for long, with queues of any length. Processor time is measured."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from easq.model import NO_INDEX, REQUEST_ID, Frame, Tags
from easq.server.queue import QueuePolicy
from easq.server.server import Server
from easq.storage.base import Limits, Timing
from easq.storage.sqlite.engine import SqliteStorage
from tests.server.conftest import Open
from tests.support.callbacks import MOST_S, Longest, longest_callback
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.local import Local
from tests.support.waiting import eventually
from tests.support.websocket import watch

#: how long a scan of a million items may take on a busy machine
_PATIENCE_S = 300.0
_LIMITS = Limits(max_items=10_000_000)


async def fill(path: Path, count: int) -> None:
    """Write a data file whose queue `q` has `count` items. Every other item has the request id `same`."""
    storage = SqliteStorage(path, durability="os")
    await storage.start(lambda _: None)
    for stream in ("q/sink", "q/sink#rear", "q#rear", "q"):
        await storage.open(stream)
    for at in range(0, count, 5000):
        frames = [
            Frame(NO_INDEX, {REQUEST_ID: f"r{number}" if number % 2 else "same", "user": "u"}, b"x" * 50)
            for number in range(at, min(count, at + 5000))
        ]
        await asyncio.gather(*(storage.append("q", frame, priority=0, limits=_LIMITS) for frame in frames))
    await storage.close()


@pytest.fixture(params=[20_000, pytest.param(1_000_000, marks=[pytest.mark.long])], ids=str)
def long_queue(
    request: pytest.FixtureRequest, tmp_path: Path, start: Open, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Local, int]]:
    """Return a running service, and the number of items in its queue."""
    monkeypatch.setattr("tests.support.http.PATIENCE_S", _PATIENCE_S)
    asyncio.run(fill(tmp_path / "easq.db", request.param))
    service = start(
        storage=f"sqlite:{tmp_path / 'easq.db'}",
        durability="os",
        policy=QueuePolicy(limits=_LIMITS),
        timing=Timing(leave_grace_s=0.0),
    )
    gc.freeze()  # as `serve` does: what the tests themselves have is not looked through
    yield service, request.param
    gc.unfreeze()


def scanned(service: Local, stream: Stream) -> None:
    """Watch with a filter that matches nothing, until all items were scanned."""

    async def is_looking(server: Server) -> bool:
        storage = server._storage
        assert isinstance(storage, SqliteStorage)
        return storage._rules["q"]._dispatcher.is_behind

    def done() -> bool:
        with watch(stream.as_consumer("u"), user="nobody") as watching:
            while service.do(is_looking) and not watching.connection.is_quiet(0.05):
                watching.read()  # pings; it answers none, and is dropped as silent in the end
        return not service.do(is_looking)

    eventually(done, within_s=_PATIENCE_S)


def test_no_request_holds_the_event_loop(long_queue: tuple[Local, int]) -> None:
    """Each request is followed by a put, which waits for the running callback."""
    service, count = long_queue
    queue = service.queue
    half, everything = count // 2, 1 << 53

    def asked(method: str = "GET", **query: object) -> Callable[[], object]:
        def ask() -> None:
            connection = queue.ask(method, **query)
            assert connection.status in {200, 204}, connection

        return ask

    steps: dict[str, Callable[[], object]] = {
        "a filter that matches nothing": lambda: scanned(service, queue),
        "the same again": lambda: scanned(service, queue),
        "get by a shared request id": asked(_length_=10, requestId="same", _auto_delete_="false"),
        "get by it near the end": asked(_index_=count - 5, requestId="same", _auto_delete_="false"),
        "count by it": asked(_count_="true", requestId="same"),
        "count by tag": asked(_count_="true", user="u"),
        "count by class": asked(_count_="true", _priority_=0),
        "search": asked(_search_="true", _index_=count - 5),
        "attributes": queue.attributes,
        "a large get": asked(_length_=10_000, _raw_="false", _auto_delete_="false"),
        "truncate half": lambda: queue.truncate(half),
        "search behind what is gone": asked(_search_="true", _index_=count - 5),
        "truncate all": lambda: queue.truncate(everything),
    }
    took = {}
    for name, step in steps.items():
        with longest_callback() as longest:
            step()
            queue.put()
        took[name] = longest.seconds, longest.what
    assert {name: held for name, held in took.items() if held[0] >= MOST_S} == {}


def while_doing(queue: Stream, act: Callable[[], object]) -> Longest:
    """Return the duration of the longest callback before the answer to the put that follows."""
    with longest_callback() as longest:
        act()
        queue.put()
    return longest


@pytest.mark.parametrize(
    ("codec", "takes"),
    [(PROTOBUF, "true"), (("Accept", "application/json"), "false")],
    ids=["protobuf", "json"],
)
def test_an_answer_of_64_mib_does_not_hold_the_event_loop(
    start: Open, tmp_path: Path, codec: tuple[str, str], takes: str
) -> None:
    queue = start(storage=f"sqlite:{tmp_path / 'easq.db'}", durability="os").queue
    for _ in range(8):
        queue.put(b"x" * (8 * 1024**2 - 100))

    def get() -> None:
        target = queue.target(_length_=8, _raw_="false", _auto_delete_=takes)
        with Connection(queue.port) as connection:
            connection.send_request("GET", target, [codec, ("Connection", "close")])
            received = 0
            while data := connection.socket.recv(1 << 20):
                received += len(data)
        assert received > 60 * 1024**2

    assert while_doing(queue, get).seconds < MOST_S
    assert queue.length() == (9 if takes == "false" else 1)


@pytest.mark.parametrize("codec", ["websocket", "stream"])
def test_watchers_that_read_nothing_do_not_hold_the_event_loop(start: Open, codec: str) -> None:
    """A large item goes to each watcher, in different iterations of the loop."""
    queue = start(timing=Timing(leave_grace_s=0.0)).queue
    with ExitStack() as stack:
        for number in range(60):
            consumer = queue.as_consumer("u", f"g{number}")
            if codec == "websocket":
                stack.enter_context(watch(consumer))
            else:
                connection = stack.enter_context(Connection(queue.port))
                connection.send_request("GET", consumer.target(_watch_="true"), [PROTOBUF, *consumer.headers])
                assert connection.read_head()[0] == 200
        assert while_doing(queue, lambda: queue.put(b"x" * 4 * 1024**2)).turn_s < MOST_S


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many times the tags of an entry were read."""
    count = [0]
    original = SqliteStorage.load_tags

    def load_tags(self: SqliteStorage, stream: str, index: int) -> Tags:
        count[0] += 1
        return original(self, stream, index)

    monkeypatch.setattr(SqliteStorage, "load_tags", load_tags)
    return count


@pytest.fixture
def queue_of_20_000(tmp_path: Path, start: Open) -> Stream:
    asyncio.run(fill(tmp_path / "easq.db", 20_000))
    return start(
        storage=f"sqlite:{tmp_path / 'easq.db'}", durability="os", policy=QueuePolicy(limits=_LIMITS)
    ).queue


def test_scans_end_when_their_clients_have_left(queue_of_20_000: Stream, reads: list[int]) -> None:
    queue = queue_of_20_000
    with ExitStack() as stack:
        for number in range(30):
            connection = stack.enter_context(Connection(queue.port))
            query = {"_count_": "true"} if number % 2 else {"_timeout_": "0s"}
            connection.send_request("GET", queue.target(nope=number, **query))
        eventually(lambda: reads[0] > 1_000)

    def is_over() -> bool:
        before = reads[0]
        queue.put()
        time.sleep(0.1)
        return reads[0] == before

    eventually(is_over, within_s=60)
    assert reads[0] < 30 * 20_000 / 2


def test_long_polls_end_while_their_scans_wait(queue_of_20_000: Stream, reads: list[int]) -> None:
    queue, polls = queue_of_20_000, 40
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(queue.port)) for _ in range(polls)]
        for number, connection in enumerate(connections):
            connection.send_request("GET", queue.target(nope=number, _timeout_="1s", _length_=1 + number % 2))
        assert {connection.read_answer().status for connection in connections} <= {200, 204}
    assert reads[0] < polls * 20_000
