"""The table of routes: methods, paths and callers."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from aiohttp import web

from easq.emulator.settings import ModelService
from easq.errors import UsageError
from easq.protocol import operations as op
from easq.protocol.replies import Reply
from easq.server.response import respond
from easq.server.routes import Auth, PathRoute, operation_routes
from easq.server.server import Server, ServerSettings
from easq.server.watch import Liveness, Watches
from tests.server.conftest import Open
from tests.support.http import Connection, ask
from tests.support.local import Local

BASE = "/api/predict"
#: one of each operation of the wire
OPERATIONS: list[op.Operation] = [
    op.Put(b"x"),
    op.End(),
    op.Get(),
    op.Describe(),
    op.Watch(),
    op.Search(1),
    op.Count(),
    op.Commit((1,)),
    op.Negative((1,)),
    op.Delete((1,)),
    op.Truncate(1),
]


def test_each_operation_of_the_wire_has_a_row() -> None:
    """Each has the method of the protocol. Only a put can be signed."""
    table = operation_routes(Watches(Liveness()))
    assert set(table) == set(get_args(op.Operation)) == set(map(type, OPERATIONS))
    for operation in OPERATIONS:
        assert table[type(operation)].method == op.to_request(operation).method
    signed = [kind for kind, row in table.items() if row.auth is Auth.TOKEN_OR_SIGNATURE]
    assert signed == [op.Put]
    assert len({row.name for row in table.values()}) == len(table)


@pytest.mark.parametrize(
    ("path", "method", "status", "allow"),
    [
        ("/healthz", "POST", 405, "GET"),
        ("/healthz", "HEAD", 405, "GET"),
        ("/healthz", "OPTIONS", 405, "GET"),
        ("/api/v1/servicediscovery/upstreams/model", "POST", 405, "GET"),
        ("/api/predict/q", "PATCH", 405, "POST, GET, PUT, DELETE"),
        ("/api/predict/q", "HEAD", 405, "POST, GET, PUT, DELETE"),
        ("/api/predict/q", "OPTIONS", 405, "POST, GET, PUT, DELETE"),
        ("/api/predict/q/sink", "TRACE", 405, "POST, GET, PUT, DELETE"),
        ("/api/predict/model", "GET", 405, "POST"),
        ("/healthz/", "GET", 404, None),
        ("//healthz", "GET", 404, None),
        ("/api/predict//q", "GET", 404, None),
        ("/api/predict/q//", "GET", 204, None),
        ("/api/predict/nobody", "GET", 404, None),
        ("/x/y", "GET", 404, None),
        ("/x/y", "POST", 200, None),
        ("/v1/p/services/model/x", "POST", 200, None),
        ("/v1/p/services/model/x", "GET", 404, None),
        ("/api/predict/m%6fdel", "POST", 200, None),
        ("/api/predict/modelx", "POST", 404, None),
        ("/api/predict/%71", "GET", 204, None),
    ],
)
def test_a_path_and_a_method_lead_to_one_answer(
    start: Open, path: str, method: str, status: int, allow: str | None
) -> None:
    """A method that a path does not have is 405, with the methods of the path."""
    local = start(service=ModelService("echo"))
    answer = ask(
        local.port, method, path, body=None if method in ("GET", "HEAD", "OPTIONS", "TRACE") else b""
    )
    assert (answer.status, answer.header("Allow")) == (status, allow)


class _Extra:
    """An extension with a route for each kind of authentication."""

    def __init__(self) -> None:
        self.routes = [
            PathRoute(auth.name, re.compile(f"/{auth.name}"), ("GET", "POST"), auth, self._answer)
            for auth in Auth
        ]

    async def _answer(self, _request: web.BaseRequest, found: re.Match[str]) -> web.StreamResponse:
        return respond(Reply(200, body=found[0].encode()))

    async def start(self, host: str) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


def test_an_extension_adds_rows_which_say_who_may_call() -> None:
    """The router checks the token if the row requires it, and refuses other methods."""

    class Extended(Local):
        def _prepare(self) -> None:
            self._emulator.routes = [*self._emulator.routes, *_Extra().routes]

    local = Extended(ServerSettings(port=0, queues=("q",), token="t"))
    local.start()
    try:
        for auth in Auth:
            is_open = auth in (Auth.ANYBODY, Auth.CHECKED_BY_ROUTE)
            for headers, status in (((), 200 if is_open else 401), ([("Authorization", "t")], 200)):
                answer = ask(local.port, "GET", f"/{auth.name}", headers)
                assert answer.status == status
            assert ask(local.port, "PUT", f"/{auth.name}", body=b"").header("Allow") == "GET, POST"
    finally:
        local.stop()


# -- streams of paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "queue", "is_sink"),
    [
        (f"{BASE}/q", "q", False),
        (f"{BASE}/q/", "q", False),
        (f"{BASE}/q/sink", "q", True),
        (f"{BASE}/q/sink/", "q", True),
        (f"{BASE}/group.other", "group.other", False),
        (f"{BASE}/group.other/sink", "group.other", True),
        (f"{BASE}/group%2Eother", "group.other", False),
        ("/", "q", False),
        ("/sink", "q", True),
        ("/sink/", "q", True),
    ],
)
def test_every_operation_finds_its_stream(start: Open, path: str, queue: str, is_sink: bool) -> None:
    """Under the base path the name decides; at the root it is the first queue. Input and sink are two streams."""
    service = start(queues=("q", "group.other"))
    assert service.stream(path).put(b"here") == 1
    for name in ("q", "group.other"):
        for sink in (False, True):
            stream = service.stream(f"{BASE}/{name}")
            found = (stream.sink if sink else stream).get()
            assert [item.data for item in found] == ([b"here"] if (name, sink) == (queue, is_sink) else [])
    assert service.stream(path).attributes()["meta.name"] == queue
    assert service.stream(path).commit(1).header("X-Easq-Committed") == "1"


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path", [BASE, f"{BASE}/", f"{BASE}/unknown", f"{BASE}/unknown/sink", f"{BASE}/../q", f"{BASE}/%00"]
)
def test_an_unknown_queue_under_the_base_path_is_404(start: Open, method: str, path: str) -> None:
    """A put gets 404 as well: a misspelled name must not become a sub-path of another queue."""
    service = start()
    answer = service.stream(path).ask(method, (), b"" if method in {"PUT", "POST"} else None, _indexes_=1)
    assert answer.status == 404
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert service.queue.length() == 0


def test_a_target_with_scheme_and_authority_is_routed_by_its_path(start: Open) -> None:
    """Clients send such targets to proxies, and RFC 9112 requires servers to accept them."""
    service = start(queues=("q", "other"))
    address = f"http://127.0.0.1:{service.port}"
    with Connection(service.port) as connection:
        for path in (f"{BASE}/other", f"{BASE}/q/sink"):
            assert connection.ask("POST", address + path, (), b"x").status == 200
            assert service.stream(path).length() == 1
        assert connection.ask("GET", f"{address}{BASE}/unknown").status == 404
        assert connection.ask("GET", f"{address}{BASE}/other?_auto_delete_=false").body == b"x"
        assert connection.ask("GET", f"{address}/healthz").status == 200
        assert connection.ask("POST", address, (), b"root").status == 200
    assert service.queue.length() == 1


def test_another_post_at_the_root_is_a_sub_path_of_the_first_queue(start: Open) -> None:
    service = start(queues=("q", "other"))
    assert service.stream("/v1/chat").put(b"x") == 1
    assert service.queue.get()[0].tags["Path"] == "/v1/chat"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_path_at_the_root_is_404(start: Open, method: str) -> None:
    service = start()
    service.queue.put()
    answer = service.stream("/favicon.ico").ask(method, (), b"" if method == "PUT" else None, _indexes_=1)
    assert answer.status == 404
    assert service.queue.length() == 1


@pytest.mark.parametrize(
    ("sub_path", "is_sub_path"),
    [("/sink/more", True), ("/sinks", True), ("/v1/sink", True), ("/sink/", False), ("/SINK", True)],
)
def test_only_exactly_sink_is_the_sink(start: Open, sub_path: str, is_sub_path: bool) -> None:
    queue = start().queue
    assert queue.ask("POST", (), b"x", path=sub_path).status == 200
    assert queue.length() == is_sub_path
    assert queue.sink.length() == (not is_sub_path)


def test_a_base_path_of_ones_own(start: Open) -> None:
    service = start(base_path="/deep/er/")
    assert service.stream("/deep/er/q").put() == 1
    assert service.stream("/deep/er/q/sink").put() == 1
    assert service.stream(f"{BASE}/q").ask("GET").status == 404


def test_without_a_base_path_the_root_is_the_first_queue(start: Open) -> None:
    """The addresses inside a cluster are `http://host:3030/` and `http://host:3030/sink`."""
    service = start(base_path="/")
    assert service.stream("/").put() == 1
    assert service.stream("/sink").put() == 1


def test_without_a_base_path_the_address_of_the_queue_is_the_root() -> None:
    server = Server(ServerSettings(base_path="/"))
    assert (server.url(), server.url(sink=True)) == (server.origin, f"{server.origin}/sink")


def test_without_a_base_path_a_second_queue_could_not_be_reached() -> None:
    with pytest.raises(UsageError, match="only the first of 2 queues"):
        ServerSettings(base_path="/", queues=("a", "b")).check()


def test_health_is_not_a_sub_path(start: Open) -> None:
    service = start()
    assert service.stream("/healthz").ask("POST", (), b"x").status == 405
    assert service.queue.length() == 0
