"""Connections of a watch on an event loop: a WebSocket, or an HTTP answer that does not end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from easq.errors import EasqError, NotAQueueService, Unreachable
from easq.net.aio_raw import AUTO_HEADERS, FAILURES, read_body, translate
from easq.net.connection import set_options
from easq.net.failures import Closed, Unanswered, lost, not_upgraded
from easq.net.settings import MAX_HEADER_BYTES, NetworkSettings
from easq.net.tls import tls_context
from easq.net.trace import Tracer, hidden, hide_in, secrets_of
from easq.net.url import is_encrypted, proxy_for, request_url, shown
from easq.protocol.operations import Request
from easq.protocol.replies import Reply, read_error

T = TypeVar("T")

#: longest body of a refusal, in bytes
_MAX_REFUSAL = 256 * 1024
#: time limit of closing a dropped WebSocket, in seconds
_ABORT_S = 0.1
#: offset in bytes of the field tcpi_last_data_recv in Linux's struct tcp_info
_LAST_BYTE_AT = 52


class _WatchConnection:
    """A session of aiohttp for one connection. Times are in seconds."""

    def __init__(
        self,
        url: str,
        request: Request,
        headers: Mapping[str, str],
        settings: NetworkSettings,
        refuse: Callable[[Reply], EasqError | None],
    ) -> None:
        """Prepare; `refuse` returns the error for an answer, or None for the expected answer."""
        self._address, self._url, self._settings, self._refuse = shown(url), url, settings, refuse
        self._place = request_url(url, request)
        self._proxy = proxy_for(url, settings.environ)
        self._secrets = secrets_of(headers, self._proxy)
        self._tracer = Tracer(settings.trace, self._secrets)
        self._tracer.sent("GET", url + request.path, request.query, headers)
        encrypted = any(is_encrypted(one.partition(":")[0]) for one in (url, self._proxy or ""))
        self._options: dict[str, Any] = {
            "headers": headers,
            "proxy": URL(self._proxy) if self._proxy else None,
            "ssl": tls_context(cacert=settings.cacert, insecure=settings.insecure) if encrypted else True,
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), socket_factory=_probed),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=settings.connect_timeout_s, ceil_threshold=3600.0
            ),
            auto_decompress=False,
            skip_auto_headers=AUTO_HEADERS,
            read_bufsize=256 * 1024,
            max_field_size=MAX_HEADER_BYTES,
            middlewares=(self._check,),  # before a redirect is followed, which `ws_connect` would do
        )

    async def _check(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request. Raises the error of any answer but the expected one."""
        response = await send(request)
        self._status = str(response.status)
        if self._refuse(Reply(response.status, response.headers)) is None:
            return response
        async with response:
            body = await read_body(response, self._url, _MAX_REFUSAL)
        error = self._refuse(hide_in(Reply(response.status, response.headers, body), self._secrets))
        assert error is not None
        raise error

    async def _open(self, send: Callable[[URL], Awaitable[T]]) -> T:
        """Return the result of `send` within the request timeout. On an error, close the session and raise it."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                opened = await send(URL(self._place, encoded=True))
        except BaseException as error:
            await self._session.close()
            # a connection whose TLS handshake failed is closed by a callback of the loop, which may end next
            await asyncio.sleep(0)
            failure = error if isinstance(error, EasqError) else self._translate(error)
            if failure is None:
                raise
            self._tracer.answer(hidden(failure, self._secrets).message, time.monotonic() - began)
            raise failure from (None if failure is error else error)
        self._tracer.answer(self._status, time.monotonic() - began)
        return opened

    def _translate(self, error: BaseException) -> EasqError | None:
        """Return the EasqError for a failure before the answer began; None for an error that is not the network's."""
        if isinstance(error, FAILURES):
            return translate(error, self._url, self._settings.request_timeout_s, self._proxy)
        return None

    async def abort(self) -> None:
        """Drop the connection."""
        await self._session.close()


class AsyncWebSocket(_WatchConnection):
    """One WebSocket connection. One task reads; pings are sent by another one."""

    def __init__(
        self,
        url: str,
        request: Request,
        headers: Mapping[str, str],
        settings: NetworkSettings,
        *,
        ping_every_s: float,
        silent_after_s: float,
        otherwise: str,
    ) -> None:
        """Prepare; `open` connects.

        Args:
            ping_every_s: seconds between two pings.
            silent_after_s: time without a byte after which the connection is lost, in seconds.
            otherwise: added to the hint if a proxy seems not to support WebSocket.
        """
        headers = {name: value for name, value in headers.items() if name.lower() != "upgrade"}
        super().__init__(url, request, headers, settings, self._refusal)
        self._otherwise = otherwise
        self._ping_every_s, self._silent_after_s = ping_every_s, silent_after_s
        self._has_heard = False
        self._lost: Unreachable | None = None

    def _refusal(self, reply: Reply) -> EasqError | None:
        return None if reply.status == 101 else not_upgraded(reply, self._address, self._otherwise)

    async def open(self, max_message_bytes: int) -> None:
        """Connect. Raises Unconnected where nothing of the request was sent, and the error of a refusal."""
        self._socket = await self._open(
            lambda place: self._session.ws_connect(
                place,
                autoping=False,
                max_msg_size=max_message_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=None),
                **self._options,
            )
        )
        self._pinging = asyncio.create_task(self._ping())

    def _translate(self, error: BaseException) -> EasqError | None:
        connecting = (
            aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError
        )  # fmt: skip
        if isinstance(error, TimeoutError) and not isinstance(error, connecting):
            limit_s = self._settings.request_timeout_s
            return Unanswered(f"{self._address} did not answer within {limit_s:g} s")
        if isinstance(error, aiohttp.ClientConnectionError | OSError) and not isinstance(error, connecting):
            return lost(self._address, "the handshake was done")
        if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, connecting):
            return NotAQueueService(
                f"{self._address} does not answer as a WebSocket service: {error.message[:200]!a}",
                hint="check host and port, and whether it speaks TLS",
            )
        return super()._translate(error)

    async def read(self) -> tuple[bytes, bool]:
        """Return the next message, and whether it is text.

        Raises Closed, Unreachable for a lost connection, and NotAQueueService for a violation of the protocol.
        """
        while True:
            message = await self._socket.receive()
            self._has_heard = True
            if message.type is aiohttp.WSMsgType.PING:
                with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                    await self._socket.pong(message.data)
            elif message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                is_text = message.type is aiohttp.WSMsgType.TEXT
                data: bytes = message.data.encode() if is_text else message.data
                self._tracer.body("<", data)
                return data, is_text
            elif message.type is aiohttp.WSMsgType.CLOSE:
                raise Closed(self._address, message.data or 1005, message.extra or "")
            elif message.type is aiohttp.WSMsgType.ERROR:
                error: Exception = message.data
                said = f"breaks the WebSocket protocol: {error}"
                if getattr(error, "code", None) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                    said = "sends more than is taken in one message"
                raise NotAQueueService(f"{self._address} {said}") from error
            elif message.type is not aiohttp.WSMsgType.PONG:
                raise self._lost or Unreachable(f"connection to {self._address} lost")

    async def _ping(self) -> None:
        """Send pings, and drop the connection when it is silent for too long.

        Silence is counted in pings, not in time, since a suspended process reads nothing.
        """
        silent_s = 0.0
        while silent_s <= self._silent_after_s:
            self._has_heard = False
            await asyncio.sleep(self._ping_every_s)
            silent_s = 0.0 if self._has_heard or self._is_receiving() else silent_s + self._ping_every_s
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await self._socket.ping(b"easq")
        self._lost = Unreachable(f"nothing was heard from {self._address} for {self._silent_after_s:g} s")
        await self._session.close()

    def _is_receiving(self) -> bool:
        """Return whether bytes of an incomplete message arrived since the last ping; False if this is unknown."""
        plain = self._socket.get_extra_info("socket")
        if plain is None or sys.platform != "linux":
            return False
        with contextlib.suppress(OSError):
            found = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_BYTE_AT + 4)
            return int.from_bytes(found[_LAST_BYTE_AT:], sys.byteorder) < self._ping_every_s * 1000
        return False

    async def close(self, within_s: float) -> None:
        """Close the connection; the other side has `within_s` seconds to answer the close frame."""
        self._pinging.cancel()
        await self._close_socket(within_s)
        await self._session.close()

    async def abort(self) -> None:
        """Drop the connection."""
        self._pinging.cancel()
        await super().abort()
        await self._close_socket(_ABORT_S)  # only frees the object: the connection is closed

    async def _close_socket(self, within_s: float) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, aiohttp.ClientError):
            async with asyncio.timeout(within_s):
                await self._socket.close()


class AsyncByteStream(_WatchConnection):
    """The bytes of an endless HTTP answer. It has no pings: TCP finds out that the other side is gone."""

    def __init__(
        self, url: str, request: Request, headers: Mapping[str, str], settings: NetworkSettings
    ) -> None:
        """Prepare; `open` connects."""
        super().__init__(url, request, headers, settings, self._refusal)

    @staticmethod
    def _refusal(reply: Reply) -> EasqError | None:
        return None if 200 <= reply.status < 300 else read_error(reply)

    async def open(self) -> None:
        """Connect. Raises Unconnected where nothing of the request was sent, and the error of another status."""
        self._answer = await self._open(
            lambda place: self._session.get(place, allow_redirects=False, **self._options)
        )

    async def read(self) -> bytes:
        """Return the next bytes, empty at the end. Raises Unreachable when the connection is lost."""
        try:
            return await self._answer.content.readany()
        except FAILURES as error:
            raise Unreachable(f"connection to {self._address} lost") from error

    async def abort(self) -> None:
        """Drop the connection."""
        self._answer.close()
        await super().abort()


def _probed(address: Any) -> socket.socket:
    """Return a socket on which TCP finds out that the other side is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    set_options(made)
    return made
