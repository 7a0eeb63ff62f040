"""One inference instance: HTTP and WebSocket in front of a model, at an address of its own."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from urllib.parse import parse_qsl, unquote

import aiohttp
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMsgType, web

from easq.emulator.proxy import UNSAFE, BrokenOff, CallerGone, Proxy, body_of, check_can_pass
from easq.emulator.settings import CallLimits
from easq.errors import BadRequest, ChildFailed, MethodNotAllowed, NotFound, PayloadTooLarge
from easq.model import HEADER_PREFIX, Frame, Instance
from easq.models.base import Answer, Call, Model, ModelFailed
from easq.models.http import Http, as_failure
from easq.net.aio import translate
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.replies import Reply, error_reply, raw_reply
from easq.server.auth import Guard
from easq.server.connection import Handler, on_unmasked
from easq.server.deadline import Deadline
from easq.server.handshake import check_handshake
from easq.server.listener import Listener
from easq.server.request import read_body, target
from easq.server.response import respond
from easq.server.watch import WRITE_DEADLINE_S

log = logging.getLogger(__name__)

#: says which instance answered, also through the gateway: IP:PORT
INSTANCE_HEADER = "X-Easq-Instance"
#: who calls and from where is no business of the model's
_OURS = frozenset({"authorization", "content-md5", "cookie", "date", "origin", "referer", "x-auth-token"})
#: of a model's headers, those that say how its bytes are to be read; beside these its own, which begin with X-
_CONTENT = frozenset({"content-encoding", "content-language"})
#: calls under way may go on for so long once the service stops, in seconds; less than connections have, so that
#: their callers are told
_GRACE_S = 4.5
#: whoever does not answer a close frame within so many seconds is not waited for
_CLOSE_S = 1.0
#: a reason in a close frame has at most so many bytes
_MAX_CLOSE_REASON = 123


class ModelInstance:
    """A model, called with POST, or with the messages of a WebSocket, under `{root}[/SUB/PATH]`. A model behind HTTP is
    called with any method, and bodies are streamed both ways.

    `root` is the gateway's path of the service, `/api/predict/NAME`: a client that goes past the gateway keeps it.
    One that knows of no gateway (ModelArts) calls any other path, and all of it is the model's.
    """

    def __init__(self, model: Model, guard: Guard, *, base: str, name: str, limits: CallLimits) -> None:
        self._model = model
        self._guard = guard
        self._base, self._name, self._limits = base, name, limits
        self._sockets: set[web.WebSocketResponse] = set()
        self._listener = Listener(self._answer, guard)
        self._host = ""
        #: used by a model behind HTTP
        self._proxy = Proxy(connect_s=limits.timeout_s, answer_s=limits.timeout_s, again=True)
        self._is_stopped = False
        #: calls and handshakes that came in, also those that were refused
        self.requests = 0
        #: answers in place of the instance, where it is to fail
        self.instead: Handler | None = None

    @property
    def ip(self) -> str:
        """Where it listens, as a literal address."""
        return self._listener.ip

    @property
    def port(self) -> int:
        """Where it listens; the same after it was away."""
        return self._listener.port

    @property
    def address(self) -> str:
        """`IP:PORT`."""
        return Instance(self.ip, self.port, 0).address

    async def start(self, host: str) -> None:
        """It answers at a free port of `host`, or at its own if it was away. Raises ConfigError."""
        self._host = host
        await self._listener.start(host, self.port)

    async def kill(self) -> None:
        """It is away, every connection was reset. `back` brings it back."""
        self._model.cancel()
        await self._listener.abort()

    async def back(self) -> None:
        """It answers again where it did."""
        await self._listener.start(self._host, self.port)

    async def stop(self) -> None:
        """It is gone: sockets were closed in order, and calls under way had some seconds before they were cancelled."""
        await self._listener.refuse_new()
        await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets))
        cutting = asyncio.create_task(self._cut_off_after(_GRACE_S))
        await self._listener.close()
        cutting.cancel()
        await asyncio.wait({cutting})
        await self._cut_off_after(0.0)

    async def _cut_off_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._is_stopped = True
        await self._model.close()
        await self._proxy.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if target(request).partition("?")[0] == "/healthz" and request.method == "GET":
            return respond(Reply(200, {"Content-Type": "text/plain"}, b"ok\n"))
        self.requests += 1
        if self.instead is not None:
            return await self.instead(request)
        return await self.answer(request)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the model answers. Raises the EasqError that is to be the reply."""
        self._guard.check_call(request.headers, target(request), request.method)
        if is_upgrade(request):
            return await self._converse(request, self._call(request))
        check_can_pass(request)
        if isinstance(self._model, Http):
            return await self._pass_on(request, self._model)
        call = self._call(request)
        if request.method != "POST":
            raise MethodNotAllowed("a model is called with POST, or over a WebSocket", allow="POST")
        call = replace(call, data=await read_payload(request, self._limits.max_payload))
        try:
            answer = await self._run(call)
        except ModelFailed as error:
            response = respond(_failure(error))
        else:
            response = respond(_reply(answer))
        response.headers[INSTANCE_HEADER] = Instance(local_ip(request), self.port, 0).address
        return response

    def _call(self, request: web.BaseRequest) -> Call:
        """The call without its data. Raises NotFound for another service's path."""
        path, query = self._place(request)
        try:
            pairs = tuple(parse_qsl(query, keep_blank_values=True, errors="strict"))
        except ValueError as error:
            raise BadRequest("the query is not UTF-8 in percent encoding") from error
        headers = {
            name: value for name, value in end_to_end(request.headers.items()) if _is_the_models(name.lower())
        }
        return Call(path=path, query=pairs, headers=headers)

    def _place(self, request: web.BaseRequest) -> tuple[str, str]:
        """Return the path and query that the model is called with. Raises NotFound for another service's path."""
        path, _, query = target(request).partition("?")
        if self._base and path.startswith(self._base + "/"):
            segment, slash, rest = path[len(self._base) + 1 :].partition("/")
            if unquote(segment, errors="replace") != self._name:
                raise NotFound(f"this is an instance of {self._name}")
            path = slash + rest
        return "" if path == "/" else path, query

    async def _pass_on(self, request: web.BaseRequest, model: Http) -> web.StreamResponse:
        """Stream the request to a model behind HTTP, whatever its method, and return the answer."""
        path, query = self._place(request)
        url = model.url(path, query)
        headers = [
            (name, value)
            for name, value in end_to_end(request.headers.items())
            if _is_the_models(name.lower())
        ]
        body = await body_of(request, self._limits.max_payload, patience_s=self._limits.timeout_s)
        where = (INSTANCE_HEADER, Instance(local_ip(request), self.port, 0).address)
        try:
            return await self._proxy.pass_on(
                request, url, headers, body, drop=frozenset({INSTANCE_HEADER.lower()}), add=(where,)
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
        """Each message was answered by one, of its own kind, until either side closed the socket."""
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


def is_upgrade(request: web.BaseRequest) -> bool:
    """Whether it asks for a WebSocket."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


def accept_socket(request: web.BaseRequest, max_payload: int) -> web.WebSocketResponse:
    """Return a socket to prepare, without extensions, which an unmasked frame closes with 1002.

    Raises BadRequest for a handshake that is none, and UpgradeRequired for another version of WebSocket.
    """
    socket = web.WebSocketResponse(compress=False, max_msg_size=max_payload + 1, timeout=_CLOSE_S)
    check_handshake(request, socket)
    closing: set[asyncio.Task[bool]] = set()  # the event loop itself keeps no task

    def close() -> None:
        end = socket.close(code=WSCloseCode.PROTOCOL_ERROR, message=b"a frame was not masked")
        closing.add(asyncio.create_task(end))

    on_unmasked(request, close)
    return socket


async def send_message(
    socket: web.WebSocketResponse | ClientWebSocketResponse, data: bytes, *, text: bool
) -> None:
    """The message is with the kernel: as text where that was asked for, and `data` is text. Raises TimeoutError."""
    async with Deadline(WRITE_DEADLINE_S):
        try:
            words = data.decode() if text else None
        except UnicodeDecodeError:
            words = None
        if words is None:
            await socket.send_bytes(data)
        else:
            await socket.send_str(words)


async def read_payload(request: web.BaseRequest, max_payload: int) -> bytes:
    """The body of a call. Raises PayloadTooLarge."""

    def too_large(size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"the request has {size} bytes, {max_payload} are allowed")

    return await read_body(request, max_payload, too_large)


def local_ip(request: web.BaseRequest) -> str:
    """The address of ours that the caller knows."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return str(name[0]).partition("%")[0] if name else ""


def local_port(request: web.BaseRequest) -> int:
    """Return our port of the connection; 0 once it is closed."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return int(name[1]) if name else 0


def content_headers(headers: list[tuple[str, str]]) -> dict[str, str]:
    """Of a model's headers those that its caller gets beside the type: how to read the bytes, and its own."""
    return {
        name: value
        for name, value in headers
        if (name.lower() in _CONTENT or name.lower().startswith("x-"))
        and not UNSAFE.fullmatch(name.lower())
        and value.isprintable()
    }


def _is_the_models(name: str) -> bool:
    return name not in _OURS and not name.startswith(("sec-", "x-eas-queueservice-"))


def _reply(answer: Answer) -> Reply:
    """The model's answer under its own type, but for types that a browser would run."""
    typed = raw_reply(Frame(0, {HEADER_PREFIX + "Content-Type": answer.content_type}, answer.data))
    return Reply(answer.status, content_headers(list(answer.headers)) | dict(typed.headers), answer.data)


def _failure(error: ModelFailed) -> Reply:
    """What the model itself said, else what is known."""
    return _reply(error.answer) if error.answer.status == error.status and error.data else error_reply(error)
