"""The routes of the service: tables of paths and operations, each with its authentication and its handler.

The first match answers a request:

1. the address of a queue or its sink: `operation_routes`, by the operation that method and parameters ask for,
2. a row of the table of paths: the service's own, then those that extensions add,
3. any other path: the queue that the path names, else the first queue.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from easq.errors import AuthFailed, BadRequest, MethodNotAllowed, NotFound, Unavailable
from easq.protocol import operations as op
from easq.protocol.replies import Reply
from easq.server import http
from easq.server.auth import Guard
from easq.server.connection import connection_of
from easq.server.hooks import safe
from easq.server.http import QueueCall, ServiceState, read_operation
from easq.server.queue import Queue
from easq.server.queues import Queues
from easq.server.request import target
from easq.server.response import respond
from easq.server.watch import Watches


class Auth(Enum):
    """Who may call a route."""

    ANYBODY = "without a token"
    CHECKED_BY_ROUTE = "the route asks for the token, to refuse in a form of its own"
    TOKEN = "with the token"
    TOKEN_OR_SIGNATURE = "with the token, or a signature made with it"


@dataclass(frozen=True, slots=True)
class PathRoute:
    """One row of the table of paths.

    Attributes:
        name: the route as hooks get it.
        path: pattern for the whole path, before percent-decoding.
        methods: methods of the route; empty for all.
        auth: who may call it.
        answer: returns the response to a request and the match of its path.
        segment: required value of the first group of `path`, after percent-decoding; empty for any value.
        shares_path: whether later rows are tried for other methods. If false, other methods are answered with 405.
    """

    name: str
    path: re.Pattern[str]
    methods: tuple[str, ...]
    auth: Auth
    answer: Callable[[web.BaseRequest, re.Match[str]], Awaitable[web.StreamResponse]]
    segment: str = ""
    shares_path: bool = False

    def match(self, method: str, raw_path: str) -> re.Match[str] | None:
        """Return the match of the path; None if this route does not answer the request."""
        if self.shares_path and method not in self.methods:
            return None
        found = self.path.fullmatch(raw_path)
        return None if found is not None and self.segment and _decoded(found[1]) != self.segment else found


#: returns the response to an operation
OperationHandler: TypeAlias = Callable[[Any, QueueCall], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class OperationRoute:
    """One row of the table of operations: the name, method, authentication and handler of one operation."""

    name: str
    method: str
    auth: Auth
    answer: OperationHandler


def operation_routes(watches: Watches) -> Mapping[type[op.Operation], OperationRoute]:
    """Return the table of operations.

    Only a put can be signed. A signature does not cover the query, which names the operation, so somebody who recorded
    a signature could use it for any operation.
    """
    return {
        op.Put: OperationRoute("put", "POST", Auth.TOKEN_OR_SIGNATURE, http.put),
        op.End: OperationRoute("end", "POST", Auth.TOKEN, http.end),
        op.Get: OperationRoute("get", "GET", Auth.TOKEN, http.get),
        op.Describe: OperationRoute("describe", "GET", Auth.TOKEN, http.describe),
        op.Watch: OperationRoute("watch", "GET", Auth.TOKEN, watches.serve),
        op.Search: OperationRoute("search", "GET", Auth.TOKEN, http.search),
        op.Count: OperationRoute("count", "GET", Auth.TOKEN, http.count),
        op.Commit: OperationRoute("commit", "PUT", Auth.TOKEN, http.commit),
        op.Negative: OperationRoute("negative", "PUT", Auth.TOKEN, http.negative),
        op.Delete: OperationRoute("delete", "DELETE", Auth.TOKEN, http.delete),
        op.Truncate: OperationRoute("truncate", "DELETE", Auth.TOKEN, http.truncate),
    }


@dataclass(frozen=True, slots=True)
class Place:
    """The stream of a path, and the rest of the path after the stream's address."""

    queue: Queue
    path: str


class Router:
    """Finds the route of each request, checks who calls, and returns the answer."""

    def __init__(
        self, queues: Queues, guard: Guard, watches: Watches, *, base: str, routes: Sequence[PathRoute] = ()
    ) -> None:
        """Route requests to `queues` and `routes`.

        Args:
            base: the path before the name of a queue: empty, or beginning with `/`.
            routes: rows that follow the service's own in the table of paths.
        """
        self._queues = queues
        self._guard = guard
        self._watches = watches
        self._base = base
        self._state = ServiceState()
        self.operations = operation_routes(watches)
        self.routes: Sequence[PathRoute] = (
            PathRoute("health", re.compile("/healthz"), ("GET",), Auth.ANYBODY, self._health),
            *routes,
        )
        #: the usual paths of queues and sinks, which nearly all requests use, resolved once
        self._places = {path: self._place(path, "POST") for path in self._addresses()}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the answer to one request. Raises the EasqError that is to be its reply."""
        raw_path, _, raw_query = target(request).partition("?")
        place = self._places.get(raw_path)
        if place is None:
            for route in self.routes:
                if (found := route.match(request.method, raw_path)) is not None:
                    return await self._answer_route(route, found, request)
        lower = op.lower_case(request.headers)
        caller = op.parse_caller(lower)
        is_signed = self._guard.is_signature(caller.token)
        if is_signed:
            self._guard.check_call(request.headers, target(request))
        else:
            self._guard.check_token(caller.token)
        self._check_running()
        if place is None:
            place = self._place(raw_path, request.method)
        if is_signed and request.method != "POST":
            raise AuthFailed(_PUTS_ALONE)
        queue = place.queue.rear if caller.rear else place.queue
        connection = connection_of(request)
        connection.queue = queue.stream
        body = await read_operation(request, place.queue)
        operation = op.parse(op.Request(request.method, _query(raw_query), lower, body, place.path))
        row = self.operations[type(operation)]
        connection.route = row.name
        if is_signed and row.auth is not Auth.TOKEN_OR_SIGNATURE:
            raise AuthFailed(_PUTS_ALONE)
        return await row.answer(operation, QueueCall(queue, caller.consumer, request, self._state))

    async def _answer_route(
        self, route: PathRoute, found: re.Match[str], request: web.BaseRequest
    ) -> web.StreamResponse:
        connection_of(request).route = route.name
        if route.methods and request.method not in route.methods:
            raise MethodNotAllowed(f"use {' or '.join(route.methods)}", allow=", ".join(route.methods))
        match route.auth:
            case Auth.TOKEN:
                self._check_running()
                self._guard.check_token(op.parse_caller(request.headers).token)
            case Auth.TOKEN_OR_SIGNATURE:
                self._check_running()
                self._guard.check_call(request.headers, target(request), request.method)
        return await route.answer(request, found)

    def _check_running(self) -> None:
        if self._state.stopping:
            raise Unavailable("the service stops")

    async def stop(self) -> None:
        """Refuse new requests, answer long polls, and end every watch with the reason."""
        self._state.stopping = True
        for pair in self._queues.pairs.values():
            await pair.input.wake_readers()
            await pair.sink.wake_readers()
        await self._watches.stop()

    def close(self) -> None:
        """Free the shared state of requests. Call this when no request is in flight."""
        self._state.close()

    async def _health(self, _request: web.BaseRequest, _found: re.Match[str]) -> web.StreamResponse:
        return respond(Reply(503 if self._state.stopping else 200, {"Content-Type": "text/plain"}, b"ok\n"))

    def _addresses(self) -> Iterator[str]:
        """Yield the paths of all queues and sinks in their usual form."""
        for name in self._queues.pairs:
            if self._base:
                yield f"{self._base}/{name}"
                yield f"{self._base}/{name}/sink"

    def _place(self, raw_path: str, method: str) -> Place:
        """Return the stream of a path. Raises NotFound.

        Under the base path, the next segment names the queue. Any other path belongs to the first queue, as inside a
        cluster.
        """
        if self._base and (raw_path == self._base or raw_path.startswith(self._base + "/")):
            segment, slash, rest = raw_path[len(self._base) + 1 :].partition("/")
            pair = self._queues.pairs.get(_decoded(segment))
            if pair is None:
                raise NotFound(f"no queue {safe(_decoded(segment))[:80]!r} here")
            rest = slash + rest
        else:
            pair, rest = self._queues.first, raw_path
            if rest not in {"", "/", "/sink", "/sink/"} and method != "POST":
                raise NotFound("no queue under this path")
        if rest.rstrip("/") == "/sink":
            return Place(pair.sink, "")
        return Place(pair.input, "" if rest == "/" else rest)


#: message for a signed request that is no put
_PUTS_ALONE = "only a put can be signed: send the token instead"


def _decoded(segment: str) -> str:
    return unquote(segment, errors="replace")


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    if not raw:
        return ()
    try:
        return tuple(parse_qsl(raw, keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise BadRequest("the query is not UTF-8 in percent encoding") from error
