"""Path to queue, request to operation; the answer to every request at the service's own address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from easq.emulator.platform import DISCOVERY_PATHS, MODELARTS_PATH, Platform
from easq.errors import AuthFailed, BadRequest, MethodNotAllowed, NotFound, Unavailable
from easq.protocol import operations as op
from easq.protocol.replies import Reply
from easq.server.auth import Guard
from easq.server.http import answer, read_operation, respond, target
from easq.server.listener import safe, until_lost
from easq.server.queue import Queue
from easq.server.queues import Queues
from easq.server.watch import Liveness, serve_watch

#: a signature covers neither the query, which names the operation, nor the date: whoever recorded one could use it for
#: any operation
_PUTS_ALONE = "only a put can be signed: send the token instead"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: a stream, and what follows its address."""

    queue: Queue
    path: str


class Router:
    """Answers every request of the service."""

    def __init__(
        self,
        queues: Queues,
        guard: Guard,
        platform: Platform,
        *,
        base: str,
        liveness: Liveness,
        max_watchers: int = 0,
    ) -> None:
        """Serve `broker` and `platform`.

        Args:
            base: the path before the name of a queue or service: empty, or beginning with `/`.
            max_watchers: most consumers that watch at a time, over all queues; 0: no limit.
        """
        self._queues = queues
        self._guard = guard
        self._platform = platform
        self._base = base
        self._liveness = liveness
        self._max_watchers = max_watchers
        #: the addresses themselves, which nearly every request names: nothing else is served there
        self._known = {path: self._place(path, "POST") for path in self._addresses()}
        self._watching: set[asyncio.Task[object]] = set()
        self.stopping = False

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request. Raises the EasqError that is to be its reply."""
        raw_path, _, raw_query = target(request).partition("?")
        place = self._known.get(raw_path)
        if place is None:
            if raw_path == "/healthz":
                return self._health(request)
            if (response := self._listed(request, raw_path)) is not None:
                return response
            if self._platform.serves(self._name(raw_path)):
                if self.stopping:
                    raise Unavailable("the service stops")
                return await self._platform.gateway(request)
        lower = op.lower_case(request.headers)
        caller = op.parse_caller(lower)
        signed = self._guard.is_signature(caller.token)
        if signed:
            self._guard.check_call(request.headers, target(request))
        else:
            self._guard.check_token(caller.token)
        if self.stopping:
            raise Unavailable("the service stops")
        if place is None:
            place = self._place(raw_path, request.method)
        if signed and request.method != "POST":
            raise AuthFailed(_PUTS_ALONE)
        body = await read_operation(request, place.queue)
        queue = place.queue.rear if caller.rear else place.queue
        operation = op.parse(op.Request(request.method, _query(raw_query), lower, body, place.path))
        if signed and not isinstance(operation, op.Put):
            raise AuthFailed(_PUTS_ALONE)
        if isinstance(operation, op.Watch):
            return await self._watch(request, operation, queue, caller)
        return await answer(
            operation,
            queue,
            caller,
            request,
            is_gone=lambda: self._is_gone(request),
            gone=lambda: until_lost(request),
        )

    def _is_gone(self, request: web.BaseRequest) -> bool:
        return self.stopping or request.transport is None or request.transport.is_closing()

    async def _watch(
        self, request: web.BaseRequest, watch: op.Watch, queue: Queue, caller: op.Caller
    ) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        if self._max_watchers and len(self._watching) >= self._max_watchers:
            raise Unavailable(
                f"{self._max_watchers} consumers are watching, which is the limit (--max-watchers)"
            )
        self._watching.add(task)
        try:
            return await serve_watch(request, watch, queue, caller, self._liveness)
        finally:
            self._watching.discard(task)

    async def stop(self) -> None:
        """Nothing new is taken, long polls are answered, every watcher was told that the service stops and has left."""
        self.stopping = True
        for pair in self._queues.pairs.values():
            await pair.input.wake_readers()
            await pair.sink.wake_readers()
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(set(self._watching), timeout=5.0)

    def _health(self, request: web.BaseRequest) -> web.Response:
        if request.method != "GET":
            raise MethodNotAllowed("use GET")
        return respond(Reply(503 if self.stopping else 200, {"Content-Type": "text/plain"}, b"ok\n"))

    def _listed(self, request: web.BaseRequest, raw_path: str) -> web.StreamResponse | None:
        """Where the instances of a service are; None for a path that does not ask for it."""
        for door in DISCOVERY_PATHS:
            if raw_path.startswith(door):
                return self._platform.discover(request, raw_path.removeprefix(door))
        found = MODELARTS_PATH.fullmatch(raw_path) if request.method == "GET" else None
        return self._platform.modelarts(request, found[2], found[3] or "") if found else None

    def _addresses(self) -> Iterator[str]:
        """The paths of all queues and sinks, as they are told; a service is named like none of them."""
        for name in self._queues.pairs:
            if self._base:
                yield f"{self._base}/{name}"
                yield f"{self._base}/{name}/sink"

    def _name(self, raw_path: str) -> str:
        """What the path names under the base path; empty for another path."""
        if not raw_path.startswith(self._base + "/"):
            return ""
        return _decoded(raw_path[len(self._base) + 1 :].partition("/")[0])

    def _place(self, raw_path: str, method: str) -> Place:
        """Under the base path the next segment names a queue; the root is the first queue, as inside a cluster."""
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


def _decoded(segment: str) -> str:
    return unquote(segment, errors="replace")


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    if not raw:
        return ()
    try:
        return tuple(parse_qsl(raw, keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise BadRequest("the query is not UTF-8 in percent encoding") from error
