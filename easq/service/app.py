"""Path to queue, request to operation, errors to replies, one line of log a request."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from easq.broker.broker import Broker
from easq.broker.queue import Queue
from easq.errors import BadRequest, EasqError, MethodNotAllowed, NotFound, StorageError, Unavailable
from easq.service.auth import Guard
from easq.service.http import answer, read_body, respond
from easq.service.watch import Liveness, serve_watch
from easq.wire import operations as op
from easq.wire.replies import Reply, error_reply

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: a stream, and what follows its address."""

    queue: Queue
    path: str


class App:
    """Answers every request of the service."""

    def __init__(self, broker: Broker, guard: Guard, *, base_path: str, liveness: Liveness) -> None:
        self._broker = broker
        self._guard = guard
        self._base = "/" + base_path.strip("/") if base_path.strip("/") else ""
        self._liveness = liveness
        self._watching: set[asyncio.Task[object]] = set()
        self.stopping = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request; an EasqError becomes its reply, a bug a 500 and a traceback in the log."""
        started = time.monotonic()
        try:
            response = await self._answer(request)
        except StorageError as error:
            # whether it was stored is not known: no answer, so that no client sends it again by itself
            log.error("%s", error)
            if request.transport is not None:
                request.transport.abort()
            response = web.Response(status=500)
        except EasqError as error:
            response = self._refuse(request, error)
        except TimeoutError:
            response = respond(Reply(408, {"Content-Type": "text/plain"}, b"the body did not come in time"))
            response.force_close()
        except (ConnectionError, asyncio.IncompleteReadError):
            response = web.Response(status=400)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, _safe(request.path))
            response = respond(Reply(500, {"Content-Type": "text/plain"}, b"internal error"))
        if log.isEnabledFor(logging.INFO):
            log.info(
                "%s %s %s %.1fms",
                request.method,
                _safe(request.rel_url.raw_path),
                response.status,
                (time.monotonic() - started) * 1000,
            )
        return response

    def _refuse(self, request: web.BaseRequest, error: EasqError) -> web.Response:
        response = respond(error_reply(error))
        if not request.content.at_eof():
            # the rest of the body is not read: the connection cannot be used for another request
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        if len(headers.getall("Host", ())) > 1:
            raise BadRequest("more than one Host")
        self._guard.check_source(headers)
        raw_path, _, raw_query = request.raw_path.partition("?")
        if raw_path == "/healthz":
            return self._health(request)
        lower = op.lower_case(headers)
        caller = op.parse_caller(lower)
        self._guard.check_token(caller.token)
        if self.stopping:
            raise Unavailable("the service stops")
        place = self._place(raw_path, request.method)
        body = await read_body(request, place.queue)
        queue = place.queue.rear if caller.rear else place.queue
        operation = op.parse(op.Request(request.method, _query(raw_query), lower, body, place.path))
        if isinstance(operation, op.Watch):
            return await self._watch(request, operation, queue, caller)
        return await answer(operation, queue, caller, request, is_gone=lambda: self._is_gone(request))

    def _is_gone(self, request: web.BaseRequest) -> bool:
        return self.stopping or request.transport is None or request.transport.is_closing()

    async def _watch(
        self, request: web.BaseRequest, watch: op.Watch, queue: Queue, caller: op.Caller
    ) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            return await serve_watch(request, watch, queue, caller, self._liveness)
        finally:
            self._watching.discard(task)

    async def stop(self) -> None:
        """Nothing new is taken, long polls are answered, every watcher was told that the service stops and has left."""
        self.stopping = True
        for pair in self._broker.pairs.values():
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

    def _place(self, raw_path: str, method: str) -> Place:
        """Under the base path the next segment names a queue; the root is the first queue, as inside a cluster."""
        if self._base and (raw_path == self._base or raw_path.startswith(self._base + "/")):
            segment, slash, rest = raw_path[len(self._base) + 1 :].partition("/")
            pair = self._broker.pairs.get(_decoded(segment))
            if pair is None:
                raise NotFound(f"no queue {_safe(_decoded(segment))[:80]!r} here")
            rest = slash + rest
        else:
            pair, rest = self._broker.first, raw_path
            if rest not in {"", "/", "/sink", "/sink/"} and method != "POST":
                raise NotFound("no queue under this path")
        if rest.rstrip("/") == "/sink":
            return Place(pair.sink, "")
        return Place(pair.input, "" if rest == "/" else rest)


def _decoded(segment: str) -> str:
    return unquote(segment, errors="replace")


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(parse_qsl(raw, keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise BadRequest("the query is not UTF-8 in percent encoding") from error


def _safe(text: str) -> str:
    """`text` for a line of log: no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])
