"""The load balancer of the tests sends each request elsewhere, also those of a client that keeps its connection."""

from __future__ import annotations

import pytest

from tests.conftest import Serve
from tests.support.http import Connection, Stream
from tests.support.proxy import Alternating
from tests.support.websocket import watch


def test_requests_go_round_and_a_watch_stays(serve: Serve) -> None:
    services = [serve(storage="memory:"), serve(storage="memory:")]
    with Alternating(*(service.port for service in services)) as balancer:
        stream = Stream(balancer.port, services[0].stream().path)
        assert [stream.put() for _ in range(4)] == [1, 1, 2, 2]
        with watch(stream.as_consumer("u"), _window_=9) as watching:
            assert watching.indexes(2) == [1, 2]
            assert services[0].stream().put() == 3
            assert watching.indexes(1) == [3]


def test_a_kept_connection_is_closed_after_its_answer(serve: Serve) -> None:
    service = serve(storage="memory:")
    with Alternating(service.port) as balancer, Connection(balancer.port) as connection:
        assert connection.ask("POST", service.stream().path, (), b"x").status == 200
        with pytest.raises((EOFError, OSError)):
            connection.ask("POST", service.stream().path, (), b"x")
    assert service.stream().length() == 1
