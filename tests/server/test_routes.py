"""The table of routes: what it says of methods, paths and callers is what the service does."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from aiohttp import web

from easq.emulator.settings import ModelService
from easq.protocol import operations as op
from easq.protocol.replies import Reply
from easq.server.response import respond
from easq.server.routes import Auth, PathRoute, operation_routes
from easq.server.server import ServerSettings
from easq.server.watch import Liveness, Watches
from tests.server.conftest import Open
from tests.support.http import ask
from tests.support.local import Local

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
    """With the method that the wire gives it; only a put can be signed."""
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
    """A method that a path does not have is 405, with those that it has."""
    local = start(service=ModelService("echo"))
    answer = ask(
        local.port, method, path, body=None if method in ("GET", "HEAD", "OPTIONS", "TRACE") else b""
    )
    assert (answer.status, answer.header("Allow")) == (status, allow)


class _Extra:
    """An extension with a route for each kind of caller."""

    def __init__(self) -> None:
        self.routes = [
            PathRoute(auth.name, re.compile(f"/{auth.name}"), ("GET", "POST"), auth, self._answer)
            for auth in Auth
        ]

    async def _answer(self, _request: web.BaseRequest, found: re.Match[str]) -> web.StreamResponse:
        return respond(Reply(200, body=found[0].encode()))

    async def start(self, host: str) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""


def test_an_extension_adds_rows_which_say_who_may_call() -> None:
    """The router asks for the token where the row says so, and refuses other methods."""

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
