"""One inference instance: a model behind HTTP and WebSocket, at an address of its own."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from urllib.parse import parse_qsl, unquote

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from easq.emulator.proxy import UNSAFE, BrokenOff, CallerGone, Proxy, body_of, check_can_pass
from easq.emulator.settings import CallLimits
from easq.emulator.websocket import accept_socket, is_upgrade, send_message
from easq.errors import BadRequest, ChildFailed, MethodNotAllowed, NotFound, PayloadTooLarge
from easq.model import HEADER_PREFIX, Frame, Instance
from easq.models.base import Answer, Call, Model, ModelFailed
from easq.models.http import Http, as_failure
from easq.net.aio_raw import translate
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.replies import Reply, error_reply, raw_reply
from easq.server.auth import Guard
from easq.server.connection import Handler
from easq.server.listener import Listener
from easq.server.request import local_address, read_body, target
from easq.server.response import respond

log = logging.getLogger(__name__)

#: header with the address of the instance that answered, IP:PORT; also through the gateway
INSTANCE_HEADER = "X-Easq-Instance"
#: headers that are not forwarded to a model: credentials, and the origin of the call
_WITHHELD = frozenset({"authorization", "content-md5", "cookie", "date", "origin", "referer", "x-auth-token"})
#: headers of a model's answer that are forwarded, in addition to its content type and the headers that begin with X-
_CONTENT = frozenset({"content-encoding", "content-language"})
#: time that calls in flight have once the service stops, in seconds. It is shorter than the listener's (5 s), so that
#: callers get an answer
_GRACE_S = 4.5
#: most bytes of the reason in a close frame
_MAX_CLOSE_REASON = 123


class ModelInstance:
    """A model that is called with POST, or with the messages of a WebSocket.

    A model behind HTTP is called with any method, and bodies are streamed both ways. Clients of EAS use the gateway's
    path, `/api/predict/NAME`, for direct calls as well: the model gets the rest of the path. Clients of ModelArts
    use paths without this prefix: the model gets the whole path.
    """

    def __init__(self, model: Model, guard: Guard, *, base: str, name: str, limits: CallLimits) -> None:
        self._model = model
        self._guard = guard
        self._base, self._name, self._limits = base, name, limits
        self._sockets: set[web.WebSocketResponse] = set()
        self._listener = Listener(self._answer, guard)
        self._host = ""
        #: forwards the requests for a model behind HTTP
        self._proxy = Proxy(connect_s=limits.timeout_s, answer_s=limits.timeout_s, repeat=True)
        self._is_stopped = False
        #: number of calls and handshakes, refused ones included
        self.requests = 0
        #: answers in place of the instance; set by tests that make it fail
        self.override: Handler | None = None

    @property
    def ip(self) -> str:
        """The IP address where it listens."""
        return self._listener.ip

    @property
    def port(self) -> int:
        """The port where it listens, which stays the same when it is started again."""
        return self._listener.port

    @property
    def address(self) -> str:
        """The address where it listens, `IP:PORT`."""
        return Instance(self.ip, self.port, 0).address

    async def start(self, host: str) -> None:
        """Listen at a free port of `host`. Raises ConfigError."""
        self._host = host
        await self._listener.start(host, self.port)

    async def kill(self) -> None:
        """Stop listening and reset every connection, as when a process is killed. `restart` listens again."""
        self._model.cancel()
        await self._listener.abort()

    async def restart(self) -> None:
        """Listen again, at the same port. Raises ConfigError."""
        await self._listener.start(self._host, self.port)

    async def stop(self) -> None:
        """Stop: close WebSockets in order, and cancel calls in flight after some seconds."""
        await self._listener.refuse_new()
        await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets))
        cancelling = asyncio.create_task(self._cancel_calls(after_s=_GRACE_S))
        await self._listener.close()
        cancelling.cancel()
        await asyncio.wait({cancelling})
        await self._cancel_calls(after_s=0.0)

    async def _cancel_calls(self, *, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._is_stopped = True
        await self._model.close()
        await self._proxy.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if target(request).partition("?")[0] == "/healthz" and request.method == "GET":
            return respond(Reply(200, {"Content-Type": "text/plain"}, b"ok\n"))
        self.requests += 1
        if self.override is not None:
            return await self.override(request)
        return await self.answer(request)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the model's answer. Raises the EasqError that is to be the reply."""
        self._guard.check_call(request.headers, target(request), request.method)
        if is_upgrade(request):
            return await self._converse(request, self._call(request))
        check_can_pass(request)
        if isinstance(self._model, Http):
            return await self._pass_on(request, self._model)
        call = self._call(request)
        if request.method != "POST":
            raise MethodNotAllowed("a model is called with POST, or over a WebSocket", allow="POST")
        limit = self._limits.max_payload
        data = await read_body(
            request,
            limit,
            lambda size: PayloadTooLarge(f"the request has {size} bytes, {limit} are allowed"),
        )
        try:
            answer = await self._run(replace(call, data=data))
        except ModelFailed as error:
            # the model's own answer if it gave one
            is_own = error.answer.status == error.status and error.data
            response = respond(_reply(error.answer) if is_own else error_reply(error))
        else:
            response = respond(_reply(answer))
        response.headers[INSTANCE_HEADER] = Instance(local_address(request)[0], self.port, 0).address
        return response

    def _call(self, request: web.BaseRequest) -> Call:
        """Return the call without its data. Raises NotFound for the path of another service."""
        path, query = self._place(request)
        try:
            pairs = tuple(parse_qsl(query, keep_blank_values=True, errors="strict"))
        except ValueError as error:
            raise BadRequest("the query is not UTF-8 in percent encoding") from error
        return Call(path=path, query=pairs, headers=dict(_model_headers(request)))

    def _place(self, request: web.BaseRequest) -> tuple[str, str]:
        """Return the path and query for the model. Raises NotFound for the path of another service."""
        path, _, query = target(request).partition("?")
        if self._base and path.startswith(self._base + "/"):
            segment, slash, rest = path[len(self._base) + 1 :].partition("/")
            if unquote(segment, errors="replace") != self._name:
                raise NotFound(f"this is an instance of {self._name}")
            path = slash + rest
        return "" if path == "/" else path, query

    async def _pass_on(self, request: web.BaseRequest, model: Http) -> web.StreamResponse:
        """Stream the request to a model behind HTTP, with any method, and return the answer."""
        path, query = self._place(request)
        url = model.url(path, query)
        body = await body_of(request, self._limits.max_payload, patience_s=self._limits.timeout_s)
        address = (INSTANCE_HEADER, Instance(local_address(request)[0], self.port, 0).address)
        try:
            return await self._proxy.pass_on(
                request,
                url,
                _model_headers(request),
                body,
                drop=frozenset({INSTANCE_HEADER.lower()}),
                add=(address,),
            )
        except CallerGone:
            raise
        except BrokenOff as error:
            log.info("%s: %s", self.address, error)
            return error.response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._is_stopped:
                raise ModelFailed("the call was cancelled", status=503) from error
            raise as_failure(translate(error, url), timeout_s=self._limits.timeout_s) from error

    async def _run(self, call: Call) -> Answer:
        """Return the model's answer. Raises ModelFailed."""
        timeout_s = self._limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):  # a command may have to wait for a thread
                return await self._model.answer(call, timeout_s=timeout_s)
        except TimeoutError as error:
            raise ModelFailed(f"no answer within {timeout_s:g} s", status=504) from error
        except ChildFailed as error:
            log.error("%s", error)
            raise ModelFailed("the model cannot be started", status=500) from error

    async def _converse(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        """Answer each text message with text and each binary one with bytes, until either side closes the socket."""
        socket = accept_socket(request, self._limits.max_payload)
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    answer = await self._run(replace(call, data=message.data.encode()))
                    await send_message(socket, answer.data, text=True)
                elif message.type is WSMsgType.BINARY:
                    answer = await self._run(replace(call, data=message.data))
                    await send_message(socket, answer.data, text=False)
        except ModelFailed as error:
            reason = error.message.encode()[:_MAX_CLOSE_REASON].decode(errors="ignore").encode()
            await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=reason)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._sockets.discard(socket)
        return socket


def _model_headers(request: web.BaseRequest) -> list[tuple[str, str]]:
    """Return the headers of the request that the model gets."""
    return [
        (name, value)
        for name, value in end_to_end(request.headers.items())
        if name.lower() not in _WITHHELD and not name.lower().startswith(("sec-", "x-eas-queueservice-"))
    ]


def _reply(answer: Answer) -> Reply:
    """Return the reply for a model's answer. It has the answer's content type, unless a browser would execute it."""
    typed = raw_reply(Frame(0, {HEADER_PREFIX + "Content-Type": answer.content_type}, answer.data))
    headers = {
        name: value
        for name, value in answer.headers
        if (name.lower() in _CONTENT or name.lower().startswith("x-"))
        and not UNSAFE.fullmatch(name.lower())
        and value.isprintable()
    }
    return Reply(answer.status, headers | dict(typed.headers), answer.data)
