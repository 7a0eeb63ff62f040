"""Hooks: each request is reported once, with any outcome. Without an enabled hook nothing is recorded."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from easq.emulator.settings import ModelService
from easq.errors import StorageError
from easq.server.hooks import MALFORMED, Hook, RequestRecord
from easq.server.queue import Queue
from tests.server.conftest import Open
from tests.support.http import Connection, Stream, ask
from tests.support.waiting import eventually
from tests.support.websocket import watch


class Recorder:
    """A hook that stores its records, as a metrics hook would count them."""

    def __init__(self) -> None:
        self.seen: list[RequestRecord] = []
        self.enabled = True

    def is_enabled(self) -> bool:
        return self.enabled

    def __call__(self, record: RequestRecord) -> None:
        self.seen.append(record)

    def next(self) -> RequestRecord:
        """Return the only record since the last call."""
        eventually(lambda: self.seen)
        (record,), self.seen = self.seen, []
        return record


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def queue(start: Open, recorder: Recorder) -> Stream:
    """Return the queue `q` of a service with a token, a model and the hook."""
    local = start(hooks=[recorder], token="t", service=ModelService("echo"))
    return local.stream(headers=[("Authorization", "t")])


def of(record: RequestRecord) -> tuple[str, str, int]:
    return record.route, record.queue, record.status


@pytest.mark.parametrize(
    ("method", "query", "route", "status"),
    [
        ("POST", {}, "put", 200),
        ("POST", {"_eos_": "true"}, "end", 200),
        ("GET", {}, "get", 204),
        ("GET", {"_attrs_": "true"}, "describe", 200),
        ("GET", {"_search_": "true", "_index_": 1}, "search", 404),
        ("GET", {"_count_": "true"}, "count", 200),
        ("PUT", {"_indexes_": 1}, "commit", 200),
        ("PUT", {"_indexes_": 1, "_negative_": "true"}, "negative", 200),
        ("DELETE", {"_indexes_": 1}, "delete", 200),
        ("DELETE", {"_index_": 1, "_trunc_": "true"}, "truncate", 200),
        ("GET", {"_length_": 0}, "", 400),
        ("PATCH", {}, "", 405),
    ],
)
def test_each_operation_is_reported_with_its_name(
    queue: Stream, recorder: Recorder, method: str, query: dict[str, Any], route: str, status: int
) -> None:
    assert queue.sink.ask(method, body=b"", **query).status == status
    assert of(recorder.next()) == (route, "q/sink", status)


def test_routes_without_a_queue_are_reported(queue: Stream, recorder: Recorder) -> None:
    for path, route, status in (
        ("/healthz", "health", 200),
        ("/api/v1/servicediscovery/upstreams/nobody", "discovery", 404),
        ("/v1/p/services/s/predict/endpoints", "modelarts", 401),
        ("/api/predict/model", "gateway", 401),
    ):
        assert ask(queue.port, "GET", path).status == status
        assert of(recorder.next()) == (route, "", status)


def test_bytes_and_duration_are_those_of_the_request(queue: Stream, recorder: Recorder) -> None:
    """The input counts the bytes of the body, the output all bytes, for every kind of response."""
    with Connection(queue.port) as connection:
        for data in (b"x" * 1000, b"y" * 300_000):
            assert connection.ask("POST", queue.path, queue.headers, data).status == 200
            seen = recorder.next()
            assert (seen.method, seen.path, seen.bytes_in) == ("POST", queue.path, len(data))
            assert 60 < seen.bytes_out < 400
            assert seen.duration_s > 0
        for data in (b"x" * 1000, b"y" * 300_000):
            assert connection.ask("GET", queue.path, queue.headers).body == data
            assert len(data) < recorder.next().bytes_out < len(data) + 500
    with watch(queue) as watching:
        queue.put(b"z" * 5000)
        assert recorder.next().route == "put"
        assert watching.indexes(1) == [3]
    seen = recorder.next()
    assert of(seen) == ("watch", "q", 101)
    assert seen.bytes_out > 5000


def test_refused_requests_are_reported_once(queue: Stream, recorder: Recorder) -> None:
    """Cases before a route is known: no token, another host, malformed input, too many headers."""
    stranger = Stream(queue.port, queue.path)
    assert stranger.ask("GET").status == 401
    assert of(recorder.next()) == ("", "", 401)
    assert stranger.ask("GET", [("Host", "elsewhere")]).status == 421
    assert of(recorder.next()) == ("", "", 421)
    with Connection(queue.port) as connection:
        connection.send(b"GET /healthz HTTP/9.9\r\n\r\n")
        assert connection.read_answer().status == 400
    assert of(recorder.next()) == (MALFORMED, "", 400)
    assert stranger.ask("GET", [("X-A", "b" * 60_000)]).status == 431
    assert recorder.next().status == 431


def test_requests_that_break_off_are_reported_once(queue: Stream, recorder: Recorder) -> None:
    """The callers disconnect in the body of a put, in a long poll, and in each kind of watch."""
    with Connection(queue.port) as connection:
        headers = [*queue.headers, ("Content-Length", "100"), ("X-Marker", "1")]
        connection.send_request("POST", queue.path, headers, None)
        connection.send(b"half")
    assert of(recorder.next()) == ("", "q", 400)
    with Connection(queue.port) as connection:
        connection.send_request("GET", f"{queue.path}?_timeout_=60s", queue.headers)
        _has_begun(queue, recorder)
    assert recorder.next().route == "get"
    with watch(queue) as watching:
        watching.connection.reset()
    assert of(recorder.next()) == ("watch", "q", 101)
    with Connection(queue.port) as connection:
        connection.send_request("GET", f"{queue.path}?_watch_=true", queue.headers)
        connection.read_head()
    assert of(recorder.next()) == ("watch", "q", 200)


def _has_begun(queue: Stream, recorder: Recorder) -> None:
    """Wait until the service has read the earlier input."""
    assert queue.ask("GET", _count_="true").status == 200
    assert recorder.next().route == "count"


def test_failures_are_reported_once(
    queue: Stream, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The status is 500 for a bug, and also for an answer that a broken storage does not send."""
    for error in (RuntimeError("a bug"), StorageError("the disk is gone")):

        async def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Queue, "put", fail)
        try:
            assert queue.ask("POST", body=b"x").status == 500
        except (ConnectionError, EOFError):
            assert isinstance(error, StorageError)
        assert of(recorder.next()) == ("put", "q", 500)
    caplog.clear()  # tracebacks, as they should be


def test_requests_in_flight_are_reported_once_when_the_service_stops(start: Open, recorder: Recorder) -> None:
    """A long poll is answered. A watch gets a close frame, and its status is 0."""
    local = start(hooks=[recorder])
    watching = watch(local.queue)
    with Connection(local.port) as connection:
        connection.send_request("GET", f"{local.queue.path}?_timeout_=60s")
        _has_begun(local.queue, recorder)
        local.stop()
    watching.connection.close()
    assert sorted(map(of, recorder.seen)) == [("get", "q", 204), ("watch", "q", 0)]


def test_a_hook_that_fails_or_is_not_enabled_changes_nothing(
    start: Open, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def is_enabled(self) -> bool:
            return True

        def __call__(self, _: RequestRecord) -> None:
            raise RuntimeError("a mistake")

    broken: Hook = Broken()
    recorder.enabled = False
    queue = start(hooks=[broken, recorder]).queue
    with Connection(queue.port) as connection, caplog.at_level(logging.ERROR, "easq"):
        for _ in range(2):
            assert connection.ask("POST", queue.path, body=b"x").status == 200
    assert recorder.seen == []
    assert "a hook failed" in caplog.text
    caplog.clear()
